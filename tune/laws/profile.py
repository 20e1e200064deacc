"""Profile likelihood: how well each parameter is determined when all others may follow it.

One parameter is held at a value and the objective is minimised over the others. Its rise, scaled, is compared with
the F distribution of 1 and n - p degrees of freedom. For squared errors of equal size that is the usual profile
likelihood. Huber and absolute errors are no likelihoods, residuals differ in size, and rows of one run belong
together; so the scale is 2 (c' H^-1 c) / (c' H^-1 B H^-1 c) for the parameter c' theta, with H the mean Hessian and B
the sum over runs of the outer product of their gradients (the adjustment of Chandler and Bate 2007, which is the
robust likelihood ratio of Ronchetti 1982 when all rows are alike). With few runs H and B are their expectation under
the noise pooled over all fits of the law.

Where the profile stays below the level up to the end of what is looked at, that side has no limit: the data cannot
tell a large value from a larger one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tune.laws.bootstrap import Noise
from tune.laws.law import Floats, Indices, Law
from tune.laws.minimise import Effort, minimise_from
from tune.laws.objectives import Objective
from tune.laws.problem import Problem
from tune.results import Profile

STEPS = 10
"""Values looked at on each side of the optimum, per round."""
ROUNDS = 5
"""Times a side is looked at twice as far when the profile has not reached the level."""
EMPIRICAL_RUNS = 30
"""With this many degrees of freedom the rows themselves say how steep and how noisy their pulls are."""
WEAK_RATIO = 3.0
"""An exponent or a scale that may be this many times as large at one end as at the other is weakly identified."""
WEAK_FLOOR_FRACTION = 0.25
"""So is an irreducible loss that may vary by this fraction of the lowest measured loss."""
FLATTEST = 1e-13
"""Smallest eigenvalue of a Hessian, as a fraction of the largest, that is more than rounding."""
EFFORT = Effort(200, 1e-8)


@dataclass(frozen=True, eq=False)
class Held:
    """A problem in which one combination of parameters is held, a value for each row of a batch.

    `combination` [p] says what is held, v = combination @ theta; `pivot` is the coordinate that is solved for.
    """

    inner: Problem
    combination: Floats
    pivot: int
    held: Floats
    """[S] values of v."""

    @property
    def objective(self) -> Objective:
        """The inner problem's objective."""
        return self.inner.objective

    def smoothed(self, delta: float) -> Held:
        """Return the problem with the corner of its absolute value rounded over +-delta."""
        return replace(self, inner=self.inner.smoothed(delta))

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the box of the free coordinates, two [p - 1]."""
        low, high = self.inner.bounds()
        return np.delete(low, self.pivot), np.delete(high, self.pivot)

    def whole(self, free: Floats, member: Indices | None) -> Floats:
        """Return theta [S, p] from its free coordinates [S, p - 1]."""
        held = self.held if member is None else self.held[member]
        rest = np.delete(self.combination, self.pivot)
        solved = (held - free @ rest) / self.combination[self.pivot]
        return np.insert(free, self.pivot, solved, axis=1)

    def value_and_gradient(self, free: Floats, member: Indices | None = None) -> tuple[Floats, Floats]:
        """Return the objective [S] and its gradient by the free coordinates [S, p - 1]."""
        value, gradient = self.inner.value_and_gradient(self.whole(free, member))
        rest = np.delete(self.combination, self.pivot)
        through = gradient[:, [self.pivot]] / self.combination[self.pivot]
        return value, np.delete(gradient, self.pivot, axis=1) - through * rest


def profiles_of(
    problem: Problem, theta: Floats, run: Indices, noise: Noise | None, lowest_loss: float, confidence: float
) -> dict[str, Profile]:
    """Return the profile of every exponent, irreducible loss, scale and slope at the optimum theta [p].

    Coefficients follow their exponents and have none. Empty when nothing says how large the noise is.
    """
    found = deviance_scale(problem, theta, run, noise)
    if found is None:
        return {}
    scale, degrees = found
    from scipy.special import stdtrit  # loaded here: slow to load, and reading a fit needs none

    level = float(stdtrit(degrees, (1.0 + confidence) / 2.0)) ** 2
    law = problem.law
    lines = [_Line(problem, theta, i, scale, level) for i in range(len(theta))]
    return {
        law.names[line.index]: _profile(line, lowest_loss)
        for line in lines
        if law.parameters[line.index].kind != "coefficient"
    }


@dataclass(frozen=True, eq=False)
class Scale:
    """What turns a rise of the objective into a deviance, by parameter."""

    hessian: Floats
    """H [p, p]."""
    variance: Floats
    """H^-1 B H^-1 [p, p], the covariance of theta."""

    def follow(self, combination: Floats) -> Floats:
        """Return how theta moves with the parameter combination @ theta where the objective is a parabola, [p]."""
        direction = _inverse(self.hessian) @ combination
        along = float(combination @ direction)
        return np.asarray(direction / along) if along > 0 else np.zeros_like(direction)

    def of(self, combination: Floats) -> float:
        """Return deviance per rise for the parameter combination @ theta."""
        spread = float(combination @ _inverse(self.hessian) @ combination)
        variance = float(combination @ self.variance @ combination)
        return 2.0 * spread / variance if variance > 0 else 0.0


def deviance_scale(
    problem: Problem, theta: Floats, run: Indices, noise: Noise | None
) -> tuple[Scale, int] | None:
    """Return how a rise of the objective is to be read, and its degrees of freedom; None when no noise is known."""
    predicted = problem.terms.log_prediction(theta[None])[0]
    jacobian = problem.terms.jacobian(theta[None])[0]
    num_runs = int(run.max()) + 1
    degrees = num_runs - len(theta)
    if degrees >= EMPIRICAL_RUNS:
        steep = _steepness(problem, predicted)
        pulls = problem.objective.rows(predicted, problem.log_loss)[1][:, None] * jacobian
        by_run = np.stack([np.bincount(run, weights=pull) for pull in pulls.T])
        outer = by_run @ by_run.T * num_runs / degrees
    elif noise is not None and noise.standard_deviation > 0:
        degrees = noise.degrees_of_freedom
        steep, square = _expected(problem.objective, predicted, noise.standard_deviation)
        outer = jacobian.T @ (square[:, None] * jacobian)
    else:
        return None
    hessian = jacobian.T @ (steep[:, None] * jacobian)
    inverse = _inverse(hessian)
    if not np.any(outer):
        return None
    return Scale(hessian, inverse @ outer @ inverse), degrees


def _inverse(hessian: Floats) -> Floats:
    """Return the inverse, in which a direction the rows say nothing of is very uncertain rather than left out."""
    values, vectors = np.linalg.eigh(hessian)
    return np.asarray((vectors / np.maximum(values, FLATTEST * values[-1])) @ vectors.T)


def _steepness(problem: Problem, predicted: Floats) -> Floats:
    """Return psi' of each row [n]; across a corner, by the difference over a window as wide as a kernel density's."""
    if problem.objective.name in ("mse", "mse_log"):
        return _expected(problem.objective, predicted, 1.0)[0]
    spread = float(np.median(np.abs(predicted - problem.log_loss))) / 0.6745
    window = 1.5 * max(spread, 1e-12) * len(predicted) ** -0.2
    above, below = (
        problem.objective.rows(predicted + shift, problem.log_loss)[1] for shift in (window, -window)
    )
    return np.asarray((above - below) / (2.0 * window))


def _expected(objective: Objective, predicted: Floats, sigma: float) -> tuple[Floats, Floats]:
    """Return E psi' and E psi^2 of each row under normal noise of the log loss."""
    ones = np.ones_like(predicted)
    if objective.name == "mse_log":
        return 2.0 * ones, 4.0 * sigma**2 * ones
    if objective.name == "mse":
        loss = np.exp(predicted)
        return 2.0 * loss**2, 4.0 * loss**4 * sigma**2
    if objective.name == "l1_log":
        return ones * np.sqrt(2.0 / np.pi) / sigma, ones
    from scipy.special import ndtr  # loaded here: see profiles_of

    corner = float(objective.delta or 0.0) / sigma
    inside = float(2.0 * ndtr(corner) - 1.0)
    density = float(np.exp(-0.5 * corner**2) / np.sqrt(2.0 * np.pi))
    return inside * ones, sigma**2 * (inside - 2.0 * corner * density + corner**2 * (1.0 - inside)) * ones


