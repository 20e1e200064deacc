"""Whether the rows really determine the parameters, said in plain words."""

from __future__ import annotations

import numpy as np

from tune.laws.law import Floats, Parameter
from tune.laws.problem import Problem

NEGLIGIBLE_SHARE = 1e-3
"""A term that never makes up this fraction of the predicted loss is not seen in the data."""
FLAT_MOVE = 1.0
"""A direction is flat if the noise lets theta move this far along it: a factor e in a coefficient."""


def vanished_terms(problem: Problem, theta: Floats) -> tuple[str, ...]:
    """Return the names of the coefficients whose term is negligible at every row, for theta [p]."""
    log_terms, _ = problem.terms.linearise(theta[None])
    total = problem.terms.log_prediction(theta[None])
    shares = [float(np.exp(term - total).max()) for term in log_terms]
    jacobians = problem.terms.jacobians(theta[None])
    logs = [i for i, parameter in enumerate(problem.law.parameters) if parameter.of_loss]
    gone = []
    for share, jacobian in zip(shares, jacobians, strict=True):
        own = [i for i in logs if np.any(jacobian[0, :, i])]
        if share < NEGLIGIBLE_SHARE and own:
            gone.append(problem.law.names[own[0]])
    return tuple(gone)


def bound_warnings(problem: Problem, theta: Floats) -> list[str]:
    """Return a sentence for each term that vanished and each exponent that ended on a bound, at theta [p]."""
    low, high = problem.bounds()
    gone = vanished_terms(problem, theta)
    said = [
        f"{name} is at 0: these rows show no sign of its term, so nothing that depends on it can be trusted"
        for name in gone
    ]
    for i, parameter in enumerate(problem.law.parameters):
        if not parameter.of_loss and (theta[i] <= low[i] + 1e-9 or theta[i] >= high[i] - 1e-9):
            said.append(
                f"{parameter.name} ended at its bound {_shown(parameter, theta[i])}: these rows do not determine it"
            )
    return said


def _shown(parameter: Parameter, value: float) -> str:
    return f"{float(np.exp(value)) if parameter.is_log else value:.3g}"


def flat_direction_warning(problem: Problem, theta: Floats, noise: float | None) -> str | None:
    """Return a sentence if some combination of parameters can move freely without the predictions noticing.

    Looks at the smallest singular value of the Jacobian d log L / d theta: noise / value is the standard error
    along that combination, in solver coordinates.
    """
    jacobian = problem.terms.jacobian(theta[None])[0]
    _, values, directions = np.linalg.svd(jacobian, full_matrices=True)
    smallest = values[-1] if len(values) == len(theta) else 0.0
    degenerate = smallest <= 1e-9 * values[0]
    if not degenerate and (noise is None or noise <= FLAT_MOVE * smallest):
        return None
    direction = directions[-1]
    names = [name for name, part in zip(problem.law.names, direction, strict=True) if abs(part) > 0.25]
    if len(names) == 1:
        return f"the rows hardly constrain {names[0]}: very different values fit about equally well"
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"the rows hardly tell {listed} apart: very different combinations of them fit about equally well"
