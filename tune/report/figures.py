"""The figures of the report: one small panel each, drawn with matplotlib from typed values, no reading and no fitting.

Panels are narrow on purpose: the page puts them side by side on a desk and below each other on a phone, and their
text stays readable in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter

from synth.percentage import signed_percentage
from tune.report.format import amount, percent, show_interval
from tune.report.style import PANEL_INCHES, Look, label_amounts, open_panel, write_heading
from tune.report.svg import Drawing, Series, finish_drawing, house_style, light
from tune.results import CellOptimum, HeldOutPoint

# --- loss against share ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharePoint:
    """One finished run in a cell."""

    source: str | None
    """Synthetic source of the run's mixture; None for natural text alone."""
    share: float
    loss: float
    run_id: str
    origin: str
    """`grid` or `search`."""


@dataclass(frozen=True)
class CellPanel:
    """Everything measured in one (N, D) cell."""

    name: str
    model: str
    num_params: int
    train_tokens: int
    points: tuple[SharePoint, ...]
    optima: tuple[CellOptimum, ...]


def draw_loss_by_share(panel: CellPanel, looks: dict[str, Look]) -> Drawing:
    """Draw loss against synthetic share in a cell: runs of the plan filled, of a search open, optima with intervals."""
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = open_panel()
        searched = {optimum.synthetic for optimum in panel.optima}
        for optimum in panel.optima:
            _draw_optimum(axes, optimum, looks[optimum.synthetic], tips)
        plain = {point.source for point in panel.points if point.source is not None} - searched
        for source in sorted(plain):
            _connect_means(
                axes, source, [p for p in panel.points if p.source in (None, source)], looks[source]
            )
        gids: dict[str, list[str]] = {}
        for (mixed, origin), points in _grouped(panel.points).items():
            look = Look("natural", "o") if mixed is None else looks[mixed]
            _draw_share_points(axes, mixed or "natural", origin, points, look, tips)
            gids.setdefault(mixed or "natural", []).append(f"{origin}-{mixed or 'natural'}")
        for source in {*plain, *searched}:
            parts = ("means", "band", "curve", "interval", *(f"optimum-{o.search}" for o in panel.optima))
            gids.setdefault(source, []).extend(f"{part}-{source}" for part in parts)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.set_xlim(-0.04, 1.04)
        axes.set_xlabel("synthetic share of training tokens")
        axes.set_ylabel("loss, nats per token")
        title = f"{panel.model} parameters, {amount(panel.train_tokens)} tokens"
        write_heading(figure, axes, title, columns=3)
        alt = f"Loss against synthetic share, {title}: {_share_summary(panel)}"
        runs = [point.run_id for point in panel.points]
        series = [
            Series(name, "natural" if name == "natural" else looks[name].role, tuple(of))
            for name, of in sorted(gids.items(), key=lambda item: (item[0] != "natural", item[0]))
        ]
        return finish_drawing(figure, panel.name, title, alt, runs, tips, series)


def _grouped(points: Sequence[SharePoint]) -> dict[tuple[str | None, str], list[SharePoint]]:
    groups: dict[tuple[str | None, str], list[SharePoint]] = {}
    for point in sorted(points, key=lambda p: (p.source or "", p.origin, p.share, p.run_id)):
        groups.setdefault((point.source, point.origin), []).append(point)
    return groups


def _connect_means(axes: Axes, source: str, points: Sequence[SharePoint], look: Look) -> None:
    """Join the mean losses of a source nobody searched: straight dotted lines, because no curve was fitted."""
    shares = sorted({point.share for point in points})
    means = [float(np.mean([p.loss for p in points if p.share == share])) for share in shares]
    axes.plot(
        shares,
        means,
        linestyle=(0, (1, 1.6)),
        linewidth=1.1,
        color=look.colour,
        gid=f"means-{source}",
        zorder=2,
    )


def _draw_share_points(
    axes: Axes, label: str, origin: str, points: Sequence[SharePoint], look: Look, tips: dict[str, list[str]]
) -> None:
    gid = f"{origin}-{label}"
    searched = origin == "search"
    axes.plot(
        [p.share for p in points],
        [p.loss for p in points],
        linestyle="none",
        marker=look.marker,
        markersize=5.5,
        color=look.colour,
        markerfacecolor=light("paper") if searched else look.colour,
        markeredgewidth=1.3,
        label=f"{label}, search" if searched else label,
        gid=gid,
        zorder=4 if searched else 3,
    )
    tips[gid] = [f"{label} {percent(p.share)}: {p.loss:.4f} nats/token, run {p.run_id}" for p in points]


