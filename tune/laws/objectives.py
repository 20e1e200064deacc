"""What a fit minimises. The optimum depends on it, so it has a name and is part of every result.

`huber_log`  sum of Huber_delta(log L_hat - log L); Hoffmann et al. 2022 with delta = 1e-3
`l1_log`     sum of |log L_hat - log L|; the limit of a Huber likelihood with a free scale
`mse_log`    sum of (log L_hat - log L)^2
`mse`        sum of (L_hat - L)^2, in squared nats per token

All are sums over rows, never means: a mean of a few 1e-6 stops a solver's default tolerances too early.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from synth.errors import UserError
from tune.laws.law import Floats

OBJECTIVES = ("huber_log", "l1_log", "mse", "mse_log")


@dataclass(frozen=True)
class Objective:
    """A sum over rows of a function of the predicted and the measured log loss."""

    name: str
    delta: float | None = None
    """Corner of the Huber function on log residuals (huber_log); of its smoothing, inside the solver (l1_log)."""

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise UserError(f"there is no objective {self.name!r}; known objectives: {', '.join(OBJECTIVES)}")
        if self.name == "huber_log" and (self.delta is None or self.delta <= 0):
            raise UserError(f"huber_log needs a positive huber_delta, not {self.delta!r}")

    def rows(self, log_prediction: Floats, log_loss: Floats) -> tuple[Floats, Floats]:
        """Return the value of each row and its derivative by the log prediction, both of the broadcast shape."""
        if self.name == "mse":
            prediction = np.exp(log_prediction)
            residual = prediction - np.exp(log_loss)
            return residual**2, 2.0 * residual * prediction
        residual = log_prediction - log_loss
        if self.name == "mse_log":
            return residual**2, 2.0 * residual
        if self.delta is None:
            return np.abs(residual), np.sign(residual)
        clipped = np.minimum(np.maximum(residual, -self.delta), self.delta)
        value = clipped * (residual - 0.5 * clipped)
        return (value, clipped) if self.name == "huber_log" else (value / self.delta, clipped / self.delta)

    def smoothed(self, delta: float) -> Objective:
        """Return l1_log with its corner rounded over +-delta: within n * delta / 2 of it, and differentiable."""
        return replace(self, delta=delta)
