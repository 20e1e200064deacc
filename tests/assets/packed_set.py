"""A small packed set on disk, of text-like token streams that a tiny model learns something from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from upath import UPath

from synth.identity import claim_directory, finish
from synth.storage import study_path, write_bytes_atomic
from train.run import ModelConfig, RunConfig
from train.tokens import PackedSet

EOT = 0
TINY = ModelConfig(num_layers=2, hidden_size=16, num_heads=2, num_kv_heads=1, intermediate_size=32)


def write_packed_set(
    root: Path | str,
    *,
    sources: dict[str, int] | None = None,
    vocab_size: int = 64,
    sequence_length: int = 32,
    document_length: int = 12,
) -> PackedSet:
    """Write `packed/tiny` with these sources (name -> rows) and two evaluation domains; return it opened."""
    directory = study_path(str(root), "packed", "tiny")
    identity = claim_directory(directory, "packed", {"sources": sources, "vocab_size": vocab_size}, {})
    counts = {"natural": 200, "synthetic": 120} if sources is None else sources
    described = {}
    for number, (name, num_rows) in enumerate(counts.items()):
        tokens = _stream(number, num_rows * sequence_length + 1, vocab_size, document_length)
        described[name] = {
            "num_rows": num_rows,
            "num_tokens": len(tokens),
            "num_documents": int((tokens == EOT).sum()),
            "num_bytes": 3 * len(tokens),
            "num_dropped_tokens": 0,
            "num_altered_documents": 0,
            "shards": [_write(directory / "sources" / name / "part-00000-of-00001.tokens", tokens)],
        }
    rows = np.stack([_stream(100 + n, sequence_length + 1, vocab_size, document_length) for n in range(7)])
    evaluation = {
        domain: {
            "num_rows": n,
            "num_tokens": n * sequence_length,
            "num_bytes": 3 * n * sequence_length,
            "num_documents": n,
        }
        for domain, n in (("code", 2), ("prose", 5))
    }
    finish(
        directory,
        identity,
        sequence_length=sequence_length,
        vocab_size=vocab_size,
        eot_id=EOT,
        tokenizer_hash="none",
        sources=described,
        evaluation=evaluation,
        evaluation_shard=_write(directory / "evaluation" / "held_out.tokens", rows.ravel()),
        domains_left_out={},
    )
    return PackedSet.open(str(root), "tiny")


def run_on(packed: PackedSet, **changes: object) -> RunConfig:
    """Return a run on a packed set: 24 steps of 8 rows unless told otherwise."""
    fields: dict[str, object] = {
        "packed": "tiny",
        "packed_hash": packed.hash,
        "model": TINY,
        "mixture": {"natural": 0.75, "synthetic": 0.25},
        "train_tokens": 24 * 8 * packed.sequence_length,
        "rows_per_step": 8,
        "sequence_length": packed.sequence_length,
        "precision": "fp32",
        "max_epochs": None,
        "evaluations": 2,
    }
    return RunConfig.model_validate(fields | changes)


def _stream(seed: int, length: int, vocab_size: int, document_length: int) -> np.ndarray:
    """Documents of about `document_length` tokens in which a token mostly decides the next one."""
    random = np.random.default_rng(seed)
    tokens = np.empty(length, np.uint16)
    tokens[0] = EOT
    for i in range(1, length):
        ends = random.random() < 1 / document_length
        follows = (int(tokens[i - 1]) * 7 + 3) % (vocab_size - 1) + 1
        tokens[i] = EOT if ends else follows if random.random() < 0.8 else random.integers(1, vocab_size)
    return tokens


def _write(path: UPath, tokens: np.ndarray) -> dict[str, object]:
    data = tokens.astype("<u2").tobytes()
    write_bytes_atomic(path, data)
    return {"num_tokens": tokens.size, "sha256": hashlib.sha256(data).hexdigest()}
