"""Compute-optimal training by a law: which N and D to choose for a compute budget C = 6 N D, with intervals.

Found numerically on a fine grid of N at fixed C (D = C / (6 N)) for the fit and for each of its resamples, so it holds
for any law in N and D. For `chinchilla` the exponents are those of Hoffmann et al. 2022 (arXiv 2203.15556), equation 4:
N* ~ C^(beta / (alpha + beta)), D* ~ C^(alpha / (alpha + beta)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from synth.errors import UserError
from tune.laws.fitted import FittedLaw, interval_from
from tune.laws.law import Floats
from tune.results import Frontier, FrontierPoint, Interval

GRID_POINTS = 600
DECADES = 9.0
"""Sizes looked at: so many factors of ten below and above the square root of C / 6."""
TOGETHER = 100
"""Resamples evaluated at once."""
BUDGETS_BEYOND = (1.0, 10.0, 100.0, 1000.0)
"""Budgets a fit's record shows, as multiples of its largest run's."""


def compute_optimal(fitted: FittedLaw, compute_flops: Sequence[float], **inputs: float) -> Frontier:
    """Return the frontier of a joint law at these budgets, FLOP; `inputs` are its further inputs, such as `share`.

    An optimum that does not lie inside DECADES of the middle, or a resample's, counts as unbounded. Raises UserError for a law that does not know both N and D, or lacks an input.
    """
    law = fitted.law
    if not {"num_params", "train_tokens"} <= set(law.inputs):
        raise UserError(
            f"the {law.name} law does not know both N and D, so it has no compute-optimal frontier"
        )
    missing = [name for name in law.columns_needed if name not in ("num_params", "train_tokens", *inputs)]
    if missing:
        raise UserError(f"the {law.name} law needs {missing[0]} for a compute-optimal frontier")
    budgets = np.asarray(compute_flops, dtype=np.float64)
    values = np.array([[fitted.parameters[name] for name in law.names]])
    best, found = (_optima(fitted, parameters, budgets, inputs) for parameters in (values, fitted.samples))
    points = [_point(fitted, float(c), best[:, :, i], found[:, :, i]) for i, c in enumerate(budgets)]
    n_exponent = (
        _interval(fitted, _slope(np.log(budgets), best[0])[0], _slope(np.log(budgets), found[0]))
        if len(budgets) > 1
        else None
    )
    d_exponent = (
        None
        if n_exponent is None
        else Interval(
            value=1.0 - n_exponent.value,
            low=None if n_exponent.high is None else 1.0 - n_exponent.high,
            high=None if n_exponent.low is None else 1.0 - n_exponent.low,
            standard_error=n_exponent.standard_error,
        )
    )
    return Frontier(points=tuple(points), num_params_exponent=n_exponent, train_tokens_exponent=d_exponent)


def frontier_of(fitted: FittedLaw, rows: Mapping[str, ArrayLike]) -> Frontier | None:
    """Return the frontier of a law in N and D alone, from the largest run's budget on; None for other laws."""
    if set(fitted.law.columns_needed) != {"num_params", "train_tokens"}:
        return None
    n, d = (np.asarray(rows[name], dtype=np.float64) for name in ("num_params", "train_tokens"))
    largest = float((6.0 * n * d).max())
    return compute_optimal(fitted, [times * largest for times in BUDGETS_BEYOND])


def _optima(fitted: FittedLaw, parameters: Floats, budgets: Floats, inputs: Mapping[str, float]) -> Floats:
    """Return log N* and log L* of each parameter vector [S, p] at each budget, [2, S, C]; nan at an end of the grid."""
    law = fitted.law
    found = np.full((2, len(parameters), len(budgets)), np.nan)
    steps = np.linspace(-1.0, 1.0, GRID_POINTS) * DECADES * np.log(10.0)
    for i, budget in enumerate(budgets):
        log_n = 0.5 * np.log(budget / 6.0) + steps
        rows = {"num_params": np.exp(log_n), "train_tokens": budget / 6.0 / np.exp(log_n)}
        rows |= {name: np.full(GRID_POINTS, value) for name, value in inputs.items()}
        bound = law.bind(law.columns(rows))
        for first in range(0, len(parameters), TOGETHER):
            part = slice(first, first + TOGETHER)
            losses = bound.log_prediction(law.to_theta(parameters[part]))
            found[:, part, i] = _vertex(log_n, losses)
    return found


def _vertex(x: Floats, y: Floats) -> Floats:
    """Return place and value of the minimum of each curve y [S, G], by a parabola through its lowest point."""
    lowest = y.argmin(axis=1)
    inside = (lowest > 0) & (lowest < len(x) - 1)
    i = np.clip(lowest, 1, len(x) - 2)
    rows = np.arange(len(y))
    left, middle, right = y[rows, i - 1], y[rows, i], y[rows, i + 1]
    bend = left - 2.0 * middle + right
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.where(bend > 0, 0.5 * (left - right) / bend, 0.0)
    place = x[i] + offset * (x[1] - x[0])
    value = middle - 0.25 * (left - right) * offset
    return np.where(inside, np.stack([place, value]), np.nan)


def _slope(log_c: Floats, log_n: Floats) -> Floats:
    centred = log_c - log_c.mean()
    return np.asarray(log_n @ centred / (centred @ centred))


def _point(fitted: FittedLaw, compute: float, best: Floats, samples: Floats) -> FrontierPoint:
    log_n, log_loss = best[:, 0]
    log_d, log_ds = np.log(compute / 6.0) - log_n, np.log(compute / 6.0) - samples[0]
    with np.errstate(over="ignore"):
        return FrontierPoint(
            compute_flops=compute,
            num_params=_interval(fitted, np.exp(log_n), np.exp(samples[0])),
            train_tokens=_interval(fitted, np.exp(log_d), np.exp(log_ds)),
            tokens_per_param=_interval(fitted, np.exp(log_d - log_n), np.exp(log_ds - samples[0])),
            loss=_interval(fitted, np.exp(log_loss), np.exp(samples[1])),
        )


def _interval(fitted: FittedLaw, value: float, samples: Floats) -> Interval | None:
    """Return an interval of the resamples; None when the fit itself has no optimum inside.

    A resample without an optimum inside is as extreme as any, on either side, so ends are taken as if half of these
    lay below and half above.
    """
    if not np.isfinite(value):
        return None
    lost = int(np.isnan(samples).sum())
    inside = samples[np.isfinite(samples)]
    padded = np.concatenate([inside, np.full(lost // 2, -np.inf), np.full(lost - lost // 2, np.inf)])
    return interval_from(float(value), padded if lost else inside, fitted.record.confidence)
