"""A law, rows and an objective, ready to be minimised: values, gradients, Hessians for many parameter vectors at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from tune.laws.law import Floats, Indices, Law, Terms
from tune.laws.objectives import Objective

CACHE_ELEMENTS = 60_000
"""Parameter vectors x rows evaluated in one go: what fits a processor core's own cache is a third faster."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One fit, or a batch of resampled fits that share a law and its inputs.

    `log_loss` and `weights` are [n], or [S, n] with a row for each member of the batch.
    """

    law: Law
    objective: Objective
    terms: Terms
    centre: Mapping[str, float]
    log_loss: Floats
    weights: Floats | None = None
    log_level: float = field(default=0.0)
    """Median log loss: where starts and bounds of the coefficients count from."""

    @classmethod
    def of(
        cls, law: Law, rows: Mapping[str, ArrayLike], objective: Objective, weights: Floats | None = None
    ) -> Problem:
        """Bind a law to rows: columns of the law's inputs and `loss`, each [n] and positive."""
        centre = law.centre(rows)
        log_loss = np.log(np.asarray(rows["loss"], dtype=np.float64))
        terms = law.bind(law.columns(rows, centre))
        return cls(law, objective, terms, centre, log_loss, weights, float(np.median(log_loss)))

    def resampled(self, log_loss: Floats | None = None, weights: Floats | None = None) -> Problem:
        """Return the same problem with other losses or weights, [S, n] each."""
        return replace(self, log_loss=self.log_loss if log_loss is None else log_loss, weights=weights)

    def smoothed(self, delta: float) -> Problem:
        """Return the problem with the corner of its absolute value rounded over +-delta."""
        return replace(self, objective=self.objective.smoothed(delta))

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the box the solver stays in, two [p]."""
        return self.law.bounds(self.log_level)

    def value_and_gradient(self, theta: Floats, member: Indices | None = None) -> tuple[Floats, Floats]:
        """Return the objective [S] and its gradient [S, p] at theta [S, p].

        `member` says, for batched data, which row of `log_loss` and `weights` each vector belongs to.
        """
        size = max(1, CACHE_ELEMENTS // self.log_loss.shape[-1])
        if len(theta) <= size:
            return self._value_and_gradient(theta, member)
        members = range(len(theta)) if member is None else member
        pieces = [
            self._value_and_gradient(theta[i : i + size], np.asarray(members[i : i + size]))
            for i in range(0, len(theta), size)
        ]
        return np.concatenate([value for value, _ in pieces]), np.concatenate(
            [gradient for _, gradient in pieces]
        )

    def value(self, theta: Floats) -> float:
        """Return the objective at one theta [p]."""
        return float(self.value_and_gradient(theta[None])[0][0])

    def gradient_scale(self, theta: Floats) -> float:
        """Return the size the gradient at theta [p] would have if no two rows pulled against each other."""
        _, slope = self.objective.rows(self.terms.log_prediction(theta[None])[0], self.log_loss)
        pull = np.abs(slope if self.weights is None else slope * self.weights)
        return float(np.linalg.norm(pull @ np.abs(self.terms.jacobian(theta[None])[0])))

    def _value_and_gradient(self, theta: Floats, member: Indices | None) -> tuple[Floats, Floats]:
        log_terms, pull_back = self.terms.linearise(theta)
        parts = [np.exp(term) for term in log_terms]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        value, slope = self.objective.rows(np.log(total), _of(self.log_loss, member))
        if self.weights is not None:
            weights = _of(self.weights, member)
            value, slope = value * weights, slope * weights
        slope = slope / total
        return value.sum(axis=1), pull_back([slope * part for part in parts])

    def hessian(self, theta: Floats, step: float = 1e-5) -> Floats:
        """Return the symmetric Hessian [p, p] at theta [p], by central differences of the analytic gradient."""
        offsets = step * np.eye(len(theta))
        _, gradients = self.value_and_gradient(np.concatenate([theta + offsets, theta - offsets]))
        raw = (gradients[: len(theta)] - gradients[len(theta) :]) / (2.0 * step)
        return np.asarray((raw + raw.T) / 2.0)


def _of(data: Floats, member: Indices | None) -> Floats:
    if data.ndim == 1:
        return data
    return data if member is None else data[member]
