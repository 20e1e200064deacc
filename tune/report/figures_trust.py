"""Figures on how far to trust the answer and the laws: rows of values with intervals, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter

from synth.percentage import percentage
from tune.report.format import FORMATS, show_end
from tune.report.style import open_panel, write_heading
from tune.report.svg import Drawing, finish_drawing, house_style, light

_ROW_INCHES = 0.34
_MARKERS = ("o", "s", "D")
_ROLES = ("share-1", "share-3", "source-1")
AXES = {"num_params": "largest N", "train_tokens": "largest D", "compute": "largest 6 N D"}


@dataclass(frozen=True)
class ForestRow:
    """One value with its interval; an end that is None has no limit and runs out of the panel."""

    label: str
    value: float
    low: float | None
    high: float | None
    role: str
    """Palette role."""
    tip: str
    """What is behind it, in words."""
    has_interval: bool = True


def draw_forest(
    name: str, title: str, x_label: str, rows: Sequence[ForestRow], kind: str, run_ids: Sequence[str],
    limits: tuple[float, float] | None = None,
) -> Drawing:  # fmt: skip
    """Draw values with intervals below each other; `kind` is how numbers are written, `limits` the panel's ends."""
    tips: dict[str, list[str]] = {}
    low, high = limits or _ends(rows)
    with house_style():
        figure, axes = open_panel(height=1.0 + _ROW_INCHES * len(rows))
        for y, row in enumerate(reversed(rows)):
            colour = light(row.role)
            if row.has_interval:
                ends = [low if row.low is None else row.low, high if row.high is None else row.high]
                axes.plot(ends, [y, y], color=colour, linewidth=3, alpha=0.5, solid_capstyle="butt", zorder=2)
            for end, marker, place in ((row.low, "<", low), (row.high, ">", high)):
                if row.has_interval and end is None:
                    axes.plot([place], [y], marker=marker, color=colour, markersize=5, linestyle="none", clip_on=False, zorder=3)  # fmt: skip
            gid = f"row-{y}"
            axes.plot([min(max(row.value, low), high)], [y], marker="o", color=colour, markersize=6, linestyle="none", gid=gid, zorder=4)  # fmt: skip
            tips[gid] = [f"{row.label}: {_words(row, kind)}, {row.tip}"]
        _label_rows(axes, [row.label for row in reversed(rows)])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, kind)))
        margin = 0.03 * (high - low)
        axes.set_xlim(low - margin, high + margin)
        axes.set_xlabel(x_label)
        write_heading(figure, axes, title)
        alt = f"{title}: " + "; ".join(f"{row.label} {_words(row, kind)}" for row in rows) + "."
        return finish_drawing(figure, name, title, alt, run_ids, tips)


def _tick(value: float, kind: str) -> str:
    return f"{value:g}" if kind == "number" else FORMATS[kind](value)


def _ends(rows: Sequence[ForestRow]) -> tuple[float, float]:
    """Return the ends of all intervals that have them; values far outside count only when there is nothing else."""
    known = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _words(row: ForestRow, kind: str) -> str:
    text = FORMATS[kind](row.value)
    if not row.has_interval:
        return text
    return f"{text} [{show_end(row.low, kind)}, {show_end(row.high, kind)}]"


def draw_errors(
    name: str, title: str, errors: Sequence[tuple[str, dict[str, float | None]]], run_ids: Sequence[str]
) -> Drawing:
    """Draw the errors of each law on what was held out, one row a law, one marker an axis; further left is better."""
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = open_panel(height=1.15 + _ROW_INCHES * len(errors))
        places = list(enumerate(reversed(errors)))
        for number, (axis, words) in enumerate(AXES.items()):
            known = [(y, law, value) for y, (law, held) in places if (value := held.get(axis)) is not None]
            if not known:
                continue
            axes.plot([value for *_, value in known], [y for y, *_ in known], linestyle="none", marker=_MARKERS[number],
                      markersize=6.5, color=light(_ROLES[number]), label=words, gid=f"held-{axis}", zorder=3)  # fmt: skip
            tips[f"held-{axis}"] = [f"{law}, {words} predicted without it: {percentage(value, 2)} off" for _, law, value in known]  # fmt: skip
        _label_rows(axes, [law for _, (law, _) in places])
        axes.set_xlim(
            0.0, 1.06 * max(value for _, held in errors for value in held.values() if value is not None)
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.2g} %"))
        only = f", {AXES[next(iter(tips)).removeprefix('held-')]}" if len(tips) == 1 else ""
        axes.set_xlabel(f"mean absolute relative error{only}")
        write_heading(figure, axes, title, columns=3)
        alt = f"{title}: " + "; ".join(
            f"{law} " + ", ".join(f"{AXES[axis]} {percentage(value, 2)}" for axis, value in held.items() if value is not None)
            for law, held in errors
        )  # fmt: skip
        return finish_drawing(figure, name, title, f"{alt}.", run_ids, tips)


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.yaxis.set_major_locator(FixedLocator(range(len(labels))))
    axes.yaxis.set_major_formatter(FixedFormatter(list(labels)))
    axes.set_ylim(-0.6, len(labels) - 0.4)