def _draw_optimum(axes: Axes, optimum: CellOptimum, look: Look, tips: dict[str, list[str]]) -> None:
    share, loss, low, high = np.array(optimum.curve or [(math.nan,) * 4], dtype=np.float64).T
    source = optimum.synthetic
    axes.fill_between(
        share, low, high, color=look.colour, alpha=0.15, linewidth=0, gid=f"band-{source}", zorder=1
    )
    axes.plot(share, loss, color=look.colour, gid=f"curve-{source}", zorder=2)
    best = optimum.best_share
    gid = f"optimum-{optimum.search}-{optimum.synthetic}"
    if best.low is not None and best.high is not None:
        axes.plot([best.low, best.high], [optimum.best_loss.value] * 2, color=look.colour, linewidth=4.5, alpha=0.45,
                  solid_capstyle="butt", gid=f"interval-{source}", zorder=5)  # fmt: skip
    axes.plot([best.value], [optimum.best_loss.value], marker="*", markersize=12, color=look.colour,
              markeredgecolor=light("paper"), markeredgewidth=0.8, linestyle="none", gid=gid, zorder=6)  # fmt: skip
    tips[gid] = [
        f"best share of {optimum.synthetic}: {show_interval(best, 'percent')}, search {optimum.search}"
    ]


def _share_summary(panel: CellPanel) -> str:
    if panel.optima:
        parts = [f"{o.synthetic} is best at {show_interval(o.best_share, 'percent')}" for o in panel.optima]
        return "; ".join(parts) + "."
    if not panel.points:
        return "no finished run."
    best = min(panel.points, key=lambda p: (p.loss, p.run_id))
    name = f"{best.source} at {percent(best.share)}" if best.source else "natural text alone"
    return f"the lowest single run is {name} with {best.loss:.4f} nats per token."


def draw_best_shares(optima: Sequence[CellOptimum], looks: dict[str, Look]) -> Drawing:
    """Draw the best share of every searched cell with its interval, one row each."""
    rows = list(reversed(optima))
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = open_panel(height=0.95 + 0.42 * len(rows))
        for y, optimum in enumerate(rows):
            look, best = looks[optimum.synthetic], optimum.best_share
            if best.low is not None and best.high is not None:
                axes.plot([best.low, best.high], [y, y], color=look.colour, linewidth=3, alpha=0.55)
            gid = f"best-{y}"
            axes.plot(
                [best.value],
                [y],
                marker=look.marker,
                color=look.colour,
                markersize=7,
                linestyle="none",
                gid=gid,
            )
            tips[gid] = [f"{optimum.synthetic}, {optimum.model}: {show_interval(best, 'percent')}"]
        labels = [_cell_label(optimum) for optimum in rows]
        axes.yaxis.set_major_locator(FixedLocator(range(len(rows))))
        axes.yaxis.set_major_formatter(FixedFormatter(labels))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.6, len(rows) - 0.4))
        axes.set_xlabel("best synthetic share")
        write_heading(figure, axes, "Best share by cell")
        alt = "Best share by cell: " + "; ".join(
            f"{_cell_label(optimum)}: {show_interval(optimum.best_share, 'percent')}" for optimum in optima
        )
        runs = [trial.run_id for optimum in optima for trial in optimum.trials]
        return finish_drawing(figure, "best-share-by-cell", "Best share by cell", alt, runs, tips)


def _cell_label(optimum: CellOptimum) -> str:
    return f"{optimum.synthetic} · {optimum.model} · {amount(optimum.train_tokens)}"


# --- laws along one axis ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LawCurve:
    """A fitted law along its axis."""

    x: Sequence[float]
    loss: Sequence[float]
    low: Sequence[float] | None = None
    """Lower edge of the prediction's interval, as long as `x`; None when no interval was computed."""
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class LawSeries:
    """One mixture in a panel of laws."""

    label: str
    share: float
    points: tuple[tuple[float, float, str], ...]
    """(N or D, loss, run id) of the rows fitted."""
    held_out: tuple[HeldOutPoint, ...] = ()
    curve: LawCurve | None = None


@dataclass(frozen=True)
class LawPanel:
    """L(D) or L(N) of the natural text and of the mixtures with one synthetic source."""

    name: str
    title: str
    x_label: str
    on_tokens: bool
    series: tuple[LawSeries, ...]


def draw_laws(panel: LawPanel, looks: dict[float, Look]) -> Drawing:
    """Draw losses, fitted curves with bands, and rings around points that the check fit predicted without seeing."""
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = open_panel()
        axes.set_xscale("log")
        for series in panel.series:
            _draw_law_series(axes, panel, series, looks[series.share], tips)
        label_amounts(axes, sorted({x for series in panel.series for x, _, _ in series.points}))
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel("loss, nats per token")
        write_heading(figure, axes, panel.title)
        alt = f"{panel.title}: " + "; ".join(_law_summary(series) for series in panel.series) + "."
        runs = [run_id for series in panel.series for _, _, run_id in series.points]
        parts = ("band", "curve", "points", "held-out")
        togglable = [
            Series(each.label, looks[each.share].role, tuple(f"{part}-{each.label}" for part in parts))
            for each in panel.series
        ]
        return finish_drawing(figure, panel.name, panel.title, alt, runs, tips, togglable)


