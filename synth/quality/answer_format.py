"""Whether an answer has the shape its recipe asked for: how many question-answer pairs, steps, table rows are in it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

from synth.recipe import Format

_ENTRY = re.compile(r"^[ \t]{0,6}(?:[-*+•–]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
_STEP = re.compile(
    r"^[ \t#*_]{0,8}(?:step[ \t]+)?(\d{1,3})(?:[.):]|\*\*|[ \t]*[-–])[ \t*_]*\S", re.MULTILINE | re.IGNORECASE
)
_TABLE_RULE = re.compile(r"\|?[ \t]*:?-{2,}:?[ \t]*(?:\|[ \t]*:?-{2,}:?[ \t]*)+\|?")


def count_items(text: str, shape: Format) -> int:
    """Return how many items of a format a text holds; 0 where it has not that shape, 1 for any text in `free`."""
    return _COUNTERS[shape](text)


def _pairs(first: str, second: str, abbreviated: bool = False) -> Callable[[str], int]:
    """Return a counter of `first: ... second: ...` pairs, both with something behind the label."""
    short = f"|{first[0]}(?=[\\d.:)])|{second[0]}(?=[\\d.:)])" if abbreviated else ""
    label = re.compile(
        rf"(?:^[ \t>#*_\d.)-]{{0,8}}|(?<=[\s*]))({first}|{second}{short})[ \t]*\d{{0,3}}[*_]{{0,2}}[:.][*_]{{0,2}}",
        re.MULTILINE | re.IGNORECASE,
    )

    def count(text: str) -> int:
        pieces = label.split(text)
        said = [
            (name[0].lower(), any(map(str.isalnum, body)))
            for name, body in zip(pieces[1::2], pieces[2::2], strict=True)
        ]
        return sum(
            asked == (first[0], True) and answered == (second[0], True)
            for asked, answered in itertools.pairwise(said)
        )

    return count


def _steps(text: str) -> int:
    """Return how far the numbers 1, 2, 3, ... go on, one a line."""
    reached = 0
    for match in _STEP.finditer(text):
        reached += int(match[1]) == reached + 1
    return reached


def _table_rows(text: str) -> int:
    """Return the body rows of all Markdown tables that have as many cells as their table's heading."""
    lines = [line.strip() for line in text.splitlines()]
    rows, width = 0, 0
    for before, line in zip(["", *lines], lines, strict=False):
        if _TABLE_RULE.fullmatch(line):
            width = _cells(before) if _cells(before) == _cells(line) else 0
        elif "|" not in line:
            width = 0
        elif width:
            rows += _cells(line) == width
    return rows


def _cells(line: str) -> int:
    return len(line.strip("|").replace("\\|", "").split("|")) if "|" in line else 0


_COUNTERS: dict[Format, Callable[[str], int]] = {
    "free": lambda text: 1,
    "question_answer": _pairs("question", "answer", abbreviated=True),
    "list": lambda text: len(_ENTRY.findall(text)),
    "steps": _steps,
    "table": _table_rows,
    "problem_solution": _pairs("problem", "solution"),
}
