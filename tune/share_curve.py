"""Loss against share between and beside a few trained shares: curves that explain the losses of these.

A loss over the share r of synthetic text falls as far as that text teaches something and rises as far as natural text
is missed. Either part is an exponential of the share, the mixing law of Ye et al. 2024 (arXiv 2403.16952):

    L(r) = c + k (e^(-a r) - e^-a) / (1 - e^-a) + h (e^(b r) - 1) / (e^b - 1),    k, h >= 0,

so k is all that synthetic text removes and h all that its excess costs, nats per token. Such a curve is convex, and
beside a steep end it does not swing below what was measured, as a Gaussian process does. Rates a and b, how large k and
h may be, the noise of the losses beside their known errors, and whether there is a fall, a rise or both are not picked
but averaged over, each weighted by its evidence; and so is the Gaussian process (`tune.surface`), for losses of another
shape. `docs/decisions.md` has what this was compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri_exp

from tune.mixture_space import share_grid
from tune.optimum import Curve
from tune.surface import MIN_POINTS, NOISE_LOG_SD, NOISE_Z, NUM_DRAWS, Losses, allocate, fit_surface

Floats = NDArray[np.float64]

RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Rates a and b averaged over, per unit share: from nearly a line to a bend within the last sixteenth."""
SCALES = (1.0, 4.0)
"""Prior standard deviations of k and h, in units of the spread of the losses."""
NOISE_MEDIAN = 5e-4
"""Median of the log-normal prior of the noise beside the known errors, as a part of the mean loss."""
CONSTANT_SPREADS = 100.0
"""Prior standard deviation of c, in spreads of the losses: wide enough not to matter."""
QUANTILES = 256
"""Places at which the probability that k and h are both positive is summed up."""
METHOD = (
    "mixing laws (a falling and a rising exponential of the share) averaged over their rates, sizes and noise, and with them a "
    "Gaussian process, each by its evidence"
)


