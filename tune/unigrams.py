"""How far the words of a mixture are from those of held-out text: KL divergence of unigram distributions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from synth.errors import UserError
from train.tokens import PackedSet
from tune.laws.law import Floats
from tune.observations import mixture_label

MAX_TOKENS = 20_000_000
"""Tokens counted of each source: enough for a distribution over a vocabulary, and seconds of reading."""


def mixture_divergences(
    root: str, packed: str, natural: str, mixtures: Iterable[tuple[str | None, float]]
) -> dict[str, float]:
    """Return KL(held-out || mixture) of token frequencies, nats, by the mixture's label.

    A mixture's frequencies are its sources' by share, each smoothed by one count for every token. Empty when the
    tokens are not under this root any more.
    """
    try:
        opened = PackedSet.open(root, packed)
        held_out = sum(
            (
                np.bincount(each.rows.ravel(), minlength=opened.vocab_size)
                for each in opened.evaluation.values()
            ),
            start=np.zeros(opened.vocab_size, dtype=np.int64),
        )
        target = held_out / held_out.sum()
        found = {}
        frequencies: dict[str, Floats] = {}
        for synthetic, share in mixtures:
            parts = {natural: 1.0 - share} | ({synthetic: share} if synthetic and share else {})
            for name in parts:
                if name not in frequencies:
                    frequencies[name] = _frequencies(opened, name)
            mixed = sum(share * frequencies[name] for name, share in parts.items())
            seen = target > 0
            found[mixture_label(synthetic, share)] = float(
                np.sum(target[seen] * np.log(target[seen] / np.asarray(mixed)[seen]))
            )
        return found
    except (UserError, FileNotFoundError, KeyError):
        return {}


def _frequencies(opened: PackedSet, name: str) -> Floats:
    source = opened.sources[name]
    tokens = source.tokens(0, min(source.num_tokens, MAX_TOKENS))
    counts = np.bincount(tokens, minlength=opened.vocab_size) + 1.0
    return np.asarray(counts / counts.sum())