@dataclass(frozen=True, eq=False)
class _Line:
    """One parameter to profile, at the optimum theta."""

    problem: Problem
    theta: Floats
    index: int
    scale: Scale
    level: float
    """Deviance at the ends of the interval."""

    def combination(self) -> Floats:
        """Return [p] such that combination @ theta is the parameter without centring, in solver coordinates."""
        combination = np.zeros(len(self.theta))
        combination[self.index] = 1.0
        for shift in self.problem.law.shifts:
            if shift.coefficient == self.index:
                combination[shift.exponent] += shift.times * self.problem.centre[shift.of]
        return combination

    def reach(self) -> float:
        """Return how far from the optimum a parabola would put the level, at least 1e-4 and at most 2."""
        variance = float(self.combination() @ self.scale.variance @ self.combination())
        return float(np.clip(1.3 * np.sqrt(max(self.level * variance, 0.0)), 1e-4, 2.0))

    def side(self, sign: float) -> tuple[Floats, Floats]:
        """Return the values looked at on one side [k], going out, and the deviance there."""
        combination, value, reach = self.combination(), self.problem.value(self.theta), sign * self.reach()
        best, factor = float(combination @ self.theta), self.scale.of(combination)
        low, high = self.problem.bounds()
        is_own = np.count_nonzero(combination) == 1
        end = float((low if sign < 0 else high)[self.index]) if is_own else np.inf * sign
        held, deviance = np.empty(0), np.empty(0)
        for _ in range(ROUNDS):
            new = np.clip(best + reach * np.arange(1, STEPS + 1) / STEPS, min(best, end), max(best, end))
            new = np.unique(new[np.abs(new - best) > np.abs(held - best).max(initial=0.0)])
            if not len(new):
                break
            new = new[::-1] if sign < 0 else new
            along = self.theta + (new - best)[:, None] * self.scale.follow(combination)
            free = np.clip(
                np.delete(along, self.index, axis=1), np.delete(low, self.index), np.delete(high, self.index)
            )
            with_held = Held(self.problem, combination, self.index, new)
            found = minimise_from(with_held, free, effort=EFFORT, batched=True)
            held = np.concatenate([held, new])
            deviance = np.concatenate([deviance, np.maximum(factor * (found.value - value), 0.0)])
            if deviance.max() > self.level:
                break
            reach *= 2.0
        return held, np.maximum.accumulate(deviance)


