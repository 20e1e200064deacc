"""The loss of one (N, D) cell over its mixtures, from a few noisy losses: smooth surfaces that all explain them.

The losses y_i at mixtures w_i are read as y_i = f(w_i) + b_seed(i) + e_i, with e_i normal of one standard deviation,
b an offset that all runs of one seed share, and f a Gaussian process (squared-exponential kernel, Rasmussen & Williams
2006, eq. 2.31) over a constant. Its coordinates are the shares of all sources, natural text included, or the arcsines
of their square roots, which stretch the edges where loss curves bend hardest; that choice, the length scale, the
amplitude, the noise and the part of it that is the seed's are not picked but averaged over, each weighted by how well
it explains the losses. With five to ten points no single setting is certain, and an interval that pretends so is too
narrow. What neighbouring cells have taught (`Prior`) is one more setting: it counts as far as it explains the losses
better than a constant does. Surfaces with more than one valley are set aside: mixing laws (Ye et al. 2024, Ge et al.
2024) are convex in the shares, so a second valley is noise.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from tune.mixture_space import neighbours, with_natural

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

MIN_POINTS = 3
"""Fewest finished trials a surface is drawn through."""
NUM_DRAWS = 4000
"""Surfaces drawn, before those with more than one valley are set aside."""
MIN_VALLEYS = 0.05
"""With a smaller part of single valleys than this they are drawn again, evenly over the noise: the losses jump about."""
LENGTHS = (0.35, 0.55, 0.9, 1.4, 2.2)
"""Length scales averaged over, in units of the widest distance: from one tight bend to a straight line."""
AMPLITUDES = tuple(np.geomspace(0.3, 30.0, 8))
"""Amplitudes averaged over, in units of the spread of the losses."""
AMPLITUDE_ABOUT_A_PRIOR = 0.1
"""Amplitudes of what differs from the prior of neighbouring cells, as a part of those without one."""
NOISE_MEDIAN, NOISE_LOG_SD = 2e-3, 1.2
"""Prior of the noise: log-normal, median 0.2 % of the mean loss, 95 % within 0.02 % and 2 %."""
NOISE_Z = np.linspace(-2.5, 2.5, 7)
SEED_VARIANCES = (0.0, 1.0, 10.0, 100.0)
"""Variances of a seed's offset averaged over, in units of the variance of the noise; one seed's offset is never seen."""
CHANCES = ndtri((np.arange(15) + 0.5) / 15)
"""Standard normal deviates that stand for a loss not yet measured: 15 of equal weight."""
CONSTANT_SPREADS = 100.0
"""Prior standard deviation of the constant, in spreads of the losses: wide enough not to matter."""


@dataclass(frozen=True)
class Losses:
    """What has been measured of one cell, n losses."""

    at: Places
    """[n] place of each one's mixture among the points."""
    values: Floats
    """[n] nats per token."""
    seeds: NDArray[np.int64]
    """[n] which seed: losses of one seed share an offset."""
    known: Floats
    """[n] known variances of single losses, such as those of a law's predictions, beside the noise all losses have."""


@dataclass(frozen=True)
class Prior:
    """What other cells say of this one's surface, but for a constant: normal with this mean and covariance F F^T."""

    mean: Floats
    """[G] nats per token."""
    factor: Floats
    """[G, m] F."""


@dataclass(frozen=True)
class Surface:
    """Smooth surfaces of loss against mixture that explain the losses of one cell; N surfaces on G mixtures."""

    points: Floats
    """[G, K] mixtures."""
    draws: Floats
    """[N, G] surfaces drawn from the posterior, nats per token."""
    noise: Floats
    """[N] standard deviation of the noise that goes with each surface, nats per token; a seed's offset not included."""
    single_valley_fraction: float
    """Part of the posterior that has one valley; the rest is not in `draws`, unless it is all there is."""
    log_evidence: float
    """Logarithm of the losses' density, averaged over all settings of the process but the noise; a constant is left out."""

    @property
    def looks_like_one_valley(self) -> bool:
        """Whether the losses look as runs of usual noise do when their loss has one valley."""
        return self.single_valley_fraction >= MIN_VALLEYS

    @property
    def mean(self) -> Floats:
        """The mean surface, [G], nats per token."""
        mean: Floats = self.draws.mean(axis=0)
        return mean

    @property
    def best_index(self) -> int:
        """Place of the minimum of the mean surface."""
        return int(self.mean.argmin())

    @property
    def minima(self) -> Floats:
        """The best mixture of each surface, [N, K]."""
        minima: Floats = self.points[self.draws.argmin(axis=1)]
        return minima

    def noise_nats(self) -> float:
        """Return the median of the noise's posterior, nats per token."""
        return float(np.median(self.noise))


