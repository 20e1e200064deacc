"""What a section of the report is made of."""

from __future__ import annotations

from dataclasses import dataclass

from tune.report.inputs import Example
from tune.report.svg import Drawing
from tune.report.table import Table


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    name: str
    """Anchor: letters and dashes."""
    title: str
    lead: str
    """How to read it, where its numbers come from."""
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    examples: tuple[Example, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """Whole text files to read and copy, (name, text), folded away."""
    notes: tuple[str, ...] = ()
    """Sentences at its end."""
    absent: str | None = None
    """The one line instead of everything else, when the input is not there."""
    folded: bool = False
    """Whether its tables are folded away on screen until asked for."""
    collapsed: bool = False
    """Whether everything below the lead is."""
