"""Figures of what the report works out: speed-up against budget, the best share over (N, D), words against loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from scipy.stats import spearmanr

from tune.report.derived import ShareMark, SpeedUp, WordsPoint
from tune.report.format import amount, percent, show_interval, significant
from tune.report.style import Look, label_amounts, open_panel, quarters, write_heading
from tune.report.svg import Drawing, Series, finish_drawing, house_style, light

SMALLEST_FACTOR, LARGEST_FACTOR = 1 / 16, 64.0
"""Speed-ups beyond these are drawn at the edge: such a number says "never" or "at once", and no more."""

_FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64)


def draw_speed_ups(source: str, curves: Sequence[SpeedUp], looks: dict[float, Look]) -> Drawing:
    """Draw the speed-up of a source's mixtures against the budget of natural text; 1 is natural text itself."""
    title = f"natural + {source}"
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = open_panel()
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        axes.axhline(1.0, color=light("natural"), linewidth=1.2, zorder=1)
        for curve in curves:
            look = looks[curve.share]
            tokens, value = np.array(curve.tokens), _clipped(curve.value)
            if curve.low is not None and curve.high is not None:
                axes.fill_between(tokens, _clipped(curve.low), _clipped(curve.high), color=look.colour, alpha=0.14,
                                  linewidth=0, gid=f"band-{curve.label}", zorder=2)  # fmt: skip
            axes.plot(tokens, value, color=look.colour, gid=f"curve-{curve.label}", zorder=3)
            marked = np.linspace(0, len(tokens) - 1, 6).round().astype(int)
            gid = f"points-{curve.label}"
            axes.plot(tokens[marked], value[marked], linestyle="none", marker=look.marker, markersize=5, color=look.colour,
                      label=percent(curve.share), gid=gid, zorder=4)  # fmt: skip
            tips[gid] = [_speed_tip(curve, int(index)) for index in marked]
        label_amounts(axes, quarters([tokens for curve in curves for tokens in curve.tokens]))
        _label_factors(axes)
        axes.set_xlabel("tokens of natural text")
        axes.set_ylabel("fewer tokens, times")
        write_heading(figure, axes, title)
        last = "; ".join(f"{curve.label} {_factor(curve.value[-1])}" for curve in curves)
        alt = f"Speed-up to equal loss, {title}: at {amount(curves[0].tokens[-1])} tokens of natural text {last}."
        series = [
            Series(percent(c.share), looks[c.share].role, tuple(f"{part}-{c.label}" for part in ("band", "curve", "points")))
            for c in curves
        ]  # fmt: skip
        runs = [run_id for curve in curves for run_id in curve.run_ids]
        return finish_drawing(figure, f"speed-up-{source}".replace(".", "-"), title, alt, runs, tips, series)


def _clipped(values: Sequence[float]) -> np.ndarray:
    return np.clip(np.asarray(values, dtype=np.float64), SMALLEST_FACTOR, LARGEST_FACTOR)


def _speed_tip(curve: SpeedUp, index: int) -> str:
    ends = ""
    if curve.low is not None and curve.high is not None:
        ends = f" [{_factor(curve.low[index])}, {_factor(curve.high[index])}]"
    runs = curve.run_ids[-1]
    return f"{curve.label} for the loss of {amount(curve.tokens[index])} natural tokens: {_factor(curve.value[index])}{ends}, by runs such as {runs}"


def _factor(value: float) -> str:
    return "never" if value == 0 else f"{significant(value, 3)}×"


def _label_factors(axes: Axes) -> None:
    low, high = axes.get_ylim()
    shown = [factor for factor in _FACTORS if low * 0.99 <= factor <= high * 1.01]
    names = [f"{factor:g}×" if factor >= 1 else f"1/{round(1 / factor)}" for factor in shown]
    axes.yaxis.set_major_locator(FixedLocator(shown))
    axes.yaxis.set_major_formatter(FixedFormatter(names))
    axes.yaxis.set_minor_locator(NullLocator())


# --- the best share over (N, D) --------------------------------------------------------------------------------