def fit_surface(points: Floats, losses: Losses, prior: Prior | None = None, seed: int = 0) -> Surface:
    """Return the surfaces over the points [G, K] that explain the losses. Raises ValueError below MIN_POINTS losses."""
    if len(losses.values) < MIN_POINTS:
        raise ValueError(f"{len(losses.values)} losses: a surface needs at least {MIN_POINTS}")
    level = float(losses.values.mean())
    spread = max(float(np.ptp(losses.values)), 1e-6 * level)
    noises = NOISE_MEDIAN * level * np.exp(NOISE_LOG_SD * NOISE_Z)
    distances = [_distances(_coordinates(points, arcsine)) for arcsine in (False, True)]
    kernels = [_kernel(each / each.max(), length) for each in distances for length in LENGTHS]
    process = _Process(level, noises, kernels, _models(losses, prior, level, spread, len(points)))
    weights = process.log_weights()
    total = float(np.logaddexp.reduce(weights, axis=None))
    chances = np.exp(weights - total)  # [kernel, model, amplitude, noise]
    beside = neighbours(points)
    drawn = process.draw(allocate(chances, NUM_DRAWS), beside, np.random.default_rng(seed))
    fraction = float(drawn.single.mean())
    if fraction < MIN_VALLEYS:
        drawn, fraction = _draw_rare_valleys(process, chances, beside, np.random.default_rng(seed))
    evidence = total - float(np.log(weights[..., 0].size))
    return Surface(points, drawn.surfaces[drawn.single], drawn.noise[drawn.single], fraction, evidence)


def most_telling(surface: Surface, candidates: Places, pending: Places) -> int:
    """Return the place of the candidate whose loss is expected to improve the mixture answered with most.

    The answer is the minimum of the mean surface. A loss measured at a candidate moves the mean surface by its covariance
    with the loss there, by so many standard deviations as chance has it; the knowledge gradient (Frazier, Powell &
    Dayanik 2009, eq. 14) is how much lower the minimum is afterwards, on average. It counts a run that would only say by
    how much, not whether, another mixture is worse as worth nothing. What the losses of the `pending` mixtures will
    explain is taken away first, so that runs of one round do not ask the same thing.
    """
    mean = surface.mean
    centred = surface.draws - mean
    noise_variance = float(np.mean(surface.noise**2))
    covariance = centred.T @ centred / len(centred)
    for place in pending:
        column = covariance[:, place] / (covariance[place, place] + noise_variance)
        covariance = covariance - np.outer(column, covariance[place])
    moves = covariance[:, candidates] / np.sqrt(covariance.diagonal()[candidates] + noise_variance)
    lowest = np.mean([(mean[:, None] + moves * sd).min(axis=0) for sd in CHANCES], axis=0)
    gained = mean.min() - lowest
    if not gained.max() > 0.0:  # nothing left to learn: stay near the best
        gap = np.abs(with_natural(surface.points) - with_natural(surface.points[surface.best_index]))
        gained = -gap.sum(axis=1)[candidates]
    return int(candidates[int(gained.argmax())])


# --- the parts of a fit ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """N surfaces, those with more than one valley among them."""

    surfaces: Floats
    """[N, G]"""
    noise: Floats
    """[N]"""
    single: NDArray[np.bool_]
    """[N] which to keep: those with one valley."""


