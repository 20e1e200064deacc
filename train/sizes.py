"""Named model sizes: one table of Llama-3-style shapes, each named by its non-embedding parameters (within 3 %).

The large shapes keep a head size of 64 to 128, grouped-query attention and a feed-forward width of about 3.5 times
the hidden size, in multiples of 64, as Llama 3 does (`1b` is the shape of Llama 3.2 1B); the small ones exist so that
a whole study runs on two CPU cores. No head is smaller than 32: smaller ones cost time in attention, and vLLM does not
serve them.
"""

from __future__ import annotations

from collections.abc import Iterator

from synth.errors import UserError
from train.flops import count_parameters, flops_per_token
from train.run import ModelConfig

_SMALL = {
    "6k": (1, 32, 1, 1, 20),
    "12k": (1, 32, 1, 1, 80),
    "25k": (2, 32, 1, 1, 88),
    "49k": (1, 64, 2, 2, 168),
    "98k": (2, 64, 2, 2, 168),
    "197k": (4, 64, 2, 2, 168),
    "330k": (3, 96, 3, 3, 248),
    "780k": (4, 128, 4, 4, 336),
    "1.8m": (4, 192, 6, 6, 512),
    "3.2m": (4, 256, 8, 8, 688),
    "4.7m": (6, 256, 8, 8, 688),
    "9.7m": (8, 320, 5, 5, 832),
    "12m": (10, 320, 5, 5, 832),
    "25m": (12, 384, 6, 2, 1472),
    "60m": (16, 512, 8, 4, 1920),
    "100m": (13, 768, 12, 4, 2688),
    "125m": (16, 768, 12, 4, 2688),
    "200m": (18, 896, 14, 7, 3200),
    "350m": (24, 1024, 16, 8, 3712),
}
"""Name -> (layers, hidden size, heads, key-value heads, feed-forward width); tied embeddings, rotary base 10,000."""

_LARGE = {
    "700m": (26, 1408, 22, 11, 4928, True),
    "1b": (16, 2048, 32, 8, 8192, True),
    "2b": (24, 2560, 20, 4, 8960, True),
    "3b": (30, 3072, 24, 8, 8192, True),
    "8b": (36, 4096, 32, 8, 14336, False),
}
"""The same and whether the embeddings are tied; rotary base 500,000, for rows of several thousand tokens."""

SIZES: dict[str, ModelConfig] = {
    name: ModelConfig(
        num_layers=layers, hidden_size=hidden, num_heads=heads, num_kv_heads=kv, intermediate_size=ff
    )
    for name, (layers, hidden, heads, kv, ff) in _SMALL.items()
} | {
    name: ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv,
        intermediate_size=ff,
        tie_embeddings=tied,
        rope_theta=500_000.0,
    )
    for name, (layers, hidden, heads, kv, ff, tied) in _LARGE.items()
}
"""Every named size, smallest first."""


def model_of(name: str) -> ModelConfig:
    """Return the shape of a named size. Raises UserError, listing the names, when there is none of this name."""
    try:
        return SIZES[name]
    except KeyError:
        raise UserError(f"model = {name!r} is not a known size; choose one of {', '.join(SIZES)}.") from None


def describe_sizes(vocab_size: int = 32_768, sequence_length: int = 2048) -> Iterator[str]:
    """Yield a table of all sizes, one line each: shape, parameters, and FLOP per token by every convention."""
    conventions = tuple(flops_per_token(SIZES["12k"], vocab_size, sequence_length))
    head = ("size", "layers", "hidden", "heads", "kv", "ff", "non-embedding", "total", *conventions)
    yield f"parameters at a vocabulary of {vocab_size:,}; FLOP to train on one token of a row of {sequence_length:,}:"
    yield " ".join(f"{name:>16}" if name in conventions else f"{name:>13}" for name in head)
    for name, model in SIZES.items():
        counts = count_parameters(model, vocab_size)
        shape = (
            model.num_layers,
            model.hidden_size,
            model.num_heads,
            model.num_kv_heads,
            model.intermediate_size,
        )
        numbers = (*shape, counts.non_embedding, counts.total)
        flops = flops_per_token(model, vocab_size, sequence_length)
        yield " ".join(
            [
                f"{name:>13}",
                *(f"{each:>13,}" for each in numbers),
                *(f"{each:>16.4g}" for each in flops.values()),
            ]
        )
