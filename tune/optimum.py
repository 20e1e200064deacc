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

from tune.mixture_space import share_grid
from tune.results import Interval
from tune.surface import MIN_POINTS, MIN_VALLEYS, Losses, Surface, fit_surface

Floats = NDArray[np.float64]


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
    """Part of the drawn curves that had one valley; the others are not in `draws`, unless fewer than MIN_VALLEYS had."""
    confidence: float
    """Level of all intervals, (0, 1)."""

    @property
    def looks_like_one_valley(self) -> bool:
        """Whether the losses allow a curve with one valley."""
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
        kind = "one-valley" if self.looks_like_one_valley else "posterior"
        return (
            "Gaussian process over a constant, averaged over coordinate, length scale, amplitude and noise; "
            f"{len(self.draws)} {kind} curves; best share = minimum of their mean, "
            f"{self.confidence:.0%} interval = their minima"
        )

    def at(self, share: float) -> Interval:
        """Return the loss of the curve at the grid's share nearest to this one, nats per token."""
        index = int(np.abs(self.shares - share).argmin())
        return interval_of_draws(float(self.mean[index]), self.draws[:, index], self.confidence)

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