@dataclass(frozen=True)
class _Process:
    """All settings that are averaged over."""

    level: float
    noises: Floats
    kernels: list[Floats]
    models: list[_Model]

    def log_weights(self) -> Floats:
        """Return the evidence of every setting, [kernel, model, amplitude, noise]."""
        return np.stack(
            [[model.log_evidence(kernel, self.noises) for model in self.models] for kernel in self.kernels]
        )

    def draw(self, counts: NDArray[np.int64], beside: Places, random: np.random.Generator) -> _Drawn:
        """Draw so many surfaces of every setting, [kernel, model, amplitude, noise]."""
        drawn, noise = [], []
        for k in np.flatnonzero(counts.any(axis=(1, 2, 3))):
            kernel, factor = self.kernels[k], _factor(self.kernels[k])
            for m, a, s in np.argwhere(counts[k] > 0):
                count = int(counts[k, m, a, s])
                drawn.append(self.models[m].draw(kernel, factor, a, self.noises[s], count, random))
                noise.append(np.full(count, self.noises[s]))
        surfaces = self.level + np.concatenate(drawn)
        return _Drawn(surfaces, np.concatenate(noise), _single_valley(surfaces, beside))


def _draw_rare_valleys(
    process: _Process, chances: Floats, beside: Places, random: np.random.Generator
) -> tuple[_Drawn, float]:
    """Return surfaces of one valley where few of the posterior have one, and their part of it.

    Losses that jump about are explained either by surfaces that bend to each of them or by more noise than runs usually
    have. If the loss has one valley it is the noise, but what is likely before one asks for a valley is hardly ever it. So
    every level of noise that is not ruled out gets as many draws as any other, and what is kept of each is brought to its
    part of the posterior: importance sampling. Where none has one valley, all are kept.
    """
    parts = chances.sum(axis=(0, 1, 2))  # [noise]
    possible = np.flatnonzero(parts)
    each = NUM_DRAWS // len(possible)
    counts = np.zeros(chances.shape, np.int64)
    for s in possible:
        counts[..., s] = allocate(chances[..., s], each)
    drawn = process.draw(counts, beside, random)
    part = parts[np.searchsorted(process.noises, drawn.noise)] / each
    fraction = float(part[drawn.single].sum())
    kept = drawn.single if fraction else np.ones_like(drawn.single)
    copies = np.repeat(np.arange(len(part)), allocate(np.where(kept, part, 0.0), int(kept.sum())))
    return _Drawn(drawn.surfaces[copies], drawn.noise[copies], kept[copies]), fraction


@dataclass(frozen=True)
class _Model:
    """One way of reading the losses: with or without the prior, and how much of their noise is the seed's."""

    at: Places
    residual: Floats
    """[n] losses less their mean and less the prior's."""
    known: Floats
    noise_shape: Floats
    """[n, n] covariance of the noise, in units of the variance of what is not the seed's."""
    constant: float
    """Prior standard deviation of the constant."""
    amplitudes: Floats
    mean: Floats
    """[G]"""
    prior: Prior | None

    def log_evidence(self, kernel: Floats, noises: Floats) -> Floats:
        """Return log p(losses | kernel, amplitude, noise) + log prior of the noise, [amplitude, noise]."""
        n = len(self.at)
        signal = self.amplitudes[:, None, None] ** 2 * kernel[np.ix_(self.at, self.at)] + self._fixed(self.at)
        whiten = np.linalg.inv(np.linalg.cholesky(self.noise_shape))
        values, vectors = np.linalg.eigh(whiten @ (signal + np.diag(self.known)) @ whiten.T)
        rotated = np.einsum("aij,i->aj", vectors, whiten @ self.residual)
        variance = values.clip(min=0.0)[:, None, :] + noises[None, :, None] ** 2  # [amplitude, noise, n]
        misfit = (rotated[:, None, :] ** 2 / variance).sum(axis=2) + np.log(variance).sum(axis=2)
        shape = -2.0 * float(np.log(whiten.diagonal()).sum()) if n else 0.0
        evidence: Floats = -0.5 * (misfit + shape + NOISE_Z**2)
        return evidence

    def draw(
        self, kernel: Floats, factor: Floats, a: int, noise: float, count: int, random: np.random.Generator
    ) -> Floats:
        """Draw posterior surfaces, [count, G]: draws from the prior, corrected by the losses (Matheron's rule).

        The factor of the prior knows nothing of the losses, so a rounding difference in them moves a surface by as
        little; an eigenvector basis of the posterior could turn over and change every draw.
        """
        amplitude = self.amplitudes[a]
        before = amplitude * (random.standard_normal((count, len(kernel))) @ factor.T)
        before += self.constant * random.standard_normal((count, 1))
        if self.prior is not None:
            before += random.standard_normal((count, self.prior.factor.shape[1])) @ self.prior.factor.T
        errors = (
            noise * random.standard_normal((count, len(self.at))) @ np.linalg.cholesky(self.noise_shape).T
        )
        errors += np.sqrt(self.known) * random.standard_normal((count, len(self.at)))
        cross = amplitude**2 * kernel[:, self.at] + self._fixed(slice(None))
        observed = cross[self.at] + noise**2 * self.noise_shape + np.diag(self.known)
        gain = np.linalg.solve(observed, cross.T)  # [n, G]
        surfaces: Floats = self.mean + before + (self.residual - before[:, self.at] - errors) @ gain
        return surfaces

    def _fixed(self, rows: Places | slice) -> Floats:
        """Return the covariance that is not the kernel's between these points and the losses."""
        covariance = np.full((1, 1), self.constant**2)
        if self.prior is not None:
            covariance = covariance + self.prior.factor[rows] @ self.prior.factor[self.at].T
        return covariance


