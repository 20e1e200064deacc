"""Thousands of small minimisations in lockstep: projected BFGS with full matrices, in numpy alone.

Each row of a batch has its own point, inverse Hessian and line search; one evaluation of the objective serves all
rows still at work, whether they begin a step or shorten one, and rows that are done leave the batch.
A multi-start runs the whole grid for a few evaluations, keeps the best part of it, and carries those to the end; a sample of
the grid is carried to the end whatever became of it, because the survivors of a race say nothing of what a start reaches.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np

from tune.laws.law import Floats, Indices
from tune.laws.objectives import Objective
from tune.laws.problem import Problem

ARMIJO = 1e-4
FIRST_MOVE = 0.25
"""Length of the first step, in solver coordinates: a fraction of an exponent, or of the logarithm of a coefficient."""
SHORTEST_STEP = 1e-12
PRUNINGS = ((4, 1 / 3), (5, 0.15))
"""Rounds of a multi-start: evaluations each start still in the race gets, then the fraction of them that goes on."""
KEPT_AT_LEAST = 32
SMOOTHINGS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""Corners of the rounded absolute value, in log residuals, by which l1_log is approached."""


class Minimisable(Protocol):
    """What can be minimised: a fit, or a fit with something held."""

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        ...

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the box, two [p]."""
        ...

    def value_and_gradient(self, theta: Floats, member: Indices | None = None) -> tuple[Floats, Floats]:
        """Return values [S] and gradients [S, p]."""
        ...

    def smoothed(self, delta: float) -> Self:
        """Return the same with the corner of an absolute value rounded."""
        ...


@dataclass(frozen=True)
class Minima:
    """Where each row of a batch ended."""

    theta: Floats
    """[S, p]"""
    value: Floats
    """[S]"""
    evaluations: int
    """Evaluations of the objective, all rows added."""
    watched: Floats = field(default_factory=lambda: np.empty(0))
    """[W] values reached by starts taken evenly from the whole grid of a multi-start, those that lost the race included."""

    @property
    def best(self) -> int:
        """Row with the lowest value."""
        return int(np.argmin(self.value))


class _Descent:
    """State of a batch on its way down."""

    def __init__(self, problem: Minimisable, theta: Floats, batched: bool, tolerance: float) -> None:
        self.problem, self.tolerance = problem, tolerance
        self.low, self.high = problem.bounds()
        size, p = theta.shape
        self.member = np.arange(size) if batched else None
        self.theta = np.clip(theta, self.low, self.high)
        self.value, self.gradient = problem.value_and_gradient(self.theta, self.member)
        self.inverse = np.tile(np.eye(p), (size, 1, 1))
        self.fresh = np.ones(size, dtype=bool)
        self.length = np.ones(size)
        self.direction = np.zeros_like(self.theta)
        self.evaluations = size
        self.active = np.arange(size)
        self._aim(self.active)

    def run(self, evaluations: int) -> None:
        """Advance so many times, or until no row is active."""
        for _ in range(evaluations):
            if not len(self.active):
                break
            self.advance()

    def advance(self) -> None:
        """Try one point for every active row; accept it or shorten the step."""
        rows = self.active
        trial = np.clip(
            self.theta[rows] + self.length[rows, None] * self.direction[rows], self.low, self.high
        )
        value, gradient = self.problem.value_and_gradient(trial, rows if self.member is not None else None)
        self.evaluations += len(rows)
        step = trial - self.theta[rows]
        promised = np.einsum("sp,sp->s", self.gradient[rows], step)
        good = value <= self.value[rows] + ARMIJO * promised
        good &= np.isfinite(value) & (value < self.value[rows])
        self._accept(rows[good], trial[good], value[good], gradient[good], step[good])
        bad = ~good
        self._shorten(rows[bad], value[bad], promised[bad])

    def _accept(self, rows: Indices, theta: Floats, value: Floats, gradient: Floats, step: Floats) -> None:
        change = gradient - self.gradient[rows]
        self.theta[rows], self.value[rows], self.gradient[rows] = theta, value, gradient
        curvature = np.einsum("sp,sp->s", step, change)
        size = np.linalg.norm(step, axis=1) * np.linalg.norm(change, axis=1)
        useful = curvature > 1e-10 * size
        self._update(rows[useful], step[useful], change[useful], curvature[useful])
        self._aim(rows)

    def _update(self, rows: Indices, step: Floats, change: Floats, curvature: Floats) -> None:
        """Apply the BFGS formula to the inverse Hessians of these rows."""
        inverse = self.inverse[rows]
        first = self.fresh[rows]
        scale = curvature[first] / np.einsum("sp,sp->s", change[first], change[first])
        inverse[first] *= scale[:, None, None]
        self.fresh[rows] = False
        rho = 1.0 / curvature
        moved = np.einsum("spq,sq->sp", inverse, change)
        quadratic = np.einsum("sp,sp->s", change, moved)
        outer = step[:, :, None] * moved[:, None, :]
        inverse -= rho[:, None, None] * (outer + outer.transpose(0, 2, 1))
        inverse += (rho * (1.0 + rho * quadratic))[:, None, None] * (step[:, :, None] * step[:, None, :])
        self.inverse[rows] = inverse

    def _aim(self, rows: Indices) -> None:
        """Set the next direction of these rows; those with nowhere left to go leave the batch."""
        gradient, theta = self.gradient[rows], self.theta[rows]
        held = ((theta <= self.low) & (gradient > 0)) | ((theta >= self.high) & (gradient < 0))
        gradient = np.where(held, 0.0, gradient)
        norm = np.linalg.norm(gradient, axis=1)
        direction = np.where(held, 0.0, -np.einsum("spq,sq->sp", self.inverse[rows], gradient))
        slope = np.einsum("sp,sp->s", direction, gradient)
        # Leaving out held coordinates can turn a direction uphill: begin again from the steepest descent.
        uphill = slope > -1e-10 * norm * np.linalg.norm(direction, axis=1)
        direction[uphill], slope[uphill] = -gradient[uphill], -(norm[uphill] ** 2)
        self._forget(rows[uphill])
        fresh = self.fresh[rows]
        self.direction[rows] = direction
        self.length[rows] = np.where(fresh, FIRST_MOVE / np.where(norm > 0, norm, 1.0), 1.0)
        promising = -slope > self.tolerance * np.abs(self.value[rows])
        self._leave(rows[(norm == 0.0) | ~(fresh | promising)])

    def _shorten(self, rows: Indices, value: Floats, promised: Floats) -> None:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            best = -promised / (2.0 * (value - self.value[rows] - promised))
        self.length[rows] *= np.where(np.isfinite(best), np.clip(best, 0.1, 0.5), 0.1)
        stuck = self.length[rows] * np.linalg.norm(self.direction[rows], axis=1) < SHORTEST_STEP
        once_more = stuck & ~self.fresh[rows]
        self._leave(rows[stuck & ~once_more])
        if once_more.any():
            self._forget(rows[once_more])
            self._aim(rows[once_more])

    def _forget(self, rows: Indices) -> None:
        """Start these rows' inverse Hessians afresh."""
        self.inverse[rows] = np.eye(self.theta.shape[1])
        self.fresh[rows] = True

    def _leave(self, rows: Indices) -> None:
        if len(rows):
            self.active = self.active[~np.isin(self.active, rows)]


