"""Cutting a document into chunks of bounded length, at sentence ends where there are any.

Chunks are spans of the document: together they hold every character that is not white space at a chunk's edge, in
order and once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

Measure = Callable[[Sequence[str]], Sequence[int]]
"""Lengths of several texts at once, in the unit of the cap."""

_BOUNDARY = re.compile(
    r"""
      [.!?…]+ ["'”’»)\]]* \s++ (?![a-z])   # end of a sentence; `e.g. this` goes on
    | [。！？｡]+ [」』”’）]*                  # scripts that put no space between sentences
    | [।॥۔؟።]+ \s*+
    | \n\s*+                                 # end of a line or paragraph
    """,
    re.VERBOSE,
)


class Span(NamedTuple):
    """Half-open range of characters of a document."""

    start: int
    end: int


def count_words(texts: Sequence[str]) -> list[int]:
    """Return the number of white-space separated words of each text."""
    return [len(text.split()) for text in texts]


def count_characters(texts: Sequence[str]) -> list[int]:
    """Return the number of Unicode characters of each text."""
    return [len(text) for text in texts]


def sentence_spans(text: str) -> list[Span]:
    """Return spans that cover the text without a gap, each up to the end of a sentence, line or paragraph."""
    ends = [match.end() for match in _BOUNDARY.finditer(text)]
    if not ends or ends[-1] != len(text):
        ends.append(len(text))
    return [Span(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True) if end > start]


def chunk_spans(text: str, max_length: int, measure: Measure) -> list[Span]:
    """Return chunks of at most `max_length` (as `measure` counts them), of about equal length; [] for a blank text.

    A chunk is a run of sentences; a sentence longer than the cap is cut at white space, a word longer than the cap
    anywhere. Lengths are taken of single sentences and added up, so a chunk can be off by what merging across a
    sentence end changes (a token or two, never more than the number of its sentences).
    """
    pieces = _bounded_pieces(text, max_length, measure)
    if not pieces:
        return []
    left = sum(length for _, length in pieces)
    chunks: list[Span] = []
    start, filled, target = pieces[0][0].start, 0, _target(left, max_length)
    for span, length in pieces:
        if filled and (filled + length > max_length or filled + length / 2 > target):
            chunks.append(Span(start, span.start))
            left -= filled
            start, filled, target = span.start, 0, _target(left, max_length)
        filled += length
    chunks.append(Span(start, pieces[-1][0].end))
    return [trimmed for chunk in chunks if (trimmed := _trimmed(text, chunk)).end > trimmed.start]


def _target(left: int, max_length: int) -> float:
    """Return the length of chunks that share what is left evenly; 0 where a tokenizer drops all of it."""
    return left / max(1, math.ceil(left / max_length))


def _bounded_pieces(text: str, max_length: int, measure: Measure) -> list[tuple[Span, int]]:
    """Return sentences with their lengths, in order, those over the cap halved until they fit."""
    todo = [span for span in sentence_spans(text) if text[span.start : span.end].strip()]
    done: list[tuple[Span, int]] = []
    while todo:
        lengths = measure([text[span.start : span.end] for span in todo])
        over: list[Span] = []
        for span, length in zip(todo, lengths, strict=True):
            if length <= max_length or span.end - span.start == 1:
                done.append((span, length))
            else:
                over.extend(_halves(text, span))
        todo = over
    return sorted(done)


def _halves(text: str, span: Span) -> list[Span]:
    """Cut a span in two after the white space nearest to its middle, or in the middle if it has none."""
    middle = (span.start + span.end) // 2
    before = max(text.rfind(space, span.start + 1, middle) for space in " \t\n")
    after = min((at for space in " \t\n" if (at := text.find(space, middle, span.end - 1)) >= 0), default=-1)
    candidates = [at + 1 for at in (before, after) if at > span.start]
    cut = min(candidates, key=lambda at: abs(at - middle), default=middle)
    halves = [Span(span.start, cut), Span(cut, span.end)]
    return [half for half in halves if text[half.start : half.end].strip()]


def _trimmed(text: str, span: Span) -> Span:
    piece = text[span.start : span.end]
    start = span.start + len(piece) - len(piece.lstrip())
    return Span(start, max(start, span.start + len(piece.rstrip())))
