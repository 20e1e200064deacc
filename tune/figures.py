"""The figures beside a fit: one panel per axis with points, curves and bands; residuals; predicted against measured.

Drawn in the report's house style, so that a figure of a fit and a figure of the report look alike; the bytes depend
on the fit alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from upath import UPath

from synth.percentage import percentage, signed_percentage
from synth.storage import write_text_atomic
from tune.laws.fitted import FittedLaw
from tune.laws.law import Floats
from tune.observations import NATURAL, Observation
from tune.report.format import amount, percent
from tune.report.svg import Drawing, finish_drawing, house_style, light

ROLES = (
    "share-1",
    "source-1",
    "share-3",
    "source-2",
    "share-5",
    "source-3",
    "share-2",
    "source-4",
    "share-4",
)
MARKERS = ("s", "D", "^", "v", "P", "X", "p", "h", "<", ">")
MANY_POINTS = 40
"""Above this many points, markers shrink so that they do not hide one another."""
CURVE_POINTS = 120
AXIS_LABELS = {"train_tokens": "training tokens D", "num_params": "non-embedding parameters N"}


@dataclass(frozen=True)
class Style:
    """How one group is drawn in every figure of a fit."""

    colour: str
    marker: str


def styles_of(groups: Sequence[str]) -> dict[str, Style]:
    """Give every group its colour and marker: natural text (or the only group) is grey, the others by order."""
    mixed = [group for group in groups if group != NATURAL and len(groups) > 1]
    styles = {group: Style(light("natural"), "o") for group in groups if group not in mixed}
    for i, group in enumerate(mixed):
        styles[group] = Style(light(ROLES[i % len(ROLES)]), MARKERS[i % len(MARKERS)])
    return styles


def write_figures(directory: UPath, fits: Sequence[FittedLaw], rows: Mapping[str, Observation]) -> list[str]:
    """Write the figures that these fits allow into the directory; `rows` are the observations by row name.

    Returns the file names.
    """
    styles = styles_of(list(dict.fromkeys(fitted.record.group for fitted in fits)))
    drawings = []
    for law, axis in (("data", "train_tokens"), ("model", "num_params")):
        chosen = [fitted for fitted in fits if fitted.record.law == law]
        if chosen:
            drawings.append(draw_axis(f"{law}-law", axis, chosen, rows, styles))
    joint = [fitted for fitted in fits if fitted.record.axis in ("both", "shares")]
    drawings += [draw_joint(law, fitted, rows, styles) for law, fitted in _by_law(joint).items()]
    drawings.append(draw_residuals(fits, rows, styles))
    for drawing in drawings:
        write_text_atomic(directory / f"{drawing.name}.svg", drawing.file_svg)
    return [f"{drawing.name}.svg" for drawing in drawings]


def draw_axis(
    name: str,
    axis: str,
    fits: Sequence[FittedLaw],
    rows: Mapping[str, Observation],
    styles: Mapping[str, Style],
) -> Drawing:
    """Draw a one-axis law of every group: runs, curve, band of the curve, and rings where the hold-out fit predicted."""
    fixed = fits[0].record.fixed
    title = f"Loss against {AXIS_LABELS[axis]}"
    title += "".join(f", {AXIS_LABELS[key].split()[-1]} = {amount(value)}" for key, value in fixed.items())
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = _panel(title)
        for number, fitted in enumerate(fits):
            tips |= _draw_group(axes, axis, fitted, rows, styles[fitted.record.group], number)
        _log_axis(axes, AXIS_LABELS[axis])
        axes.set_ylabel("loss, nats per token")
        _legend(axes)
        alt = f"{title}: " + "; ".join(_axis_summary(fitted) for fitted in fits) + "."
        return finish_drawing(figure, name, title, alt, _runs(fits), tips)


def _draw_group(
    axes: Axes, axis: str, fitted: FittedLaw, rows: Mapping[str, Observation], style: Style, number: int
) -> dict[str, list[str]]:
    """Draw one group and return its tooltips."""
    used = [rows[name] for name in fitted.record.rows_used]
    x = np.array([row.value(axis) for row in used], dtype=np.float64)
    grid = np.geomspace(x.min(), x.max(), CURVE_POINTS)
    loss, low, high = fitted.curve({axis: grid})
    measured = [row.loss for row in used]
    if low is not None and high is not None:
        floor, top = min(measured) * 0.9, max(measured) * 1.1  # a band without end would flatten every curve
        axes.fill_between(grid, np.clip(low, floor, top), np.clip(high, floor, top), color=style.colour, alpha=0.12,
                          linewidth=0, zorder=1)  # fmt: skip
    axes.plot(grid, loss, color=style.colour, zorder=2)
    gid, ring = f"points-{number}", f"held-out-{number}"
    axes.plot(x, measured, linestyle="none", marker=style.marker, markersize=_size(len(used)), color=style.colour,
              label=fitted.record.group, gid=gid, zorder=4)  # fmt: skip
    tips = {
        gid: [_tip(fitted, row, value) for row, value in zip(used, fitted.curve({axis: x})[0], strict=True)]
    }
    if fitted.record.hold_out is not None:
        points = fitted.record.hold_out.points
        axes.plot([getattr(point, axis) for point in points], [point.predicted_loss for point in points],
                  linestyle="none", marker="o", markersize=10, markerfacecolor="none", markeredgecolor=style.colour,
                  gid=ring, zorder=5)  # fmt: skip
        tips[ring] = [
            f"{fitted.record.group}: predicted {point.predicted_loss:.4f} without seeing {point.run_id} ({point.loss:.4f}), "
            f"{signed_percentage(point.relative_error)}"
            for point in points
        ]
    return tips


def draw_joint(
    law: str, fits: Sequence[FittedLaw], rows: Mapping[str, Observation], styles: Mapping[str, Style]
) -> Drawing:
    """Draw measured against predicted loss of a joint law: a perfect fit lies on the line."""
    title = f"Measured against predicted loss, {law} law"
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = _panel(title)
        for number, fitted in enumerate(fits):
            measured, predicted, used = _fitted_points(fitted, rows)
            style, gid = styles[fitted.record.group], f"points-{number}"
            axes.plot(predicted, measured, linestyle="none", marker=style.marker, markersize=_size(len(measured)),
                      color=style.colour, label=fitted.record.group, gid=gid)  # fmt: skip
            tips[gid] = [_tip(fitted, row, value) for row, value in zip(used, predicted, strict=True)]
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color=light("muted"), linewidth=0.9, zorder=1)
        axes.set(xlim=(low, high))
        axes.set_xlabel("predicted loss, nats per token")
        axes.set_ylabel("measured loss, nats per token")
        _legend(axes)
        alt = f"{title}: " + "; ".join(_joint_summary(fitted, rows) for fitted in fits) + "."
        return finish_drawing(figure, f"{law.replace('_', '-')}-law", title, alt, _runs(fits), tips)


def draw_residuals(
    fits: Sequence[FittedLaw], rows: Mapping[str, Observation], styles: Mapping[str, Style]
) -> Drawing:
    """Draw predicted / measured - 1 of every fit, one panel per law."""
    laws = _by_law(fits)
    tips: dict[str, list[str]] = {}
    with house_style():
        figure = Figure(figsize=(4.5, 0.6 + 2.0 * len(laws)), layout="constrained")
        for number, (law, chosen) in enumerate(laws.items()):
            axes = figure.add_subplot(len(laws), 1, number + 1)
            axes.set_title(f"{law} law: predicted / measured - 1", loc="left", pad=6)
            tips |= _draw_law_residuals(axes, chosen, rows, styles)
            if number == 0:
                _legend(axes)
        summaries = [f"{fitted.record.law} law, {_joint_summary(fitted, rows)}" for fitted in fits]
        alt = f"Residuals, predicted / measured - 1: {'; '.join(summaries)}."
        return finish_drawing(figure, "residuals", "Residuals", alt, _runs(fits), tips)


def _draw_law_residuals(
    axes: Axes, fits: Sequence[FittedLaw], rows: Mapping[str, Observation], styles: Mapping[str, Style]
) -> dict[str, list[str]]:
    """Draw the residuals of one law and return their tooltips."""
    law = fits[0].law
    axis = next((name for name in ("train_tokens", "num_params") if name in law.inputs), None)
    tips: dict[str, list[str]] = {}
    axes.axhline(0.0, color=light("muted"), linewidth=0.9)
    for index, fitted in enumerate(fits):
        measured, predicted, used = _fitted_points(fitted, rows)
        style, gid = styles[fitted.record.group], f"residuals-{law.name}-{index}"
        x = predicted if axis is None else np.array([row.value(axis) for row in used], dtype=np.float64)
        axes.plot(x, predicted / measured - 1.0, linestyle="none", marker=style.marker, markersize=_size(len(used)),
                  color=style.colour, label=fitted.record.group, gid=gid)  # fmt: skip
        tips[gid] = [_tip(fitted, row, value) for row, value in zip(used, predicted, strict=True)]
    if axis is None:
        axes.set_xlabel("predicted loss, nats per token")
    else:
        _log_axis(axes, AXIS_LABELS[axis])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed_percentage(value) if value else "0"))
    return tips


# --- shared ----------------------------------------------------------------------------------------------------


def _tip(fitted: FittedLaw, row: Observation, predicted: float) -> str:
    size = "".join(
        f", {amount(value)} {unit}"
        for value, unit in ((row.num_params, "parameters"), (row.train_tokens, "tokens"))
        if value
    )
    return f"{fitted.record.group}{size}: {row.loss:.4f} nats/token, law {predicted:.4f}, {row.row}"


def _runs(fits: Sequence[FittedLaw]) -> list[str]:
    return list(dict.fromkeys(name for fitted in fits for name in fitted.record.rows_used))


def _by_law(fits: Sequence[FittedLaw]) -> dict[str, list[FittedLaw]]:
    laws: dict[str, list[FittedLaw]] = {}
    for fitted in fits:
        laws.setdefault(fitted.record.law, []).append(fitted)
    return laws


def _fitted_points(
    fitted: FittedLaw, rows: Mapping[str, Observation]
) -> tuple[Floats, Floats, list[Observation]]:
    used = [rows[name] for name in fitted.record.rows_used]
    inputs = {
        name: np.array([row.value(name) for row in used], dtype=np.float64)
        for name in fitted.law.columns_needed
    }
    return np.array([row.loss for row in used]), fitted.curve(inputs)[0], used


def _axis_summary(fitted: FittedLaw) -> str:
    held = fitted.record.hold_out
    error = (
        ""
        if held is None
        else f", largest scale predicted within {percentage(held.mean_absolute_relative_error, 2)}"
    )
    parameters = ", ".join(
        f"{name} = {interval.value:.4g}" for name, interval in fitted.record.parameters.items()
    )
    return f"{fitted.record.group} has {parameters}{error}"


def _joint_summary(fitted: FittedLaw, rows: Mapping[str, Observation]) -> str:
    measured, predicted, _ = _fitted_points(fitted, rows)
    error = float(np.mean(np.abs(predicted / measured - 1.0)))
    return f"{fitted.record.group}: mean absolute residual {percent(error) if error >= 0.001 else percentage(error, 2)}"


def _panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", pad=8)
    return figure, axes


def _log_axis(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high < 100.0 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def _legend(axes: Axes) -> None:
    """Put the groups above the panel, where no point can lie under them."""
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.get_figure()
    if len(labels) > 1 and isinstance(figure, Figure):
        figure.legend(handles, labels, loc="outside upper left", ncols=4, handlelength=1.0, columnspacing=1.0)


def _size(points: int) -> float:
    return 5.0 if points <= MANY_POINTS else 3.0