def draw_share_map(source: str, marks: Sequence[ShareMark]) -> Drawing:
    """Draw every cell of a source at its (N, D) with its best share in words; the colour says it again."""
    title = f"best share of {source}"
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = open_panel()
        axes.set_xscale("log")
        axes.set_yscale("log")
        for number, mark in enumerate(marks):
            gid, best = f"cell-{number}", mark.best_share
            axes.plot([mark.train_tokens], [mark.num_params], linestyle="none", marker="s", markersize=26,
                      color=light(_share_role(best.value)), markeredgewidth=0, alpha=0.9, gid=gid, zorder=3)  # fmt: skip
            axes.text(mark.train_tokens, mark.num_params, percent(round(best.value, 2)), ha="center", va="center", fontsize=8.5,
                      weight="bold", color=light("paper"), zorder=4)  # fmt: skip
            tips[gid] = [
                f"N = {amount(mark.num_params)}, D = {amount(mark.train_tokens)}: {show_interval(best, 'percent')}, "
                f"{mark.origin}, run {mark.run_ids[0]}"
            ]
        label_amounts(axes, sorted({float(mark.train_tokens) for mark in marks}))
        sizes = {mark.num_params: mark.model for mark in marks}
        axes.yaxis.set_major_locator(FixedLocator(sorted(sizes)))
        axes.yaxis.set_major_formatter(FixedFormatter([sizes[size] for size in sorted(sizes)]))
        axes.yaxis.set_minor_locator(NullLocator())
        _widen(axes, [mark.train_tokens for mark in marks], [mark.num_params for mark in marks])
        axes.set_xlabel("training tokens D")
        axes.set_ylabel("parameters N")
        write_heading(figure, axes, title)
        cells = "; ".join(
            f"N = {amount(m.num_params)}, D = {amount(m.train_tokens)}: {show_interval(m.best_share, 'percent')}"
            for m in marks
        )
        runs = [run_id for mark in marks for run_id in mark.run_ids]
        name = f"share-map-{source}".replace(".", "-")
        return finish_drawing(
            figure, name, title, f"Best share of {source} over (N, D): {cells}.", runs, tips
        )


def _share_role(share: float) -> str:
    return f"share-{min(5, 1 + math.floor(share * 5))}"


def _widen(axes: Axes, tokens: Sequence[float], sizes: Sequence[float]) -> None:
    """Leave room for half a mark around the outermost cells."""
    for limits, values in ((axes.set_xlim, tokens), (axes.set_ylim, sizes)):
        margin = max(1.6, (max(values) / min(values)) ** 0.14)
        limits(min(values) / margin, max(values) * margin)


# --- words against loss ----------------------------------------------------------------------------------------


def draw_words(cell: str, points: Sequence[WordsPoint], looks: dict[str, Look]) -> Drawing:
    """Draw loss against the divergence of a mixture's words from those of the held-out text, one marker a mixture."""
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = open_panel()
        for source in [None, *sorted({point.source for point in points if point.source})]:
            mine = [point for point in points if point.source == source]
            look = looks[source] if source else Look("natural", "o")
            gid = f"points-{source or 'natural'}"
            axes.plot([p.divergence for p in mine], [p.loss for p in mine], linestyle="none", marker=look.marker,
                      markersize=7, color=look.colour, label=source or "natural", gid=gid, zorder=3)  # fmt: skip
            for point in mine:
                axes.annotate(percent(point.share), (point.divergence, point.loss), xytext=(6, 4),
                              textcoords="offset points", fontsize=7.5, color=light("muted"))  # fmt: skip
            tips[gid] = [
                f"{p.label}: {p.divergence:.4f} nats from the held-out words, loss {p.loss:.4f}, run {p.run_id}"
                for p in mine
            ]
        axes.margins(0.12)
        axes.set_xlabel("KL of held-out words from the mixture's, nats")
        axes.set_ylabel("loss, nats per token")
        title = f"Words against loss, {cell}"
        write_heading(figure, axes, title)
        rank = spearmanr([p.divergence for p in points], [p.loss for p in points]).statistic
        alt = f"{title}: {len(points)} mixtures, rank correlation {rank:.2f}; " + "; ".join(
            f"{p.label} {p.divergence:.3f} nats, loss {p.loss:.3f}" for p in points
        )
        return finish_drawing(figure, "words-against-loss", title, alt, [p.run_id for p in points], tips)
