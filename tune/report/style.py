"""What all figures of the report share: colours and markers by meaning, the panel, its heading, its axis labels.

Colour says the same thing everywhere: grey is natural text, cool colours are shares of synthetic text, warm colours
are synthetic sources; markers repeat it for readers who do not see the colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from tune.report.format import amount
from tune.report.svg import PALETTE, light

PANEL_INCHES = (4.5, 3.25)
_SHARE_ROLES = [role for role in PALETTE if role.startswith("share-")]
_SOURCE_ROLES = [role for role in PALETTE if role.startswith("source-")]
_SHARE_MARKERS = ("s", "D", "^", "v", "P", "X", "p", "h")
_SOURCE_MARKERS = ("o", "s", "D", "^")


@dataclass(frozen=True)
class Look:
    """How one series is drawn wherever it appears."""

    role: str
    """Palette role."""
    marker: str

    @property
    def colour(self) -> str:
        """The light colour of the role."""
        return light(self.role)


def share_looks(shares: Sequence[float]) -> dict[float, Look]:
    """Give every synthetic share of a study its colour and marker: share 0 is grey, the others by rank."""
    mixed = sorted({share for share in shares if share > 0})
    looks = {0.0: Look("natural", "o")}
    for rank, share in enumerate(mixed):
        place = round(rank * (len(_SHARE_ROLES) - 1) / max(1, len(mixed) - 1))
        looks[share] = Look(_SHARE_ROLES[place], _SHARE_MARKERS[rank % len(_SHARE_MARKERS)])
    return looks


def source_looks(sources: Sequence[str]) -> dict[str, Look]:
    """Give every synthetic source of a study its colour and marker, by name."""
    return {
        source: Look(_SOURCE_ROLES[i % len(_SOURCE_ROLES)], _SOURCE_MARKERS[i % len(_SOURCE_MARKERS)])
        for i, source in enumerate(sorted(set(sources)))
    }


def open_panel(width: float = PANEL_INCHES[0], height: float = PANEL_INCHES[1]) -> tuple[Figure, Axes]:
    """Return an empty figure with one pair of axes, inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def write_heading(figure: Figure, axes: Axes, title: str, columns: int = 6) -> None:
    """Put the title and, below it, the key above the axes, where no data can be."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, title=title, alignment="left", title_fontproperties={"size": 9.5, "weight": "bold"},
                      loc="outside upper left", ncols=min(columns, len(labels)), handlelength=1.0, columnspacing=1.1,
                      handletextpad=0.5, labelspacing=0.3, borderpad=0.2)  # fmt: skip
    else:
        figure.suptitle(title, x=0.012, ha="left", fontsize=9.5, weight="bold")


def quarters(values: Sequence[float]) -> list[float]:
    """Return the largest value and its quarter, sixteenth, ... down to the smallest, ascending."""
    steps = math.floor(math.log(max(values) / min(values), 4) + 1e-9)
    return [max(values) / 4**step for step in range(steps, -1, -1)]


def label_amounts(axes: Axes, values: Sequence[float]) -> None:
    """Label a log axis at measured values, leaving out those that would run into a neighbour."""
    if not values:
        return
    low, high = math.log(values[0]), math.log(values[-1])
    spacing = max(high - low, 1e-9) / 6
    kept: list[float] = []
    for value in values:
        if not kept or math.log(value / kept[-1]) >= spacing:
            kept.append(value)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_major_formatter(FixedFormatter([amount(value) for value in kept]))
    axes.xaxis.set_minor_locator(NullLocator())
