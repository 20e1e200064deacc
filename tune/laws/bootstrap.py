"""How sure: the same fit on resampled runs.

Two methods, chosen by how many runs there are and named in every result:

`pairs`       whole runs (all their rows together) are drawn again with replacement. Needs no model of the noise, but
              many more runs than parameters: with five points, most draws hold fewer distinct points than parameters.
`parametric`  for few runs: new losses are drawn around the fitted curve, log-normal, with the noise seen in the
              residuals. The noise itself is only known from a few degrees of freedom, so each draw first draws the
              noise from its own uncertainty (scaled inverse chi-squared); the fewer the points, the wider the
              intervals. One error for all rows of a run. With no degree of freedom left there is no interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tune.laws.law import Floats, Indices
from tune.laws.minimise import FOR_A_RESAMPLE, minimise_from
from tune.laws.problem import Problem

PAIRS_RUNS_PER_PARAMETER = 6
"""Runs per parameter from which resampling whole runs is sound."""
BATCH_ELEMENTS = 2_000_000
"""Resamples x rows held in memory at once."""


@dataclass(frozen=True)
class Noise:
    """Run-to-run noise of the log loss, and how well it is known."""

    standard_deviation: float
    degrees_of_freedom: int

    @classmethod
    def pooled(cls, parts: list[Noise]) -> Noise | None:
        """Return the common noise of several fits of one law; None when no degree of freedom is left in any."""
        degrees = sum(part.degrees_of_freedom for part in parts)
        if degrees <= 0:
            return None
        squares = sum(part.standard_deviation**2 * part.degrees_of_freedom for part in parts)
        return cls(float(np.sqrt(squares / degrees)), degrees)


def residual_noise(residual: Floats, run: Indices, num_parameters: int) -> Noise:
    """Return the noise in log residuals [n], whose rows belong to runs numbered from 0: one mean residual a run."""
    means = np.bincount(run, weights=residual) / np.bincount(run)
    degrees = max(len(means) - num_parameters, 0)
    return Noise(float(np.sqrt(np.sum(means**2) / degrees)) if degrees else 0.0, degrees)


def method_for(num_runs: int, num_parameters: int) -> str:
    """Return the name of the method that is sound for so many runs."""
    return "pairs" if num_runs >= PAIRS_RUNS_PER_PARAMETER * num_parameters else "parametric"


def resampled_weights(run: Indices, samples: int, seed: int) -> Floats:
    """Return how often each row occurs when whole runs are drawn with replacement, [samples, n].

    Uses numpy's legacy generator on purpose: its stream is frozen, so a published bootstrap that called
    `np.random.seed(seed)` and `np.random.choice` is repeated draw by draw.
    """
    num_runs = int(run.max()) + 1
    state = np.random.RandomState(seed)
    counts = np.stack(
        [np.bincount(state.choice(num_runs, num_runs), minlength=num_runs) for _ in range(samples)]
    )
    return counts[:, run].astype(np.float64)


def pairs_bootstrap(problem: Problem, starts: Floats, run: Indices, samples: int, seed: int) -> Floats:
    """Return the optimum of each resample, [samples, p], the best from each of starts [k, p]."""
    weights = resampled_weights(run, samples, seed)
    return _refit(problem, starts, np.broadcast_to(problem.log_loss, weights.shape), weights)


def parametric_bootstrap(
    problem: Problem, starts: Floats, run: Indices, noise: Noise, samples: int, seed: int
) -> Floats:
    """Return the optimum of each simulated set of losses, [samples, p], the best from each of starts [k, p]."""
    state = np.random.RandomState(seed)
    spread = noise.standard_deviation * np.sqrt(
        noise.degrees_of_freedom / state.chisquare(noise.degrees_of_freedom, size=samples)
    )
    errors = spread[:, None] * state.standard_normal((samples, int(run.max()) + 1))
    curve = problem.terms.log_prediction(starts[:1])[0]
    return _refit(problem, starts, curve + errors[:, run], None)


def _refit(problem: Problem, starts: Floats, log_loss: Floats, weights: Floats | None) -> Floats:
    size = max(1, BATCH_ELEMENTS // log_loss.shape[1])
    found = np.empty((len(log_loss), starts.shape[1]))
    for first in range(0, len(log_loss), size):
        part = slice(first, first + size)
        batch = problem.resampled(log_loss[part], None if weights is None else weights[part])
        count = len(log_loss[part])
        ends = [
            minimise_from(batch, np.tile(start, (count, 1)), effort=FOR_A_RESAMPLE, batched=True)
            for start in starts
        ]
        best = np.argmin(np.stack([end.value for end in ends]), axis=0)
        found[part] = np.stack([end.theta for end in ends])[best, np.arange(count)]
    return found
