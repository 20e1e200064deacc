"""isoFLOP analysis: at each compute budget the size with the lowest loss, and how it grows with compute, N* ~ C^a.

No law of the loss is assumed. Two ways to find the minimum of loss against log N at one budget, both with draws of
the losses from their noise:

`parabola`  a parabola in log N through the losses of the budget: approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556).
            Right where the sizes lie close around the optimum; biased where they reach far to one side.
`akima`     a local interpolation (Akima 1970), and N* the median of the draws' minima: Porian et al. 2024
            (arXiv 2406.19146), draw by draw as in their code, so that with their seed and their noise their exponents
            come out to the last digit. Needs a known noise, and many sizes a budget.

A budget whose minimum lies at its smallest or largest size says nothing of where the optimum is, and is left out with
that reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from synth.errors import UserError
from tune.laws.fitted import interval_from
from tune.laws.law import Floats
from tune.results import Interval

Method = Literal["parabola", "akima"]
LEAST_SIZES = {"parabola": 4, "akima": 3}
POINTS_PER_GAP = 25
"""Grid points of the interpolation between two sizes."""
SAME_BUDGET = 0.05
"""Budgets within this relative difference are one."""
INSIDE_FRACTION = 0.5
"""A budget counts when at least this part of the draws has its minimum inside."""


@dataclass(frozen=True)
class IsoflopBudget:
    """One compute budget."""

    compute_flops: float
    num_params: Interval | None
    """Best size, None when it is not inside the sizes trained."""
    loss: float | None
    """Lowest loss of the curve, nats per token."""
    reason: str | None = None
    """Why it has no optimum."""


@dataclass(frozen=True)
class Isoflop:
    """All budgets, and N* = coefficient * C^exponent through their optima."""

    method: Method
    noise_nats: float
    """Standard deviation of a loss that the draws used, nats per token."""
    budgets: tuple[IsoflopBudget, ...]
    exponent: Interval
    """a in N* ~ C^a."""
    coefficient: float
    tokens_exponent: Interval
    """b in D* ~ C^b: 1 - a for `parabola`, which finds one minimum; found apart, with draws of its own, for `akima`."""

    def __str__(self) -> str:
        used = [each for each in self.budgets if each.num_params is not None]
        ends = "" if self.exponent.low is None else f" ({self.exponent.low:.4f} to {self.exponent.high:.4f})"
        lines = [
            f"isoFLOP, {self.method}: N* ~ C^{self.exponent.value:.4f}{ends}, {len(used)} of {len(self.budgets)} budgets"
        ]
        for each in self.budgets:
            said = (
                each.reason
                if each.num_params is None
                else f"N* = {each.num_params.value:.4g}, loss {each.loss:.4f}"
            )
            lines.append(f"  C = {each.compute_flops:.4g}: {said}")
        return "\n".join(lines)


def isoflop(
    num_params: ArrayLike,
    compute_flops: ArrayLike,
    loss: ArrayLike,
    *,
    method: Method = "parabola",
    noise_nats: float | None = None,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int | np.random.RandomState = 42,
) -> Isoflop:
    """Return the isoFLOP analysis of runs [n] of a few compute budgets and several sizes at each; D is C / (6 N).

    `noise_nats` is the run-to-run standard deviation of a loss, nats per token; without it, `parabola` takes it from
    its residuals and `akima`, which has none, asks for it. A random state in place of a seed is drawn on from where
    it stands: analyses that share one, as the published ones do, depend on their order. Raises UserError for values
    that are not positive, or fewer than two budgets with an optimum inside.
    """
    n, c, y = (np.asarray(values, dtype=np.float64) for values in (num_params, compute_flops, loss))
    for name, values in (("num_params", n), ("compute_flops", c), ("loss", y)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise UserError(
                f"{name} of row {int(np.argmin(np.isfinite(values) & (values > 0))) + 1} is not a positive number"
            )
    groups = _by_budget(n, c, y)
    if noise_nats is None:
        noise_nats = _parabola_noise(groups, method)
    # The legacy generator, whose numbers are promised never to change, and which the published analyses drew from.
    random = seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)
    found, of_tokens = [], []
    for compute, sizes, losses in groups:
        found.append(_budget(compute, sizes, losses, method, noise_nats, draws, confidence, random))
        if method == "akima" and len(sizes) >= LEAST_SIZES[method]:
            tokens = compute / (6.0 * sizes[::-1])
            of_tokens.append(
                _budget(compute, tokens, losses[::-1], method, noise_nats, draws, confidence, random)
            )
    exponent, coefficient = _growth(found, confidence)
    if method == "akima":
        tokens_exponent, _ = _growth(of_tokens, confidence)
    else:
        tokens_exponent = _one_less(exponent)
    return Isoflop(
        method, noise_nats, tuple(each for each, _ in found), exponent, coefficient, tokens_exponent
    )


def _growth(
    found: Sequence[tuple[IsoflopBudget, Floats | None]], confidence: float
) -> tuple[Interval, float]:
    """Return exponent and coefficient of the optima's growth with compute: a least-squares line through the logs."""
    usable = [(each, samples) for each, samples in found if each.num_params and samples is not None]
    if len(usable) < 2:
        reasons = "; ".join(
            f"C = {each.compute_flops:.3g}: {each.reason}" for each, _ in found if each.reason
        )
        raise UserError(
            f"an isoFLOP analysis needs two budgets with an optimum inside their sizes ({reasons})"
        )
    log_c = np.log([each.compute_flops for each, _ in usable])
    log_n = np.log([each.num_params.value for each, _ in usable if each.num_params])
    slope, start = np.polyfit(log_c, log_n, 1)
    slopes = _slopes(log_c, np.stack([samples for _, samples in usable]))
    return interval_from(float(slope), slopes[np.isfinite(slopes)], confidence), float(np.exp(start))


