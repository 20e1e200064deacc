"""What a document is: its normal form, its identity, its side of the held-out split, and why a row is not one."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import NamedTuple

import pyarrow as pa

SPLITS = ("train", "held_out")

DOCUMENT_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("doc_id", "text", "domain", "source")]
)
"""Columns of every corpus part, in this order; rows are sorted by `doc_id`."""

DOC_ID_DIGITS = 24
"""96 bits: the chance that two of ten billion different documents share an id is below one in a billion."""


class Row(NamedTuple):
    """One row of an input, as found. `text` may be anything; only `admit` says whether it is a document."""

    text: object
    domain: str
    source: str
    reason: str | None = None
    """Why the reader itself turns the row down; None leaves the verdict to `admit`."""


class Document(NamedTuple):
    """One row of a corpus: `doc_id == document_id(text)`, `text == normalise(text)`."""

    doc_id: str
    text: str
    domain: str
    source: str


def normalise(text: str) -> str:
    r"""Return the normal form that is stored and hashed: Unicode NFC, every line end (`\r\n`, `\r`) as `\n`."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def document_id(normalised_text: str) -> str:
    """Return the first 24 hexadecimal digits of the SHA-256 of a normalised text in UTF-8."""
    return hashlib.sha256(normalised_text.encode("utf-8")).hexdigest()[:DOC_ID_DIGITS]


def is_held_out(doc_id: str, fraction: float) -> bool:
    """Return whether a document is held out: a function of its id alone, and nested (a larger fraction only adds).

    The last eight digits decide, because the first ones order the documents: taking the lowest ids
    (`max_documents`) must not change the fraction.
    """
    return int(doc_id[-8:], 16) < fraction * 2**32


def admit(row: Row, min_characters: int) -> Document | str:
    """Return the document in a row, or the reason why there is none.

    Reasons: `null_text`, `not_text`, `invalid_unicode` (bytes that are not UTF-8, lone surrogates), `too_short`
    (fewer than `min_characters` between the outer white space), or the reader's own.
    """
    text = _decoded(row.text)
    if not isinstance(text, str):
        return row.reason or ("null_text" if text is None else "not_text")
    text = normalise(text)
    if len(text.strip()) < min_characters:
        return "too_short"
    if row.reason is not None:
        return row.reason
    try:
        return Document(document_id(text), text, row.domain, row.source)
    except UnicodeEncodeError:
        return "invalid_unicode"


def _decoded(text: object) -> object:
    # Lone surrogates stand for the bytes that are not UTF-8: no document_id can be made of them.
    return text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
