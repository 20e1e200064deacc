"""From a good point to the exact optimum of one fit, and the proof that it is one.

Smooth objectives: damped Newton steps inside the bounds. `l1_log`: a sequence of linear programs with a shrinking
trust region; its optimum is a corner where some rows are fitted exactly, so "the gradient" there is the shortest
vector among the subgradients, zero exactly at an optimum.
"""

from __future__ import annotations

import numpy as np

from tune.laws.law import Flags, Floats
from tune.laws.problem import Problem

EXACTLY_FITTED = 1e-9
"""A row with a smaller log residual sits on the corner of |r|."""
CONVERGED = 1e-6
"""A fit has converged when its gradient is this fraction of what the rows' pulls add up to without cancelling."""


def polish(problem: Problem, theta: Floats) -> Floats:
    """Return the exact minimum next to theta [p]; never a worse point."""
    return _linear_programs(problem, theta) if problem.objective.name == "l1_log" else _newton(problem, theta)


def gradient_norm(problem: Problem, theta: Floats) -> float:
    """Return the norm of the gradient at theta [p] in solver coordinates, directions a bound blocks left out."""
    if problem.objective.name == "l1_log":
        return _subgradient_norm(problem, theta)
    gradient = problem.value_and_gradient(theta[None])[1][0]
    return float(np.linalg.norm(np.where(_held(problem, theta, gradient), 0.0, gradient)))


def has_converged(problem: Problem, theta: Floats, norm: float) -> bool:
    """Return whether a gradient of this norm is zero for all purposes; also true when every row is fitted exactly."""
    residual = problem.terms.log_prediction(theta[None])[0] - problem.log_loss
    return bool(norm <= CONVERGED * problem.gradient_scale(theta) or np.abs(residual).max() < EXACTLY_FITTED)


def _held(problem: Problem, theta: Floats, gradient: Floats) -> Flags:
    low, high = problem.bounds()
    return np.asarray(((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)))


def _newton(problem: Problem, theta: Floats, iterations: int = 50) -> Floats:
    low, high = problem.bounds()
    damping = 0.0
    value, gradient = (found[0] for found in problem.value_and_gradient(theta[None]))
    for _ in range(iterations):
        free = ~_held(problem, theta, gradient)
        if not free.any() or not np.any(gradient[free]):
            break
        hessian = problem.hessian(theta)[np.ix_(free, free)]
        scale = np.abs(np.diag(hessian)).max() or 1.0
        step = np.zeros_like(theta)
        step[free] = -np.linalg.lstsq(hessian + damping * scale * np.eye(free.sum()), gradient[free])[0]
        trial = np.clip(theta + step, low, high)
        tried, tried_gradient = (found[0] for found in problem.value_and_gradient(trial[None]))
        flatter = np.linalg.norm(tried_gradient[free]) < np.linalg.norm(gradient[free])
        if tried < value or (tried <= value * (1.0 + 1e-15) and flatter):
            theta, value, gradient = trial, tried, tried_gradient
            damping = damping / 10.0 if damping > 1e-12 else 0.0
        elif damping > 1e6:
            break
        else:
            damping = max(10.0 * damping, 1e-10)
    return theta


def _linear_programs(problem: Problem, theta: Floats, iterations: int = 60) -> Floats:
    """Minimise sum w |r + J d| over |d| <= radius, take the step if it helps, and shrink the radius if it does not."""
    low, high = problem.bounds()
    radius, value = 1e-2, problem.value(theta)
    for _ in range(iterations):
        reach = np.clip((low - theta) / radius, -1.0, 0.0), np.clip((high - theta) / radius, 0.0, 1.0)
        step = _linear_step(problem, theta, radius, *reach)
        trial = np.clip(theta + step, low, high)
        tried = problem.value(trial)
        if tried < value:
            theta, value = trial, tried
            radius = min(2.0 * float(np.abs(step).max()), radius)
        else:
            radius /= 8.0
        if radius < 1e-13:
            break
    return theta


def _linear_step(problem: Problem, theta: Floats, radius: float, low: Floats, high: Floats) -> Floats:
    """Return the best step of the linearised problem within radius * [low, high]; 0 if the program has no solution.

    Solved in units of the radius, so that the solver's fixed tolerances shrink with it. Variables are the step and,
    for each row, an upper bound of |r + J d|.
    """
    from scipy.optimize import linprog  # loaded here: seconds to load, and only this objective needs it
    from scipy.sparse import csr_array, eye_array, hstack, vstack

    residual = (problem.terms.log_prediction(theta[None])[0] - problem.log_loss) / radius
    jacobian = csr_array(problem.terms.jacobian(theta[None])[0])
    slack = eye_array(len(residual), format="csr")
    weights = np.ones(len(residual)) if problem.weights is None else problem.weights
    program = linprog(  # type: ignore[call-overload]  # its stubs leave out the sparse matrices it takes
        np.concatenate([np.zeros(len(theta)), weights]),
        A_ub=vstack([hstack([jacobian, -slack]), hstack([-jacobian, -slack])]),
        b_ub=np.concatenate([-residual, residual]),
        bounds=[*zip(low.tolist(), high.tolist(), strict=True), *[(0.0, None)] * len(residual)],
        method="highs",
    )
    return np.zeros_like(theta) if program.x is None else radius * np.asarray(program.x[: len(theta)])


def _subgradient_norm(problem: Problem, theta: Floats) -> float:
    from scipy.optimize import lsq_linear  # loaded here: see _linear_step

    residual = problem.terms.log_prediction(theta[None])[0] - problem.log_loss
    weights = np.ones(len(residual)) if problem.weights is None else problem.weights
    pulls = problem.terms.jacobian(theta[None])[0] * weights[:, None]
    corner = np.abs(residual) < EXACTLY_FITTED
    smooth = np.sign(residual[~corner]) @ pulls[~corner]
    low, high = problem.bounds()
    free = (theta > low) & (theta < high)
    if not free.any():
        return 0.0
    if not corner.any():
        return float(np.linalg.norm(smooth[free]))
    balanced = lsq_linear(pulls[corner][:, free].T, -smooth[free], bounds=(-1.0, 1.0))
    return float(np.linalg.norm(balanced.fun))