def _one_less(exponent: Interval) -> Interval:
    low, high = exponent.low, exponent.high
    return Interval(
        value=1.0 - exponent.value,
        low=None if high is None else 1.0 - high,
        high=None if low is None else 1.0 - low,
        standard_error=exponent.standard_error,
    )


def _by_budget(n: Floats, c: Floats, y: Floats) -> list[tuple[float, Floats, Floats]]:
    """Return (budget, sizes ascending, lowest loss of each size)."""
    order = np.argsort(c, kind="stable")
    starts = np.flatnonzero(np.diff(np.log(c[order]), prepend=-np.inf) > np.log1p(SAME_BUDGET))
    groups = []
    for members in np.split(order, starts[1:]):
        sizes, place = np.unique(n[members], return_inverse=True)
        lowest = np.full(len(sizes), np.inf)
        np.minimum.at(lowest, place, y[members])
        groups.append((float(np.exp(np.log(c[members]).mean())), sizes, lowest))
    return groups


def _parabola_noise(groups: Sequence[tuple[float, Floats, Floats]], method: Method) -> float:
    if method == "akima":
        raise UserError(
            "method = 'akima' passes through every loss, so it needs noise_nats: repeat a run with another seed to know it"
        )
    squares, degrees = 0.0, 0
    for _, sizes, losses in groups:
        if len(sizes) >= LEAST_SIZES["parabola"]:
            squares += float(np.sum(_residuals(np.log(sizes), losses) ** 2))
            degrees += len(sizes) - 3
    if not degrees:
        raise UserError(
            "no budget has four sizes or more, so a parabola leaves no residual to take the noise from: give noise_nats"
        )
    return float(np.sqrt(squares / degrees))


def _residuals(x: Floats, y: Floats) -> Floats:
    return np.asarray(np.polyval(np.polyfit(x, y, 2), x) - y)


def _budget(
    compute: float,
    sizes: Floats,
    losses: Floats,
    method: Method,
    noise: float,
    draws: int,
    confidence: float,
    random: np.random.RandomState,
) -> tuple[IsoflopBudget, Floats | None]:
    """Return one budget's optimum and the log N* of its draws [draws], nan where a draw has none inside."""
    if len(sizes) < LEAST_SIZES[method]:
        return IsoflopBudget(
            compute, None, None, f"{len(sizes)} sizes, and {method} needs {LEAST_SIZES[method]}"
        ), None
    x = np.log(sizes)
    drawn = losses[:, None] + noise * random.normal(size=(draws, len(sizes))).T
    log_n, lowest = _minima(x, losses[:, None], method)
    samples, _ = _minima(x, drawn, method)
    inside = np.isfinite(samples)
    if not np.isfinite(log_n[0]) or inside.mean() < INSIDE_FRACTION:
        where = "smallest" if losses[0] <= losses[-1] else "largest"
        return IsoflopBudget(
            compute, None, None, f"the loss is lowest at the {where} size, so the optimum is not inside"
        ), None
    sampled = np.exp(samples[inside])
    value = float(np.median(sampled)) if method == "akima" else float(np.exp(log_n[0]))
    best = interval_from(value, sampled, confidence)
    return IsoflopBudget(compute, best, float(lowest[0])), samples


def _minima(x: Floats, y: Floats, method: Method) -> tuple[Floats, Floats]:
    """Return log N* and the loss there for each column of y [sizes, draws]; nan where it is not inside."""
    if method == "parabola":
        a, b, c = np.polyfit(x - x.mean(), y, 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            place = np.where(a > 0, -b / (2.0 * a), np.nan)
        place = np.where((place > x[0] - x.mean()) & (place < x[-1] - x.mean()), place, np.nan)
        return place + x.mean(), c - b**2 / (4.0 * np.where(a > 0, a, np.nan))
    from scipy.interpolate import Akima1DInterpolator  # loaded here: slow to load, and parabolas need none

    grid = np.linspace(x[0], x[-1], (len(x) - 1) * POINTS_PER_GAP)
    curves = np.asarray(Akima1DInterpolator(x, np.log(y), axis=0)(grid))
    lowest = curves.argmin(axis=0)
    inside = (lowest > 0) & (lowest < len(grid) - 1)
    return np.where(inside, grid[lowest], np.nan), np.exp(curves.min(axis=0))


def _slopes(log_c: Floats, log_n: Floats) -> Floats:
    """Return the slope of each draw [draws] over the budgets at which it has an optimum, log_n [budget, draws]."""
    there = np.isfinite(log_n)
    weight = there / np.maximum(there.sum(axis=0), 1)
    filled = np.where(there, log_n, 0.0)
    mean_c, mean_n = (weight * log_c[:, None]).sum(axis=0), (weight * filled).sum(axis=0)
    from_mean = np.where(there, log_c[:, None] - mean_c, 0.0)
    spread = (from_mean**2).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(there.sum(axis=0) >= 2, (from_mean * (filled - mean_n)).sum(axis=0) / spread, np.nan)
