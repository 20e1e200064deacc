"""The best share of one (N, D) cell from a few noisy losses: a smooth fit with an interval, never the lowest point.

The losses y_i at shares s_i are read as y_i = f(s_i) + e_i, with e_i normal of one standard deviation and f a
Gaussian process (squared-exponential kernel, Rasmussen & Williams 2006, eq. 2.31) over a constant. Its coordinate is
the share itself or the arcsine of its square root, which stretches both ends where loss curves bend hardest; that
choice, the length scale, the amplitude and the noise are not picked but averaged over, each weighted by how well it
explains the losses. With five to ten points no single setting is certain, and an interval that pretends so is too
narrow. Curves drawn from the posterior that have more than one valley are set aside: mixing laws (Ye et al. 2024,
Ge et al. 2024) are convex in the share, so a second valley is noise. The best share of every curve left gives the
interval. Compared on simulated curves with polynomials chosen by AICc: their intervals miss the true optimum in up
to four of ten cells, these in about one of twenty (tests/tune/test_optimum.py holds the coverage).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tune.results import Interval

Floats = NDArray[np.float64]

MIN_POINTS = 3
"""Fewest finished trials a curve is drawn through."""

GRID_STEPS = 96
"""Steps of the grid the curve is drawn on over [0, 1]: fine enough for any use of a share, and it holds the thirds."""

NUM_DRAWS = 4000
"""Curves drawn, before those with more than one valley are set aside."""
MIN_VALLEYS = 0.05
"""With a smaller part of single valleys than this, all curves are kept: the losses do not look like one valley."""
LENGTHS = (0.35, 0.55, 0.9, 1.4, 2.2)
"""Length scales averaged over, in units of the whole share range: from one tight bend to a straight line."""
AMPLITUDES = tuple(np.geomspace(0.3, 30.0, 8))
"""Amplitudes averaged over, in units of the spread of the losses."""
NOISE_MEDIAN, NOISE_LOG_SD = 2e-3, 1.2
"""Prior of the noise: log-normal, median 0.2 % of the mean loss, 95 % within 0.02 % and 2 %."""
NOISE_Z = np.linspace(-2.5, 2.5, 7)
CONSTANT_SPREADS = 100.0
"""Prior standard deviation of the constant, in spreads of the losses: wide enough not to matter."""


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

    def best_share(self) -> Interval:
        """Return the minimum of the mean curve, with the interval of the curves' minima."""
        return _interval(float(self.shares[self.best_index]), self.minima, self.confidence)

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
        return _interval(float(self.mean[index]), self.draws[:, index], self.confidence)

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
    grid = _grid(share_range, x)
    at = np.searchsorted(grid, x)
    level = float(y.mean())
    residual = y - level
    spread = max(float(np.ptp(y)), 1e-6 * level)
    noises = NOISE_MEDIAN * level * np.exp(NOISE_LOG_SD * NOISE_Z)
    kernels = [_kernel(_coordinate(grid, arcsine), length) for arcsine in (False, True) for length in LENGTHS]
    known = (
        np.zeros(len(x)) if standard_errors is None else np.asarray(standard_errors, dtype=np.float64) ** 2
    )
    data = _Data(at, residual, known, CONSTANT_SPREADS * spread)
    amplitudes = spread * np.asarray(AMPLITUDES)
    weights = np.stack([data.log_evidence(kernel, amplitudes, noises) for kernel in kernels])
    counts = _allocate(np.exp(weights - np.logaddexp.reduce(weights, axis=None)), NUM_DRAWS)
    random = np.random.default_rng(seed)
    drawn, noise = [], []
    for k in np.flatnonzero(counts.any(axis=(1, 2))):
        factor = _factor(kernels[k])
        for a, s in np.argwhere(counts[k] > 0):
            count = int(counts[k, a, s])
            drawn.append(data.draw_curves(kernels[k], factor, amplitudes[a], noises[s], count, random))
            noise.append(np.full(count, noises[s]))
    curves = level + np.concatenate(drawn)
    single = _single_valley(curves)
    kept = single if single.mean() >= MIN_VALLEYS else np.ones_like(single)
    return Curve(grid, curves[kept], np.concatenate(noise)[kept], float(single.mean()), confidence)


def next_share(curve: Curve, candidates: Sequence[float], pending: Sequence[float] = ()) -> float:
    """Return the candidate whose loss is expected to shrink the variance of the best share most.

    Over the posterior curves, the best share and the loss at any share are correlated; a loss measured there, with a
    run's noise, explains cov(best, loss)^2 / var(loss) of the best share's variance. What the losses of the `pending`
    shares will explain is taken away first, so that runs of one batch do not ask the same thing. Candidates and
    pending shares are shares of the curve's grid.
    """
    minima = curve.minima - curve.minima.mean()
    centred = curve.draws - curve.mean
    noise_variance = float(np.mean(curve.noise**2))
    shared = minima @ centred / len(minima)  # covariance of the best share with the loss at each share, [G]
    covariance = centred.T @ centred / len(minima)
    for index in np.searchsorted(curve.shares, np.asarray(pending, dtype=np.float64)):
        column = covariance[:, index] / (covariance[index, index] + noise_variance)
        shared = shared - column * shared[index]
        covariance = covariance - np.outer(column, covariance[index])
    at = np.searchsorted(curve.shares, np.asarray(candidates, dtype=np.float64))
    explained = shared[at] ** 2 / (covariance.diagonal()[at] + noise_variance)
    if not explained.max() > 0.0:  # nothing left to learn: stay near the best
        explained = -np.abs(curve.shares[at] - curve.shares[curve.best_index])
    return float(candidates[int(explained.argmax())])