@dataclass(frozen=True)
class Effort:
    """How far a minimisation is carried."""

    evaluations: int
    """Most evaluations of each start."""
    tolerance: float
    """Stop when the next step promises less than this fraction of the objective."""
    watched: int = 0
    """Starts of a multi-start, spread evenly over its grid, that are carried to the end whatever the race says of them."""


TO_AN_OPTIMUM = Effort(600, 1e-12)
"""Near enough to tell which optimum a start belongs to; the best one is polished to the last digit."""
WATCHING = replace(TO_AN_OPTIMUM, watched=100)
"""The same, and a sample of the grid that says how many of all starts reach the optimum, to within ten points of a hundred."""
FOR_A_PREDICTION = Effort(120, 1e-8)
"""A fit made only to predict what was left out; where few rows are left, most starts would wander a flat floor for ever."""
FOR_A_RESAMPLE = Effort(200, 1e-9)
"""A resample's optimum is needed to a small part of the spread of all of them, not to the last digit."""


def descend(
    problem: Minimisable, theta: Floats, *, effort: Effort = TO_AN_OPTIMUM, batched: bool = False
) -> Minima:
    """Minimise from each of theta [S, p] within the law's bounds.

    `batched` says that the problem's losses or weights have one row for each start.
    """
    state = _Descent(problem, theta, batched, effort.tolerance)
    state.run(effort.evaluations)
    return Minima(state.theta, state.value, state.evaluations)


def minimise_from(
    problem: Minimisable, theta: Floats, *, effort: Effort = TO_AN_OPTIMUM, batched: bool = False
) -> Minima:
    """Minimise from each start; an absolute-value objective through ever sharper smoothings of it."""
    if problem.objective.name != "l1_log":
        return descend(problem, theta, effort=effort, batched=batched)
    evaluations = 0
    for delta in SMOOTHINGS:
        found = descend(problem.smoothed(delta), theta, effort=effort, batched=batched)
        theta, evaluations = found.theta, evaluations + found.evaluations
    value, _ = problem.value_and_gradient(theta, np.arange(len(theta)) if batched else None)
    return Minima(theta, value, evaluations)


def multi_start(problem: Problem, starts: Floats, effort: Effort = TO_AN_OPTIMUM) -> Minima:
    """Minimise from a grid of starts [S, p]: a few evaluations for all, then the best of them to the end.

    Returns the ends of the starts that were carried to the end: those of the race, and the effort's watched ones.
    """
    smooth = problem.smoothed(SMOOTHINGS[0]) if problem.objective.name == "l1_log" else problem
    state = _Descent(smooth, starts, False, effort.tolerance)
    racing = np.arange(len(starts))
    watched = np.unique(np.linspace(0, len(starts) - 1, min(effort.watched, len(starts))).round().astype(int))
    for evaluations, fraction in PRUNINGS:
        state.run(evaluations)
        keep = min(len(racing), max(KEPT_AT_LEAST, round(fraction * len(racing))))
        racing = racing[np.argsort(state.value[racing], kind="stable")[:keep]]
        state.active = np.intersect1d(state.active, np.union1d(racing, watched))
    state.run(effort.evaluations)
    if problem.objective.name != "l1_log":
        ended = np.union1d(racing, watched)
        return Minima(state.theta[ended], state.value[ended], state.evaluations, state.value[watched])
    best = racing[np.argsort(state.value[racing], kind="stable")[:KEPT_AT_LEAST]]
    ended = np.union1d(best, watched)
    found = minimise_from(problem, state.theta[ended], effort=effort)
    reached = found.value[np.searchsorted(ended, watched)]
    return Minima(found.theta, found.value, state.evaluations + found.evaluations, reached)