def _draw_law_series(
    axes: Axes, panel: LawPanel, series: LawSeries, look: Look, tips: dict[str, list[str]]
) -> None:
    gid = f"points-{series.label}"
    if series.curve is not None:
        if series.curve.low is not None and series.curve.high is not None:
            axes.fill_between(series.curve.x, series.curve.low, series.curve.high, color=look.colour, alpha=0.14,
                              linewidth=0, gid=f"band-{series.label}", zorder=1)  # fmt: skip
        axes.plot(series.curve.x, series.curve.loss, color=look.colour, gid=f"curve-{series.label}", zorder=2)
    points = sorted(series.points)
    axes.plot([x for x, _, _ in points], [loss for _, loss, _ in points], linestyle="none", marker=look.marker,
              markersize=5, color=look.colour, label=percent(series.share), gid=gid, zorder=4)  # fmt: skip
    tips[gid] = [f"{series.label}, {amount(x)}: {loss:.4f} nats/token, run {run}" for x, loss, run in points]
    rings = [
        (place, point)
        for point in series.held_out
        if (place := point.train_tokens if panel.on_tokens else point.num_params) is not None
    ]
    if rings:
        ring = f"held-out-{series.label}"
        axes.plot([x for x, _ in rings], [point.predicted_loss for _, point in rings], linestyle="none", marker="o",
                  markersize=10.5, markerfacecolor="none", markeredgecolor=look.colour, markeredgewidth=1.2, gid=ring,
                  zorder=5)  # fmt: skip
        tips[ring] = [
            f"{series.label}: predicted {p.predicted_loss:.4f} without seeing run {p.run_id} ({p.loss:.4f}), "
            f"{signed_percentage(p.relative_error)}"
            for _, p in rings
        ]


def _law_summary(series: LawSeries) -> str:
    if not series.points:
        return f"{series.label} has no point"
    first, last = min(series.points), max(series.points)
    return (
        f"{series.label} goes from {first[1]:.3f} at {amount(first[0])} to {last[1]:.3f} at {amount(last[0])}"
    )


# --- domains ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeatMap:
    """Bits per byte by held-out domain (rows) and mixture (columns) at one (N, D)."""

    title: str
    domains: tuple[str, ...]
    mixtures: tuple[str, ...]
    bits_per_byte: tuple[tuple[float | None, ...], ...]
    run_ids: tuple[str, ...]
    """The run behind each column."""
    reference: int
    """Column the colours compare with."""


def draw_domain_heat_map(heat: HeatMap) -> Drawing:
    """Draw bits/byte as numbers; colour is the difference from the reference column of the same row."""
    values = np.array(
        [[math.nan if v is None else v for v in row] for row in heat.bits_per_byte], dtype=np.float64
    )
    difference = values - values[:, [heat.reference]]
    top = float(np.nanmax(np.abs(difference))) or 1.0
    width = max(PANEL_INCHES[0], 1.7 + 0.62 * len(heat.mixtures))
    with house_style():
        figure, axes = open_panel(width=width, height=1.25 + 0.3 * len(heat.domains))
        axes.grid(visible=False)
        for row, column in np.ndindex(*values.shape):
            _draw_heat_cell(
                axes, heat, row, column, float(values[row, column]), float(difference[row, column]) / top
            )
        axes.set(xlim=(-0.5, len(heat.mixtures) - 0.5), ylim=(len(heat.domains) - 0.5, -0.5))
        axes.xaxis.set_major_locator(FixedLocator(range(len(heat.mixtures))))
        axes.xaxis.set_major_formatter(FixedFormatter([name.replace(" ", "\n", 1) for name in heat.mixtures]))
        axes.yaxis.set_major_locator(FixedLocator(range(len(heat.domains))))
        axes.yaxis.set_major_formatter(FixedFormatter(heat.domains))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        tips = {
            f"cell-{row}-{column}": [
                f"{heat.domains[row]}, {heat.mixtures[column]}: {values[row, column]:.4f} bits/byte, "
                f"{difference[row, column]:+.4f} against {heat.mixtures[heat.reference]}, run {heat.run_ids[column]}"
            ]
            for row, column in np.ndindex(*values.shape)
            if math.isfinite(values[row, column])
        }
        write_heading(figure, axes, heat.title)
        alt = (
            f"{heat.title}. Bits per byte for {len(heat.domains)} domains and {len(heat.mixtures)} mixtures; "
        )
        better, worse = int((difference < 0).sum()), int((difference > 0).sum())
        alt += f"cells better than {heat.mixtures[heat.reference]}: {better}, worse: {worse}. "
        alt += "The numbers are in evaluations.csv."
        return finish_drawing(figure, "domain-heat-map", heat.title, alt, heat.run_ids, tips)


def _draw_heat_cell(axes: Axes, heat: HeatMap, row: int, column: int, value: float, strength: float) -> None:
    if not math.isfinite(value):
        return
    role = "better" if strength < 0 else "worse" if strength > 0 else "line"
    axes.fill_between([column - 0.47, column + 0.47], row - 0.45, row + 0.45, color=light(role), linewidth=0,
                      alpha=0.1 + 0.5 * min(1.0, abs(strength)), gid=f"cell-{row}-{column}")  # fmt: skip
    axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8,
              weight="bold" if column == heat.reference else "normal")  # fmt: skip
