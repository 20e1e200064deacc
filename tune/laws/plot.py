"""A fit as a matplotlib figure for a notebook; the job's own figures, in the report's style, are `tune.figures`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synth.errors import UserError
from synth.percentage import percentage
from tune.laws.fitted import FittedLaw
from tune.laws.law import Floats
from tune.laws.rows import column

CURVE_POINTS = 200
BEYOND = 2.0
"""A curve is drawn to this many times its largest value, so that one sees where it is going."""
LABELS = {"train_tokens": "training tokens D", "num_params": "parameters N"}


def plot_fit(fitted: FittedLaw) -> Figure:
    """Return two panels: the curve over its one axis (else predicted against measured), and the residuals."""
    if fitted.rows is None:
        raise UserError(
            "this fit was read without its rows, which a plot needs: fit it again, or see the figures beside fit.json"
        )
    rows = {name: column(fitted.rows, name) for name in (*fitted.law.columns_needed, "loss")}
    predicted, _, _ = fitted.curve(rows)
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    axis = fitted.law.inputs[0] if len(fitted.law.columns_needed) == 1 else None
    if axis is None:
        _draw_agreement(left, rows["loss"], predicted)
    else:
        _draw_curve(left, fitted, rows, axis)
    along = axis or ("train_tokens" if "train_tokens" in rows else None)
    right.axhline(0.0, color="0.7", linewidth=0.8)
    right.plot(
        rows[along] if along else predicted, 100.0 * (predicted / rows["loss"] - 1.0), "o", markersize=4
    )
    right.set_ylabel("predicted / measured - 1, %")
    right.set_xlabel(LABELS.get(along or "", "predicted loss, nats per token"))
    if along:
        right.set_xscale("log")
    figure.suptitle(f"{fitted.law.name} law, {fitted.record.group}, {fitted.record.objective}")
    return figure


def _draw_curve(axes: Axes, fitted: FittedLaw, rows: Mapping[str, Floats], axis: str) -> None:
    grid = np.geomspace(rows[axis].min(), BEYOND * rows[axis].max(), CURVE_POINTS)
    loss, low, high = fitted.curve({axis: grid})
    axes.plot(grid, loss)
    if low is not None and high is not None:
        axes.fill_between(
            grid, low, high, alpha=0.2, label=f"{percentage(fitted.record.confidence)} interval of the curve"
        )
        axes.legend()
    axes.plot(rows[axis], rows["loss"], "o", markersize=4)
    axes.set_xscale("log")
    axes.set_xlabel(LABELS.get(axis, axis))
    axes.set_ylabel("loss, nats per token")


def _draw_agreement(axes: Axes, measured: Floats, predicted: Floats) -> None:
    ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
    axes.plot(ends, ends, color="0.7", linewidth=0.8)
    axes.plot(measured, predicted, "o", markersize=4)
    axes.set_xlabel("measured loss, nats per token")
    axes.set_ylabel("predicted loss, nats per token")
