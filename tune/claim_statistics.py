"""The statistics behind the paper's claims, each with an interval, and how an interval becomes a verdict.

Means and slopes have Student t intervals; speed-ups those of the laws' resamples; best shares those of the curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student

from tune.claim_data import ClaimData
from tune.laws.fitted import interval_from
from tune.laws.law import Floats
from tune.observations import NATURAL, mixture_label
from tune.optimum import fit_curve
from tune.results import Interval
from tune.speed_up import speed_ups

CONFIDENCE = 0.95
FEWEST_SHARES = 4
"""Shares a cell of the plan needs for a best share of its own."""

Verdict = tuple[Interval | None, bool | None, str]
"""Statistic, whether the claim holds (None: not testable), and the reason."""


def not_testable(reason: str) -> Verdict:
    """Return the verdict on a claim that these runs cannot test."""
    return None, None, reason


def judge(value: Interval, low: float, high: float, says: str) -> Verdict:
    """Return the verdict on a claim that a statistic lies between low and high."""
    if value.low is None and value.high is None:
        return value, None, f"{says}; there is no interval"
    bottom = -math.inf if value.low is None else value.low
    top = math.inf if value.high is None else value.high
    if low <= bottom and top <= high:
        return value, True, says
    if top < low or bottom > high:
        return value, False, says
    return value, None, f"{says}; the interval reaches both ways"


def mean_of(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return a mean with its t interval; without ends for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(value=mean)
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    reach = float(student.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Interval(value=mean, low=mean - reach, high=mean + reach, standard_error=error)


def slope_of(x: Floats, y: Floats, weights: Floats | None = None) -> Interval:
    """Return the slope of y over x by least squares, with its t interval."""
    w = np.ones_like(x) if weights is None else weights
    centred = x - np.average(x, weights=w)
    spread = float(np.sum(w * centred**2))
    slope = float(np.sum(w * centred * y) / spread)
    degrees = len(x) - 2
    if degrees < 1:
        return Interval(value=slope)
    residual = y - np.average(y, weights=w) - slope * centred
    error = math.sqrt(float(np.sum(w * residual**2)) / degrees / spread)
    reach = float(student.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    return Interval(value=slope, low=slope - reach, high=slope + reach, standard_error=error)


def speed_up(data: ClaimData, source: str, share: float) -> Interval | str:
    """Return D / (tokens the mixture needs for natural text's loss at the largest D), by the data laws; or why not."""
    natural, mixed = data.laws.find("data", NATURAL), data.laws.find("data", mixture_label(source, share))
    if natural is None or mixed is None:
        return (
            f"there is no data law of {'natural text' if natural is None else mixture_label(source, share)}"
        )
    largest = np.array([natural.record.ranges["train_tokens"][1]])
    value, samples = speed_ups(natural, mixed, largest)
    return interval_from(float(value[0]), samples[:, 0], CONFIDENCE)


def best_shares(data: ClaimData, source: str) -> list[tuple[float, float, Interval]]:
    """Return (N, D, best share) of every cell searched, and of cells of the plan with enough shares."""
    found = {(o.num_params, o.train_tokens): o.best_share for o in data.optima if o.synthetic == source}
    cells: dict[tuple[float, float], dict[float, list[float]]] = {}
    for run in data.runs:
        if run.synthetic in (None, source) or run.share == 0.0:
            cells.setdefault((run.num_params, run.train_tokens), {}).setdefault(run.share, []).append(
                run.loss
            )
    for cell, losses in cells.items():
        if cell not in found and len(losses) >= FEWEST_SHARES:
            shares = sorted(losses)
            curve = fit_curve(shares, [float(np.mean(losses[s])) for s in shares], (shares[0], shares[-1]))
            found[cell] = curve.best_share()  # type: ignore[index]  # an N of the plan is a whole number as well
    return [(n, d, share) for (n, d), share in sorted(found.items())]


def drift_of(data: ClaimData, source: str, over: Callable[[float, float], float]) -> Interval | str:
    """Return how the best share moves per factor of ten of a scale of (N, D); or why that is not known."""
    cells = best_shares(data, source)
    x = np.array([math.log10(over(n, d)) for n, d, _ in cells])
    if len(cells) < 3 or len(np.unique(x)) < 2:
        return f"{len(cells)} cells have a best share of {source}, and its move needs 3 over two scales"
    errors = np.array([max(share.standard_error or 0.3, 0.01) for *_, share in cells])
    y = np.array([share.value for *_, share in cells])
    fitted = slope_of(x, y, errors**-2.0)
    # The cells' own errors bound what three or four points can claim to know.
    centred = x - np.average(x, weights=errors**-2.0)
    own = float(np.sum(errors**-2.0 * centred**2)) ** -0.5
    error = max(own, fitted.standard_error or 0.0)
    reach = float(student.ppf((1 + CONFIDENCE) / 2, len(cells) - 2)) * error
    return Interval(
        value=fitted.value, low=fitted.value - reach, high=fitted.value + reach, standard_error=error
    )
