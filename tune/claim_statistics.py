"""The statistics behind the paper's claims, each with an interval, and how an interval becomes a verdict.

Means and slopes have Student t intervals; speed-ups those of the laws' resamples; best shares those of the curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from tune.claim_data import ClaimData
from tune.laws.fitted import FittedLaw, interval_from
from tune.laws.law import Floats
from tune.observations import NATURAL, mixture_label
from tune.optimum import fit_curve
from tune.results import Interval
from tune.speed_up import speed_ups

CONFIDENCE = 0.95
FEWEST_SHARES = 4
"""Shares a cell of the plan needs for a best share of its own."""


@dataclass(frozen=True)
class Part:
    """One statistic of a claim, and whether it lies where the claim says."""

    statistic: str
    """What was computed, and where the claim says it lies."""
    value: Interval | None
    holds: bool | None
    """None: not testable with these runs."""
    reason: str


Verdict = tuple[tuple[Part, ...], bool | None]
"""The parts of a claim, and whether it holds as a whole."""


def untested(statistic: str, reason: str) -> Part:
    """Return a part that these runs cannot test."""
    return Part(statistic, None, None, reason)


def judge(statistic: str, value: Interval, low: float, high: float, says: str) -> Part:
    """Return the part of a claim that says a statistic lies between low and high."""
    if value.low is None and value.high is None:
        return Part(statistic, value, None, f"{says}; there is no interval")
    bottom = -math.inf if value.low is None else value.low
    top = math.inf if value.high is None else value.high
    if low <= bottom and top <= high:
        return Part(statistic, value, True, says)
    if top < low or bottom > high:
        return Part(statistic, value, False, says)
    return Part(statistic, value, None, f"{says}; the interval reaches both ways")


def all_hold(*holds: bool | None) -> bool | None:
    """Return whether all of these hold: not when one does not, unknown when one is unknown."""
    return False if False in holds else None if None in holds else True


def any_holds(*holds: bool | None) -> bool | None:
    """Return whether at least one of these holds: not when none does, unknown when it hangs on one that is unknown."""
    return True if True in holds else None if None in holds else False


def of_all(*parts: Part) -> Verdict:
    """Return the verdict on a claim that holds when all its parts do."""
    return parts, all_hold(*(part.holds for part in parts))


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


def data_laws(data: ClaimData, source: str, share: float) -> tuple[FittedLaw, FittedLaw] | str:
    """Return the data laws of natural text and of a mixture; or which one is missing."""
    natural, mixed = data.laws.find("data", NATURAL), data.laws.find("data", mixture_label(source, share))
    if natural is None or mixed is None:
        return (
            f"there is no data law of {'natural text' if natural is None else mixture_label(source, share)}"
        )
    return natural, mixed


def speed_up(data: ClaimData, source: str, share: float) -> tuple[Interval, Interval] | str:
    """Return D / (tokens the mixture needs for natural text's loss after D) at the largest D, and its ratio to the same at
    the smallest D, by the data laws; or why not."""
    laws = data_laws(data, source, share)
    if isinstance(laws, str):
        return laws
    value, samples = speed_ups(*laws, np.array(laws[0].record.ranges["train_tokens"]))
    growth, grown = (_ratio(each[..., 1], each[..., 0]) for each in (value, samples))
    return interval_from(float(value[1]), samples[:, 1], CONFIDENCE), interval_from(
        float(growth), grown, CONFIDENCE
    )


def _ratio(over: Floats, under: Floats) -> Floats:
    """Return over / under, 1 where both are 0: a mixture that never gets there at either end has not moved."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((over == 0) & (under == 0), 1.0, over / under)


def best_shares(data: ClaimData, source: str) -> list[tuple[float, float, Interval]]:
    """Return (N, D, best share) of every cell searched, and of cells of the plan with enough shares."""
    if source not in data.found_shares:  # several claims ask, and a curve takes its time
        data.found_shares[source] = _best_shares(data, source)
    return data.found_shares[source]


def _best_shares(data: ClaimData, source: str) -> list[tuple[float, float, Interval]]:
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


def scale_ends(data: ClaimData, source: str) -> tuple[Interval, Interval] | str:
    """Return the best share of a source in the cell of least and of most compute; or why that is not known."""
    cells = sorted(best_shares(data, source), key=lambda cell: (cell[0] * cell[1], cell[0]))
    if len(cells) < 2 or cells[0][0] * cells[0][1] == cells[-1][0] * cells[-1][1]:
        return f"{len(cells)} cells have a best share of {source}, and small and large scale need one each"
    return cells[0][2], cells[-1][2]


def share_difference(data: ClaimData, a: str, b: str) -> tuple[Interval, int]:
    """Return the mean difference of the best shares of two sources over the cells that know both, and how many these are.

    The interval is the wider of what the cells' own errors say and what their spread says.
    """
    there = {(n, d): share for n, d, share in best_shares(data, b)}
    pairs = [(share, there[n, d]) for n, d, share in best_shares(data, a) if (n, d) in there]
    if not pairs:
        return Interval(value=math.nan), 0
    spread = mean_of([one.value - two.value for one, two in pairs])
    own = math.sqrt(sum(_error(one) ** 2 + _error(two) ** 2 for one, two in pairs)) / len(pairs)
    reach = float(norm.ppf((1 + CONFIDENCE) / 2)) * own
    if spread.high is not None:
        reach = max(reach, spread.high - spread.value)
    value = spread.value
    return Interval(value=value, low=value - reach, high=value + reach, standard_error=own), len(pairs)


UNKNOWN_ERROR = 0.3
"""Standard error of a best share that came without one: as good as anywhere."""


def _error(share: Interval) -> float:
    return max(share.standard_error or UNKNOWN_ERROR, 0.01)


def drift_of(data: ClaimData, source: str, over: Callable[[float, float], float]) -> Interval | str:
    """Return how the best share moves per factor of ten of a scale of (N, D); or why that is not known."""
    cells = best_shares(data, source)
    x = np.array([math.log10(over(n, d)) for n, d, _ in cells])
    if len(cells) < 3 or len(np.unique(x)) < 2:
        return f"{len(cells)} cells have a best share of {source}, and its move needs 3 over two scales"
    errors = np.array([_error(share) for *_, share in cells])
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
