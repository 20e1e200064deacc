"""A table: rows under columns that say what kind of number they hold, for the page, the Markdown and the CSV alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tune.report.format import FORMATS
from tune.results import Interval


@dataclass(frozen=True)
class Column:
    """One column: where its value is in a row, its heading, and the kind of number (`report.format.FORMATS`)."""

    key: str
    label: str
    kind: str = "text"
    """A format, `text`, `prose` (may wrap), `code`, `run` (a run id, linked) or `verdict`."""

    @property
    def is_number(self) -> bool:
        """Whether the column is set flush right."""
        return self.kind in FORMATS


@dataclass(frozen=True)
class Table:
    """Rows under columns, and what a reader must know beside them."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
    """Sentences under the table: warnings of its rows, sources of its numbers."""


def to_csv(columns: Sequence[Column], rows: Iterable[dict[str, Any]]) -> str:
    """Return rows as CSV with full precision; an interval takes three columns, a missing number stays empty."""
    rows = list(rows)
    intervals = {c.key for c in columns if any(isinstance(row.get(c.key), Interval) for row in rows)}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    heading: list[str] = []
    for column in columns:
        heading += [
            column.key,
            *([f"{column.key}_low", f"{column.key}_high"] if column.key in intervals else []),
        ]
    writer.writerow(heading)
    for row in rows:
        fields: list[Any] = []
        for column in columns:
            value = row.get(column.key)
            if column.key in intervals:
                fields += [None] * 3 if value is None else [value.value, value.low, value.high]
            else:
                fields.append(value)
        writer.writerow(fields)
    return buffer.getvalue()
