"""What the cells that are done say of the next one: a mixing law whose coefficients move with size and budget.

    log L(w; N, D) = c_cell + sum_j phi_j(w) (t_j + u_j log(N / N0) + v_j log(D / D0))

w are the shares of the synthetic sources, phi_j their first and second powers and products (the quadratic mixture
polynomial of Scheffe, "Experiments with mixtures", 1958), N0 and D0 the size and budget of the cell to come, L nats per
token. The level c of every cell and seed is free, so that nothing is assumed of how the loss falls with N and D. It is
a Bayesian linear regression: normal priors on t, and narrower ones on the drifts u and v, keep it sensible with a
single cell, where it is that cell's own curve, and let it follow a drift of the optimum once several cells show one.

It steers what a cell tries and is in no cell's answer: a recommendation combines the cells itself, and would count the
same losses twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tune.surface import NOISE_MEDIAN, Floats, Losses, Prior

SHAPE_SPREADS = 10.0
"""Prior standard deviation of t, in spreads of the log losses of a cell over its mixtures: hardly any."""
DRIFT_SPREADS = 0.5
"""Prior standard deviation of u and v for a factor e of N or D, in the same unit."""
SPARE_LOSSES = 2
"""Losses beyond one for each t and each level that it takes to say anything."""


@dataclass(frozen=True)
class Donor:
    """One cell that is done, as the next one sees it; n losses."""

    log_size: float
    """log(N / N0)."""
    log_budget: float
    """log(D / D0)."""
    shares: Floats
    """[n, K] mixtures."""
    seeds: NDArray[np.int64]
    """[n] which seed each loss is of."""
    losses: Floats
    """[n] nats per token."""


@dataclass(frozen=True)
class Transfer:
    """The law at the cell to come, but for its level."""

    log_shape: Floats
    """[G] mean of log L over the mixtures of the cell, up to a constant."""
    log_factor: Floats
    """[G, m] F; the covariance is F F^T."""

    @property
    def best_index(self) -> int:
        """Place of the mixture with the lowest loss by the law."""
        return int(self.log_shape.argmin())

    def prior(self, losses: Losses) -> Prior:
        """Return it in nats per token, at the level of a cell's own losses."""
        at_losses = self.log_shape[losses.at]
        mean = np.exp(self.log_shape - at_losses.mean() + np.log(losses.values).mean())
        return Prior(mean, mean[:, None] * self.log_factor)


def fit_transfer(points: Floats, donors: Sequence[Donor]) -> Transfer | None:
    """Return the law at a cell with the mixtures `points` [G, K]; None when the donors have too few losses for one."""
    levels = [donor.seeds == seed for donor in donors for seed in np.unique(donor.seeds)]
    shapes = [_shape(donor.shares) for donor in donors]
    num_losses, num_shapes = sum(map(len, shapes)), _shape(points).shape[1]
    if num_losses < num_shapes + len(levels) + SPARE_LOSSES:
        return None
    log_losses = np.concatenate([np.log(donor.losses) for donor in donors])
    spread = max(*(float(np.ptp(np.log(donor.losses))) for donor in donors), 10.0 * NOISE_MEDIAN)
    design = _centred(
        np.concatenate(
            [
                np.hstack([shape, donor.log_size * shape, donor.log_budget * shape])
                for donor, shape in zip(donors, shapes, strict=True)
            ]
        ),
        donors,
    )
    target = _centred(log_losses[:, None], donors)[:, 0]
    scale = spread * np.repeat([SHAPE_SPREADS, DRIFT_SPREADS, DRIFT_SPREADS], num_shapes)
    noise = NOISE_MEDIAN
    for _ in range(3):  # the noise from what the law leaves over, the law from the noise
        precision = design.T @ design / noise**2 + np.diag(scale**-2.0)
        covariance = np.linalg.inv(precision)
        coefficients = covariance @ design.T @ target / noise**2
        used = float(np.trace(design @ covariance @ design.T)) / noise**2
        left = float(np.sum((target - design @ coefficients) ** 2))
        noise = max((left / max(num_losses - len(levels) - used, 1.0)) ** 0.5, 0.1 * NOISE_MEDIAN)
    at_cell = _shape(points)
    factor = at_cell @ np.linalg.cholesky(covariance[:num_shapes, :num_shapes])
    return Transfer(at_cell @ coefficients[:num_shapes], factor)


def _shape(shares: Floats) -> Floats:
    """Return first powers, squares and products of the shares [n, K], [n, K + K (K + 1) / 2]."""
    pairs = itertools.combinations_with_replacement(range(shares.shape[1]), 2)
    return np.column_stack([shares, *(shares[:, i] * shares[:, j] for i, j in pairs)])


def _centred(columns: Floats, donors: Sequence[Donor]) -> Floats:
    """Return columns less their means over each donor's losses of one seed, which takes the free levels out."""
    centred = columns.copy()
    start = 0
    for donor in donors:
        for seed in np.unique(donor.seeds):
            rows = start + np.flatnonzero(donor.seeds == seed)
            centred[rows] -= centred[rows].mean(axis=0)
        start += len(donor.losses)
    return centred
