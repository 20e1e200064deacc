"""The best learning rate from the losses of a few: a parabola in the logarithm of the rate, with an interval. No torch.

Near its minimum the loss is smooth in the logarithm of the rate, so a parabola through the five rates around the lowest
loss finds the minimum between them. Seeds shift a whole curve far more than they bend it, so each has a level of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from synth.percentage import percentage
from train.rates import RateTrial

Floats = NDArray[np.float64]

REACH = 2
"""Rates on either side of the lowest loss that the parabola goes through."""

CLOSE_FRACTION = 0.005
"""A rate whose loss is within this fraction of the lowest is close to the best."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RateFit:
    """The best rate of one size; fields as in `train.rates.BestRate`."""

    learning_rate: float
    low: float | None
    high: float | None
    loss_nats_per_token: float
    close_low: float
    close_high: float
    edge: Literal["lowest", "highest"] | None
    method: str


def fit_best_rate(trials: Sequence[RateTrial]) -> RateFit | None:
    """Return the best rate, None when no rate was trained to the end with every seed.

    A rate that diverged with any seed bounds the best from above; one that failed for another reason says nothing.
    """
    losses = losses_of(trials)
    if not losses:
        return None
    rates = list(losses)
    best = _lowest(losses)
    place = rates.index(best)
    edge = edge_of(trials)
    close = _close(rates, losses, place)
    for reach in (REACH, 1):
        window = rates[max(0, place - reach) : place + reach + 1]
        parabola = _parabola(window, losses) if len(window) >= 3 else None
        if edge is None and parabola is not None and _between(parabola.rate, rates, place):
            low, high, how = parabola.interval(CONFIDENCE)
            method = f"minimum of a parabola in ln(rate) through {len(window)} rates; {how}"
            return RateFit(parabola.rate, low, high, parabola.loss, *close, None, method)
    why = (
        f"it is the {edge} one tried"
        if edge
        else "no parabola through the losses around it has its minimum there"
    )
    method = f"the rate with the lowest loss, without an interval, because {why}"
    return RateFit(best, None, None, float(np.mean(losses[best])), *close, edge, method)


def edge_of(trials: Sequence[RateTrial]) -> Literal["lowest", "highest"] | None:
    """Return the end of the rates that the lowest loss lies at; None when it is enclosed, or there is no loss.

    A rate above it that diverged encloses it as well as one with a higher loss.
    """
    losses = losses_of(trials)
    if not losses:
        return None
    best = _lowest(losses)
    if best == min(losses):
        return "lowest"
    diverged = [each.learning_rate for each in trials if each.status == "diverged"]
    return "highest" if best == max([*losses, *diverged]) else None


def losses_of(trials: Sequence[RateTrial]) -> dict[float, Floats]:
    """Return rate -> losses by ascending seed, [S], of the rates that every seed completed, lowest rate first."""
    found: dict[float, list[float | None]] = {}
    for trial in sorted(trials, key=lambda each: (each.learning_rate, each.seed)):
        found.setdefault(trial.learning_rate, []).append(trial.loss_nats_per_token)
    return {rate: np.array(losses) for rate, losses in found.items() if None not in losses}


def _lowest(losses: dict[float, Floats]) -> float:
    return min(losses, key=lambda rate: (losses[rate].mean(), rate))


def _close(rates: Sequence[float], losses: dict[float, Floats], place: int) -> tuple[float, float]:
    """Return the ends of the unbroken stretch of rates around the best whose losses are close to it."""
    limit = losses[rates[place]].mean() * (1 + CLOSE_FRACTION)
    low = high = place
    while low > 0 and losses[rates[low - 1]].mean() <= limit:
        low -= 1
    while high + 1 < len(rates) and losses[rates[high + 1]].mean() <= limit:
        high += 1
    return rates[low], rates[high]


def _between(rate: float, rates: Sequence[float], place: int) -> bool:
    """Return whether a rate lies between the neighbours of the best; never above the highest that was trained."""
    return rates[max(0, place - 1)] <= rate <= rates[min(len(rates) - 1, place + 1)]


@dataclass(frozen=True)
class _Parabola:
    """loss = level of the seed + slope x + curvature x^2, with x = ln(rate / centre); curvature above 0."""

    centre: float
    slope: float
    curvature: float
    level: float
    """Mean level of the seeds."""
    covariance: Floats
    """Of (slope, curvature), [2, 2]."""
    degrees_of_freedom: int

    @property
    def rate(self) -> float:
        return float(self.centre * np.exp(-self.slope / (2 * self.curvature)))

    @property
    def loss(self) -> float:
        return self.level - self.slope**2 / (4 * self.curvature)

    def interval(self, confidence: float) -> tuple[float | None, float | None, str]:
        """Return the rates between which the minimum lies, and how they were found in words (Fieller 1954).

        x is the minimum if slope + 2 curvature x = 0; the interval is every x at which that is within t standard errors.
        """
        if self.degrees_of_freedom < 1:
            return None, None, "no interval: it goes through all losses exactly, so try more rates or seeds"
        t = float(stdtrit(self.degrees_of_freedom, (1 + confidence) / 2))
        (vb, vbc), (_, vc) = self.covariance
        a = 4 * (self.curvature**2 - t**2 * vc)
        b = 4 * (self.slope * self.curvature - t**2 * vbc)
        c = self.slope**2 - t**2 * vb
        if a <= 0:
            return (
                None,
                None,
                f"no {percentage(confidence)} interval: the losses are too noisy to tell the bend from a line",
            )
        root = np.sqrt(max(0.0, b**2 - 4 * a * c))
        low, high = (float(self.centre * np.exp((-b + sign * root) / (2 * a))) for sign in (-1, 1))
        return (
            low,
            high,
            f"{percentage(confidence)} interval by Fieller's theorem, {self.degrees_of_freedom} degrees of freedom",
        )


def _parabola(rates: Sequence[float], losses: dict[float, Floats]) -> _Parabola | None:
    """Fit by least squares; None when it does not open upwards."""
    y = np.stack([losses[rate] for rate in rates])
    num_rates, num_seeds = y.shape
    centre = float(np.exp(np.mean(np.log(rates))))
    x = np.repeat(np.log(np.array(rates) / centre), num_seeds)
    seeds = np.tile(np.eye(num_seeds), (num_rates, 1))
    design = np.column_stack([x, x**2, seeds])
    coefficients, *_ = np.linalg.lstsq(design, y.ravel(), rcond=None)
    slope, curvature = (float(each) for each in coefficients[:2])
    if curvature <= 0:
        return None
    degrees = y.size - design.shape[1]
    residual = y.ravel() - design @ coefficients
    variance = float(residual @ residual) / degrees if degrees else 0.0
    covariance = variance * np.linalg.inv(design.T @ design)[:2, :2]
    return _Parabola(centre, slope, curvature, float(coefficients[2:].mean()), covariance, degrees)