def _profile(line: _Line, lowest_loss: float) -> Profile:
    index, law = line.index, line.problem.law
    best = float(line.combination() @ line.theta)
    below, above = line.side(-1.0), line.side(1.0)
    held = np.concatenate([below[0][::-1], [best], above[0]])
    deviance = np.concatenate([below[1][::-1], [0.0], above[1]])
    is_log = law.parameters[index].is_log
    low, high = (_crossing(best, *side, line.level) for side in (below, above))
    low, high = (None if end is None else float(np.exp(end)) if is_log else end for end in (low, high))
    weak = _is_weak(law, index, low, high, lowest_loss)
    return Profile(
        values=tuple(float(v) for v in (np.exp(held) if is_log else held)),
        deviance=tuple(float(d) for d in deviance),
        level=line.level,
        low=low,
        high=high,
        weak=weak,
        verdict=verdict_on(law.names[index], float(np.exp(best)) if is_log else best, low, high, weak),
    )


def _crossing(best: float, held: Floats, deviance: Floats, level: float) -> float | None:
    above = np.flatnonzero(deviance > level)
    if not len(above):
        return None
    i = int(above[0])
    inner, inner_deviance = (held[i - 1], deviance[i - 1]) if i else (best, 0.0)
    # The square root of a deviance is nearly linear in the parameter.
    a, b, c = np.sqrt([inner_deviance, deviance[i], level])
    return float(inner + (held[i] - inner) * (c - a) / (b - a))


def _is_weak(law: Law, index: int, low: float | None, high: float | None, lowest_loss: float) -> bool:
    kind = law.parameters[index].kind
    if kind == "slope":
        return low is None or high is None
    if kind == "floor":
        return high is None or high - (low or 0.0) > WEAK_FLOOR_FRACTION * lowest_loss
    return low is None or high is None or low <= 0.0 or high > WEAK_RATIO * low


def verdict_on(name: str, best: float, low: float | None, high: float | None, weak: bool) -> str:
    """Return in plain words what the data says of a parameter."""
    if low is None and high is None:
        return f"{name} is not identified: the rows put no limit on it on either side of {best:.3g}"
    if high is None:
        return f"{name} is weakly identified: anything above {low:.3g} fits about equally well"
    if low is None:
        return f"{name} is weakly identified: anything below {high:.3g} fits about equally well"
    how = "weakly identified" if weak else "identified"
    return f"{name} is {how}: {low:.3g} to {high:.3g} fit about equally well"


def weak_verdicts(profiles: Mapping[str, Profile], said: Collection[str] = ()) -> list[str]:
    """Return the verdicts on the parameters that are not well identified, those in `said` left out."""
    return [profile.verdict for name, profile in profiles.items() if profile.weak and name not in said]