def share_grid(share_range: tuple[float, float]) -> tuple[float, ...]:
    """Return the shares runs are made at: whole steps of 1 / GRID_STEPS inside the range, and its two ends."""
    low, high = share_range
    inside = (step / GRID_STEPS for step in range(GRID_STEPS + 1))
    return (low, *(share for share in inside if low < share < high), high)


def _grid(share_range: tuple[float, float], shares: Floats) -> Floats:
    return np.unique(np.concatenate([share_grid(share_range), shares]))


def _coordinate(grid: Floats, arcsine: bool) -> Floats:
    raw = np.arcsin(np.sqrt(np.clip(grid, 0.0, 1.0))) if arcsine else grid
    scaled: Floats = (raw - raw[0]) / (raw[-1] - raw[0])
    return scaled


def _kernel(coordinate: Floats, length: float) -> Floats:
    distance = (coordinate[:, None] - coordinate[None, :]) / length
    kernel: Floats = np.exp(-0.5 * distance**2)
    return kernel


def _allocate(weights: Floats, total: int) -> NDArray[np.int64]:
    """Share `total` draws out by weight, without randomness: each count is within one of weight x total."""
    edges = np.floor(np.cumsum(weights.ravel()) / weights.sum() * total + 0.5).astype(np.int64)
    return np.diff(np.concatenate([[0], edges])).reshape(weights.shape)


def _factor(kernel: Floats) -> Floats:
    values, vectors = np.linalg.eigh(kernel)
    factor: Floats = vectors * np.sqrt(values.clip(min=0.0))
    return factor


@dataclass(frozen=True)
class _Data:
    """The losses of one cell, and what curves of a given kernel have to do with them."""

    at: NDArray[np.intp]
    """[n] indices of the shares on the grid."""
    residual: Floats
    """[n] losses less their mean."""
    known: Floats
    """[n] known variances of single losses."""
    constant: float
    """Prior standard deviation of the constant."""

    def log_evidence(self, kernel: Floats, amplitudes: Floats, noises: Floats) -> Floats:
        """Return log p(losses | kernel, amplitude, noise) + log prior of the noise, [amplitude, noise]."""
        prior = amplitudes[:, None, None] ** 2 * kernel[np.ix_(self.at, self.at)] + self.constant**2
        values, vectors = np.linalg.eigh(prior + np.diag(self.known))
        rotated = np.einsum("aij,i->aj", vectors, self.residual)
        variance = values.clip(min=0.0)[:, None, :] + noises[None, :, None] ** 2  # [amplitude, noise, n]
        misfit = (rotated[:, None, :] ** 2 / variance).sum(axis=2) + np.log(variance).sum(axis=2)
        evidence: Floats = -0.5 * (misfit + NOISE_Z**2)
        return evidence

    def draw_curves(
        self,
        kernel: Floats,
        factor: Floats,
        amplitude: float,
        noise: float,
        count: int,
        random: np.random.Generator,
    ) -> Floats:
        """Draw posterior curves, [count, G]: draws from the prior, corrected by the losses (Matheron's rule).

        The factor of the prior knows nothing of the losses, so a rounding difference in them moves a curve by as
        little; an eigenvector basis of the posterior could turn over and change every draw.
        """
        variance = self.known + noise**2
        prior = amplitude * (random.standard_normal((count, len(kernel))) @ factor.T)
        prior += self.constant * random.standard_normal((count, 1))
        errors = np.sqrt(variance) * random.standard_normal((count, len(self.at)))
        cross = amplitude**2 * kernel[:, self.at] + self.constant**2
        gain = np.linalg.solve(cross[self.at] + np.diag(variance), cross.T)  # [n, G]
        curves: Floats = prior + (self.residual - prior[:, self.at] - errors) @ gain
        return curves


def _single_valley(curves: Floats) -> NDArray[np.bool_]:
    slopes = np.diff(curves, axis=1)
    before = np.arange(slopes.shape[1])[None, :] < curves.argmin(axis=1)[:, None]
    wrong = np.where(before, slopes > 0, slopes < 0)
    return np.asarray(~wrong.any(axis=1))


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _interval(value: float, draws: Floats, confidence: float) -> Interval:
    low, high = np.quantile(draws, _tails(confidence))
    return Interval(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        standard_error=float(draws.std(ddof=1)),
    )