def _models(losses: Losses, prior: Prior | None, level: float, spread: float, size: int) -> list[_Model]:
    same = (losses.seeds[:, None] == losses.seeds[None, :]).astype(np.float64)
    variances = SEED_VARIANCES if len(np.unique(losses.seeds)) > 1 else (0.0,)
    models = []
    for given, seed_variance in itertools.product((None,) if prior is None else (None, prior), variances):
        mean = np.zeros(size) if given is None else given.mean - given.mean[losses.at].mean()
        scale = 1.0 if given is None else AMPLITUDE_ABOUT_A_PRIOR
        models.append(
            _Model(
                at=losses.at,
                residual=losses.values - level - mean[losses.at],
                known=losses.known,
                noise_shape=np.eye(len(losses.at)) + seed_variance * same,
                constant=CONSTANT_SPREADS * spread,
                amplitudes=scale * spread * np.asarray(AMPLITUDES),
                mean=mean,
                prior=given,
            )
        )
    return models


def _coordinates(points: Floats, arcsine: bool) -> Floats:
    shares = with_natural(points)
    return np.asarray(np.arcsin(np.sqrt(shares.clip(0.0, 1.0))) if arcsine else shares)


def _distances(coordinates: Floats) -> Floats:
    squared = np.zeros((len(coordinates), len(coordinates)))
    for column in coordinates.T:
        squared += (column[:, None] - column[None, :]) ** 2
    distances: Floats = np.sqrt(squared)
    return distances


def _kernel(distances: Floats, length: float) -> Floats:
    kernel: Floats = np.exp(-0.5 * (distances / length) ** 2)
    return kernel


def allocate(weights: Floats, total: int) -> NDArray[np.int64]:
    """Share `total` draws out by weight, without randomness: each count is within one of weight x total."""
    edges = np.floor(np.cumsum(weights.ravel()) / weights.sum() * total + 0.5).astype(np.int64)
    return np.diff(np.concatenate([[0], edges])).reshape(weights.shape)


def _factor(kernel: Floats) -> Floats:
    values, vectors = np.linalg.eigh(kernel)
    factor: Floats = vectors * np.sqrt(values.clip(min=0.0))
    return factor


def _single_valley(surfaces: Floats, beside: Places) -> NDArray[np.bool_]:
    """Return which surfaces [N, G] have one valley: from everywhere but the minimum a step leads further down."""
    down = np.zeros(surfaces.shape, dtype=bool)
    for column in beside.T:
        down |= surfaces[:, column] < surfaces
    return np.asarray((~down).sum(axis=1) == 1)