def fit_share_curve(
    shares: Sequence[float],
    losses: Sequence[float],
    standard_errors: Sequence[float],
    confidence: float = 0.95,
    seed: int = 0,
) -> Curve:
    """Return curves of the loss (nats per token) from the lowest to the highest share that explain these losses.

    `standard_errors` (nats per token, >= 0) are the known errors of the losses, independent of one another. Raises
    ValueError below MIN_POINTS shares.
    """
    if len(shares) < MIN_POINTS:
        raise ValueError(f"{len(shares)} shares: a curve needs at least {MIN_POINTS}")
    x, y = np.asarray(shares, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    grid = np.unique(np.concatenate([share_grid((float(x.min()), float(x.max()))), x]))
    known = np.asarray(standard_errors, dtype=np.float64) ** 2
    fits = _MixingLaws.fitted(x, y, known)
    at = np.searchsorted(grid, x)
    process = fit_surface(grid[:, None], Losses(at, y, np.zeros(len(x), dtype=np.int64), known), seed=seed)
    # Curves of the process with more valleys than one were set aside: it had less of a prior than it seemed to.
    of_process = process.log_evidence + float(np.log(max(process.single_valley_fraction, 1.0 / NUM_DRAWS)))
    part = float(np.exp(of_process - np.logaddexp(of_process, fits.log_evidence)))
    count = round(part * NUM_DRAWS)
    picked = np.linspace(0, len(process.draws) - 1, count).astype(np.intp)
    draws, noise = fits.draw(grid, NUM_DRAWS - count, np.random.default_rng(seed))
    return Curve(
        grid,
        np.concatenate([draws, process.draws[picked]]),
        np.concatenate([noise, process.noise[picked]]),
        1.0,
        confidence,
        METHOD,
    )


# --- the parts of a fit ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """One choice of rates; without a rate, the curve lacks that part."""

    fall: float | None
    rise: float | None
    log_prior: float

    def columns(self, shares: Floats) -> Floats:
        """Return what c, k and h are multiplied with, [n, 1 + parts]."""
        columns = [np.ones_like(shares)]
        if self.fall is not None:
            columns.append(_decay(shares, self.fall))
        if self.rise is not None:
            columns.append(_decay(1.0 - shares, self.rise))
        return np.column_stack(columns)


def _decay(shares: Floats, rate: float) -> Floats:
    """Return an exponential from 1 at share 0 to 0 at share 1."""
    decay: Floats = (np.exp(-rate * shares) - np.exp(-rate)) / -np.expm1(-rate)
    return decay


def _forms() -> Iterator[_Form]:
    """Yield falling, rising and two-sided curves; each kind is as likely as another beforehand."""
    kinds = 3
    for rate in RATES:
        yield _Form(rate, None, -np.log(kinds * len(RATES)))
        yield _Form(None, rate, -np.log(kinds * len(RATES)))
        for other in RATES:
            yield _Form(rate, other, -np.log(kinds * len(RATES) ** 2))


@dataclass(frozen=True)
class _MixingLaws:
    """All forms, fitted to the same losses."""

    level: float
    """Mean of the losses, which was taken off them."""
    noises: Floats
    fits: tuple[_Fit, ...]

    @classmethod
    def fitted(cls, shares: Floats, losses: Floats, known: Floats) -> _MixingLaws:
        """Fit every form to losses with these known variances."""
        level = float(losses.mean())
        noises = NOISE_MEDIAN * level * np.exp(NOISE_LOG_SD * NOISE_Z)
        return cls(
            level, noises, tuple(_fit(form, shares, losses - level, known, noises) for form in _forms())
        )

    @property
    def log_evidence(self) -> float:
        """As that of a surface: averaged over everything but the noise."""
        evidence = [fit.log_evidence for fit in self.fits]
        return float(np.logaddexp.reduce(evidence, axis=None)) - float(np.log(len(SCALES)))

    def draw(self, grid: Floats, count: int, random: np.random.Generator) -> tuple[Floats, Floats]:
        """Draw so many curves, [count, G], and the noise that goes with each."""
        evidence = np.stack([fit.log_evidence for fit in self.fits])  # [form, scale, noise]
        counts = allocate(np.exp(evidence - evidence.max()), count)
        drawn, noise = [np.empty((0, len(grid)))], [np.empty(0)]
        for f, scale, n in np.argwhere(counts > 0):
            some = int(counts[f, scale, n])
            coefficients = self.fits[f].draw(scale, n, some, random)
            drawn.append(self.level + coefficients @ self.fits[f].form.columns(grid).T)
            noise.append(np.full(some, self.noises[n]))
        return np.concatenate(drawn), np.concatenate(noise)


@dataclass(frozen=True)
class _Fit:
    """Posterior of c, k and h under one form: normal, cut off where k or h is negative."""

    form: _Form
    mean: Floats
    """[scale, noise, p] before it is cut off."""
    covariance: Floats
    """[scale, noise, p, p]"""
    log_evidence: Floats
    """[scale, noise] with the priors of form and noise."""

    def draw(self, scale: int, noise: int, count: int, random: np.random.Generator) -> Floats:
        """Draw coefficients, [count, p]: h first, k given h, c given both."""
        mean, covariance = self.mean[scale, noise], self.covariance[scale, noise]
        last = len(mean) - 1
        error = np.sqrt(covariance[last, last])
        upper = random.random(count)
        if last == 1:
            parts = _positive_normal(mean[1], error, upper)[:, None]
        else:
            weights = np.exp(_log_weights(mean[None], covariance[None])[0])
            edges = np.concatenate([[0.0], np.cumsum(weights)]) / weights.sum()
            h = _positive_normal(
                mean[2], error, np.interp(upper, edges, np.linspace(0.0, 1.0, QUANTILES + 1))
            )
            centre, spread = _given_h(mean[None], covariance[None], h[None])
            k = _positive_normal(centre[0], spread[0], random.random(count))
            parts = np.column_stack([k, h])
        slope = np.linalg.solve(covariance[1:, 1:], covariance[1:, 0])
        left = max(float(covariance[0, 0] - slope @ covariance[1:, 0]), 0.0)
        c = mean[0] + (parts - mean[1:]) @ slope + np.sqrt(left) * random.standard_normal(count)
        return np.column_stack([c, parts])


def _fit(form: _Form, shares: Floats, residual: Floats, known: Floats, noises: Floats) -> _Fit:
    """Fit one form by Bayesian linear regression, for every scale and noise at once.

    The evidence is that of the regression without the cut, times the probability of k, h >= 0 after over before.
    """
    columns = form.columns(shares)
    spread = max(float(np.ptp(residual)), 1e-9)
    parts = columns.shape[1] - 1
    prior = np.array(
        [[(CONSTANT_SPREADS * spread) ** -2, *[(scale * spread) ** -2] * parts] for scale in SCALES]
    )  # precisions, [scale, p]
    weights = 1.0 / (known + noises[:, None] ** 2)  # [noise, n]
    precision = np.einsum("ni,mn,nj->mij", columns, weights, columns) + (
        np.eye(parts + 1) * prior[:, None, None, :]
    )  # [scale, noise, p, p]
    covariance = np.linalg.inv(precision)
    moment = np.einsum("ni,mn,n->mi", columns, weights, residual)
    mean = np.einsum("smij,mj->smi", covariance, moment)
    explained = np.einsum("mi,smi->sm", moment, mean)
    evidence = 0.5 * (
        explained
        - (weights * residual**2).sum(axis=1)
        + np.log(weights).sum(axis=1)
        + np.log(prior).sum(axis=1)[:, None]
        - np.linalg.slogdet(precision)[1]
        - NOISE_Z**2
    )
    kept = _log_probability_positive(mean, covariance) + parts * np.log(2.0)
    return _Fit(form, mean, covariance, evidence + kept + form.log_prior)


def _log_probability_positive(mean: Floats, covariance: Floats) -> Floats:
    """Return the logarithm of the probability that all coefficients but the first are positive, [...]."""
    last = mean.shape[-1] - 1
    alone = log_ndtr(mean[..., last] / np.sqrt(covariance[..., last, last]))
    if last == 1:
        return np.asarray(alone)
    weights = _log_weights(mean, covariance)
    return np.asarray(alone + np.logaddexp.reduce(weights, axis=-1) - np.log(QUANTILES))


def _log_weights(mean: Floats, covariance: Floats) -> Floats:
    """Return log P(k > 0 | h) at the middles of QUANTILES equal parts of the distribution of h > 0, [..., QUANTILES]."""
    middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    error = np.sqrt(covariance[..., 2, 2])
    h = _positive_normal(mean[..., 2, None], error[..., None], middles)
    centre, spread = _given_h(mean, covariance, h)
    return np.asarray(log_ndtr(centre / spread))


def _given_h(mean: Floats, covariance: Floats, h: Floats) -> tuple[Floats, Floats]:
    """Return mean [..., m] and standard deviation [..., 1] of k before it is cut off, given values h [..., m]."""
    slope = covariance[..., 1, 2] / covariance[..., 2, 2]
    left = covariance[..., 1, 1] - slope * covariance[..., 1, 2]
    centre = mean[..., 1, None] + slope[..., None] * (h - mean[..., 2, None])
    return centre, np.sqrt(np.maximum(left, 1e-30))[..., None]


def _positive_normal(mean: Floats, error: Floats, upper: Floats) -> Floats:
    """Return the values that a normal variable known to be positive exceeds with these probabilities."""
    beyond = np.log(np.maximum(upper, 1e-300)) + log_ndtr(mean / error)
    return np.asarray(np.maximum(mean - error * ndtri_exp(beyond), 0.0))
