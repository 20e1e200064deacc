"""Ranking mixtures of many sources: a regression of the loss on the shares, after RegMix (Liu et al. 2024, arXiv 2407.01492).

A Gaussian process of log L over the square roots of the shares, in which small shares, where losses bend hardest, lie
further apart; a squared-exponential kernel with a length scale of its own for every source (Rasmussen & Williams 2006,
section 5.1), so that a source that does not matter drops out; length scales, amplitude and noise at the maximum of the
marginal likelihood (their eq. 5.9) times log-normal priors on the length scales.

RegMix takes gradient-boosted trees. On its own 512 runs of 1M parameters the process ranks the 256 held-out ones better
than the published trees in each of 13 domains, and better than trees tuned here (docs/scaling-laws.md); the exponential
mixing law ranks worse than both. It answers inside the mixtures it has seen, and costs n^3: meant for up to some 2,000 runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from synth.errors import UserError
from tune.laws.law import Floats

ITERATIONS = 60
"""Steps of the optimiser, after which the order of predictions no longer moves."""
CONSTANT_VARIANCE = 100.0
"""Prior variance of the constant, in variances of the log losses: wide enough not to matter."""
LOG_RATE, LOG_RATE_SD = -1.5, 1.5
"""Prior of the log of a rate, in one over standard deviations of the roots of its source's shares: length scales of
about 4.5 of these, from 0.2 to 90."""
LOG_NOISE_START = float(np.log(0.05))
JITTER = 1e-8


@dataclass(frozen=True)
class MixtureRegressor:
    """A fitted regression of a loss on the shares of sources."""

    sources: tuple[str, ...]
    rates: Floats = field(repr=False)
    """[k] one over the length scale of each source, in roots of shares; near 0 for one that does not matter."""
    noise: float
    """Standard deviation of a log loss around the regression."""
    _seen: Floats = field(repr=False)
    _weights: Floats = field(repr=False)
    _level: float = field(repr=False)
    _variance: float = field(repr=False)

    @classmethod
    def fit(cls, sources: Sequence[str], shares: ArrayLike, loss: ArrayLike) -> MixtureRegressor:
        """Fit to shares [n, k] of sources [k] and losses [n], nats per token.

        Raises UserError with fewer runs than it has parameters to find, or a loss or share that cannot be one.
        """
        x, y = np.asarray(shares, dtype=np.float64), np.asarray(loss, dtype=np.float64)
        _check(sources, x, y)
        roots = np.sqrt(x)
        spread = np.where(roots.std(axis=0) > 0.0, roots.std(axis=0), 1.0)
        level, scale = float(np.log(y).mean()), float(np.log(y).std())
        target = (np.log(y) - level) / scale
        parameters = _maximise(_Evidence.of(roots / spread, target))
        rates = np.exp(parameters[:-2]) / spread
        variance, noise = np.exp(2.0 * parameters[-2:])
        covariance = variance * _kernel(roots * rates, roots * rates) + CONSTANT_VARIANCE
        covariance[np.diag_indices(len(y))] += noise + JITTER
        weights = np.linalg.solve(covariance, target) * scale
        return cls(tuple(sources), rates, scale * float(noise**0.5), roots, weights, level, float(variance))

    def predict(self, shares: ArrayLike) -> Floats:
        """Return the losses of mixtures [m, k], [m], nats per token."""
        roots = np.sqrt(np.asarray(shares, dtype=np.float64))
        covariance = self._variance * _kernel(roots * self.rates, self._seen * self.rates) + CONSTANT_VARIANCE
        return np.asarray(np.exp(covariance @ self._weights + self._level))


def _check(sources: Sequence[str], x: Floats, y: Floats) -> None:
    if x.shape != (len(y), len(sources)):
        raise UserError(
            f"shares of shape {x.shape} for {len(y)} losses and {len(sources)} sources: give one row a run"
        )
    for name, values, good in (
        ("share", x, (x >= 0.0) & (x <= 1.0)),
        ("loss", y, np.isfinite(y) & (y > 0.0)),
    ):
        if not good.all():
            row = int(np.argwhere(~good)[0][0]) + 1
            raise UserError(f"row {row} holds a {name} that cannot be one: {values[~good][0]:g}")
    if len(y) < len(sources) + 3:
        raise UserError(
            f"{len(y)} runs are too few to learn a ranking of mixtures of {len(sources)} sources from: train at least "
            f"{len(sources) + 3}"
        )


@dataclass(frozen=True)
class _Evidence:
    """Negative log marginal likelihood and prior, as functions of log rates [k], log amplitude and log noise."""

    squares: Floats
    """[k, n, n] squared differences by source."""
    target: Floats
    """[n]"""

    @classmethod
    def of(cls, roots: Floats, target: Floats) -> _Evidence:
        return cls(np.stack([(column[:, None] - column[None, :]) ** 2 for column in roots.T]), target)

    def __call__(self, parameters: Floats) -> tuple[float, Floats]:
        """Return the value and its gradient, [k + 2]."""
        n = len(self.target)
        weights = np.exp(2.0 * parameters[:-2])
        amplitude, noise = np.exp(2.0 * parameters[-2:])
        signal = amplitude * np.exp(-0.5 * np.tensordot(weights, self.squares, 1))
        covariance = signal + CONSTANT_VARIANCE
        covariance[np.diag_indices(n)] += noise + JITTER
        inverse = np.linalg.inv(covariance)
        solved = inverse @ self.target
        off = (parameters[:-2] - LOG_RATE) / LOG_RATE_SD
        value = 0.5 * float(self.target @ solved + np.linalg.slogdet(covariance)[1] + off @ off)
        slope = 0.5 * (inverse - np.outer(solved, solved))
        towards = slope * signal
        gradient = np.empty_like(parameters)
        gradient[:-2] = off / LOG_RATE_SD - weights * np.einsum("kij,ij->k", self.squares, towards)
        gradient[-2:] = 2.0 * towards.sum(), 2.0 * noise * np.trace(slope)
        return value, gradient


def _maximise(evidence: _Evidence) -> Floats:
    from scipy.optimize import minimize  # loaded here: slow to load, and only this needs it

    start = np.array([*np.full(len(evidence.squares), LOG_RATE), 1.0, LOG_NOISE_START])
    found: Any = minimize(evidence, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    return np.asarray(found.x)


def _kernel(left: Floats, right: Floats) -> Floats:
    squared = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2.0 * left @ right.T
    return np.asarray(np.exp(-0.5 * squared.clip(min=0.0)))
