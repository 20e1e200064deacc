"""The best share of one synthetic source from a few noisy losses: a smooth fit with an interval, never the lowest point.

A curve is a surface (`tune.surface`) over the shares of one source, or the way along a surface of several sources that
has the best split at every synthetic share. Compared on simulated curves with polynomials chosen by AICc: their
intervals miss the true optimum in up to four of ten cells, these in about one of twenty (tests/tune/test_optimum.py
holds the coverage).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synth.percentage import percentage
from tune.mixture_space import share_grid
from tune.results import Interval
from tune.surface import MIN_POINTS, MIN_VALLEYS, Losses, Surface, fit_surface

Floats = NDArray[np.float64]

GAUSSIAN_PROCESS = (
    "Gaussian process over a constant, averaged over coordinate, length scale, amplitude and noise"
)


@dataclass(frozen=True)
class Curve:
    """Smooth curves of loss against share that explain the losses of one cell; K curves on G shares."""

    shares: Floats
    """[G] shares, ascending."""
    draws: Floats
    """[K, G] curves drawn from the posterior, nats per token."""
    noise: Floats
    """[K] standard deviation of the noise that goes with each curve, nats per token."""
    single_valley_fraction: float
    """Part of the posterior that has one valley; the rest is not in `draws`, unless it is all there is."""
    confidence: float
    """Level of all intervals, (0, 1)."""
    method: str = GAUSSIAN_PROCESS
    """What the curves were drawn from."""

    @property
    def looks_like_one_valley(self) -> bool:
        """Whether the losses look as runs of usual noise do when their loss has one valley."""
        return self.single_valley_fraction >= MIN_VALLEYS

    @property
    def mean(self) -> Floats:
        """Return the mean curve, [G], nats per token."""
        mean: Floats = self.draws.mean(axis=0)
        return mean

    @property
    def best_index(self) -> int:
        """Index of the minimum of the mean curve."""
        return int(self.mean.argmin())

    @property
    def minima(self) -> Floats:
        """Return the best share of each curve, [K]."""
        minima: Floats = self.shares[self.draws.argmin(axis=1)]
        return minima

    @classmethod
    def along(cls, surface: Surface, confidence: float = 0.95) -> Curve:
        """Return a surface along the synthetic share: at each, the mixture with the lowest mean loss."""
        mean, totals = surface.mean, surface.points.sum(axis=1)
        _, which = np.unique(np.round(totals, 9), return_inverse=True)
        same_total = (np.flatnonzero(which == i) for i in range(which.max() + 1))
        way = [int(members[mean[members].argmin()]) for members in same_total]
        return cls(
            totals[way], surface.draws[:, way], surface.noise, surface.single_valley_fraction, confidence
        )

    def best_share(self) -> Interval:
        """Return the minimum of the mean curve, with the interval of the curves' minima."""
        return interval_of_draws(float(self.shares[self.best_index]), self.minima, self.confidence)

    def least_best_share(self) -> Interval:
        """Return the lowest share whose mean loss is the minimum's but for what drawing curves does by chance.

        Synthetic text has to be made, so of two shares between which only the number of draws decides, the lower is better.
        """
        above = self.draws - self.draws[:, [self.best_index]]
        chance = 2.0 * above.std(axis=0) / np.sqrt(len(above))
        lowest = float(self.shares[np.flatnonzero(above.mean(axis=0) <= chance)[0]])
        return interval_of_draws(lowest, self.minima, self.confidence)

    def best_loss(self) -> Interval:
        """Return the loss of the curve at the best share, nats per token; noise of a single run not included."""
        return self.at(float(self.shares[self.best_index]))

    def noise_nats(self) -> float:
        """Return the median of the noise's posterior, nats per token."""
        return float(np.median(self.noise))

    def band(self) -> tuple[tuple[float, float, float, float], ...]:
        """Return (share, loss, low, high) along the curve."""
        low, high = np.quantile(self.draws, _tails(self.confidence), axis=0)
        rows = np.column_stack([self.shares, self.mean, low, high])
        return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in rows)

    def describe(self) -> str:
        """Return how the curve and its intervals were made, for a record."""
        kind = "one-valley" if self.single_valley_fraction else "posterior"
        return (
            f"{self.method}; {len(self.draws)} {kind} curves; best share = minimum of their mean, "
            f"{percentage(self.confidence)} interval = their minima"
        )

    def losses_at(self, share: float) -> Floats:
        """Return the loss of each curve at a share, [K], nats per token; between two shares of the grid on a line."""
        above = int(np.searchsorted(self.shares, share).clip(1, len(self.shares) - 1))
        low, high = self.shares[above - 1], self.shares[above]
        part = float(np.clip((share - low) / (high - low), 0.0, 1.0))
        losses: Floats = (1.0 - part) * self.draws[:, above - 1] + part * self.draws[:, above]
        return losses

    def at(self, share: float) -> Interval:
        """Return the loss of the curve at a share, nats per token."""
        losses = self.losses_at(share)
        return interval_of_draws(float(losses.mean()), losses, self.confidence)

    def gain(self, share: float) -> Interval:
        """Return how much less is lost at a share than at the lowest one, nats per token, curve by curve."""
        lowest = float(self.shares[0])
        value = self.at(lowest).value - self.at(share).value
        return interval_of_draws(value, self.losses_at(lowest) - self.losses_at(share), self.confidence)

    def not_worse_than(self, share: float) -> tuple[float, float]:
        """Return the lowest and highest share that lose no more than this one in enough of the curves to be possible."""
        excess = self.draws - self.losses_at(share)[:, None]
        possible = np.quantile(excess, _tails(self.confidence)[0], axis=0) <= 0.0
        close = np.append(self.shares[possible], share)
        return float(close.min()), float(close.max())

    def indistinguishable(self, within: float) -> tuple[float, float]:
        """Return the lowest and highest share whose loss is within so many nats per token of the best."""
        mean = self.mean
        close = self.shares[mean <= mean.min() + within]
        return float(close.min()), float(close.max())


def fit_curve(
    shares: Sequence[float],
    losses: Sequence[float],
    share_range: tuple[float, float] = (0.0, 1.0),
    *,
    standard_errors: Sequence[float] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Curve:
    """Fit the loss (nats per token, positive) against the share.

    `standard_errors` (nats per token) are known errors of single losses, such as those of a law's predictions; they
    add to the noise all losses have. Raises ValueError on fewer than MIN_POINTS points.
    """
    x, y = np.asarray(shares, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if len(x) < MIN_POINTS or len(x) != len(y):
        raise ValueError(f"{len(x)} shares and {len(y)} losses: a curve needs at least {MIN_POINTS} of both")
    grid = np.unique(np.concatenate([share_grid(share_range), x]))
    known = (
        np.zeros(len(x)) if standard_errors is None else np.asarray(standard_errors, dtype=np.float64) ** 2
    )
    measured = Losses(np.searchsorted(grid, x), y, np.zeros(len(x), dtype=np.int64), known)
    return Curve.along(fit_surface(grid[:, None], measured, seed=seed), confidence)


def interval_of_draws(value: float, draws: Floats, confidence: float) -> Interval:
    """Return a value with the quantiles of its draws [N] as interval, which always holds the value."""
    low, high = np.quantile(draws, _tails(confidence))
    return Interval(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        standard_error=float(draws.std(ddof=1)),
    )


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2
