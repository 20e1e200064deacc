"""Packed sets that can be read by eye: a token is a byte, a row takes eight of them."""

from __future__ import annotations

import numpy as np
from upath import UPath

from train.config import PackConfig
from train.tokenizer import Encoder
from train.tokens import PackedSet

BYTES_ONLY = {"vocab_size": 257}
"""A vocabulary without a merge: every byte is one token."""

TEXTS = ["abcdefg", "hij", "klmnopqrstu", "vw", "xyz 12345 é"]

IN_ORDER = ["klmnopqrstu", "hij", "abcdefg", "xyz 12345 é", "vw"]
"""The same by doc_id, the SHA-256 of the text."""


def config_of(root: str, **fields: object) -> PackConfig:
    values = {
        "root": root,
        "tokenizer": BYTES_ONLY,
        "sources": {"natural": {"corpus": "natural"}},
        "evaluate_on": ("natural",),
        "sequence_length": 8,
        "max_evaluation_tokens_per_domain": 256,
    }
    return PackConfig.model_validate(values | fields)


def encoder_of(packed: PackedSet) -> Encoder:
    return Encoder.read(UPath(packed.tokenizer_directory))


def spelled(packed: PackedSet, rows: np.ndarray) -> list[str]:
    """Rows as text, the end-of-text token as ¶."""
    encoder = encoder_of(packed)
    return [
        "".join(
            "¶" if each == packed.eot_id else encoder.decode(row[i : i + 1]) for i, each in enumerate(row)
        )
        for row in rows
    ]


def documents_of(packed: PackedSet, source: str) -> list[str]:
    """The texts of a source, cut out of its stream by the index of documents."""
    tokens = packed.sources[source]
    ends = np.cumsum(tokens.documents()["num_tokens"].to_pylist()).tolist()
    encoder = encoder_of(packed)
    return [encoder.decode(tokens.tokens(begin, end)) for begin, end in zip([0, *ends], ends, strict=False)]
