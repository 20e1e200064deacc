"""What a scaling law is: a sum of positive terms, written for the solver in logarithms.

Every law here predicts a loss L(x) = sum_k exp(t_k(theta; x)). The solver's coordinates theta hold exponents as they
are and coefficients (A, B, E, ...) as logarithms, so that a coefficient can never turn negative. Inputs such as N
and D enter as logarithms from which the mean over the fitted rows is taken away ("centred"): that breaks most of
the correlation between a coefficient and its exponent, and is undone before anyone sees a parameter.

Shapes: S parameter vectors at once, p parameters, n rows, K terms.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synth.errors import UserError

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]
Columns = Mapping[str, Floats]
"""The inputs of a law as the solver sees them: name -> [n], centred logarithms for `Law.inputs`, raw for `shares`."""

MAX_STARTS = 4500
"""Most starting points of a multi-start; a larger grid is thinned evenly."""


Kind = Literal["coefficient", "floor", "exponent", "scale", "slope"]
"""Coefficients and floors are positive and in units of the loss, scales are positive in units of their own; the solver
works on the logarithm of these three. Exponents and slopes are used as they are; slopes may be negative."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law, and where the search for it begins and ends."""

    name: str
    meaning: str
    unit: str
    kind: Kind
    starts: tuple[float, ...]
    """Starting values in solver coordinates; those of the loss's unit count from the log of the median loss."""
    low: float
    high: float
    """Bounds, counted likewise; an optimum that lies on one is reported as not identified."""

    @property
    def is_log(self) -> bool:
        """Whether the solver works on its logarithm."""
        return self.kind in ("coefficient", "floor", "scale")

    @property
    def of_loss(self) -> bool:
        """Whether it is measured in units of the loss."""
        return self.kind in ("coefficient", "floor")


def coefficient(name: str, meaning: str, unit: str) -> Parameter:
    """Return a positive coefficient whose term, at the centre of the data, is a fraction of the median loss."""
    starts = tuple(float(np.log(fraction)) for fraction in (0.003, 0.02, 0.1, 0.3, 0.6, 1.0))
    return Parameter(name, meaning, unit, "coefficient", starts, -14.0, 4.0)


def floor(name: str, meaning: str) -> Parameter:
    """Return the irreducible loss: a constant term."""
    starts = tuple(float(np.log(fraction)) for fraction in (0.1, 0.4, 0.65, 0.85, 0.97))
    return Parameter(name, meaning, "nats/token", "floor", starts, -14.0, 4.0)


def exponent(name: str, meaning: str) -> Parameter:
    """Return a decay exponent."""
    return Parameter(name, meaning, "1", "exponent", (0.05, 0.2, 0.4, 0.8, 1.6), 0.0, 5.0)


def slope(name: str, meaning: str, starts: tuple[float, ...] = (0.0,)) -> Parameter:
    """Return how fast the logarithm of something changes with a share; either sign."""
    return Parameter(name, meaning, "1", "slope", starts, -20.0, 20.0)


@dataclass(frozen=True)
class Shift:
    """How centring an input moves a log coefficient: coefficient += times * exponent * centre, undone by minus."""

    coefficient: int
    exponent: int
    of: str
    times: float = 1.0


Linearised = tuple[Sequence[Floats], Callable[[Sequence[Floats]], Floats]]
"""Log terms (K arrays [S, n] or [S, 1]) and the pull-back: K row weights [S, n] -> gradient [S, p]."""


class Terms(ABC):
    """A law bound to rows."""

    @abstractmethod
    def linearise(self, theta: Floats) -> Linearised:
        """Return the log terms at theta [S, p] and the pull-back of weights on them."""

    @abstractmethod
    def jacobians(self, theta: Floats) -> Sequence[Floats]:
        """Return the derivative of each log term, K arrays [S, n, p]."""

    def log_prediction(self, theta: Floats) -> Floats:
        """Return log L, [S, n]."""
        log_terms, _ = self.linearise(theta)
        return np.asarray(np.logaddexp.reduce(np.stack(np.broadcast_arrays(*log_terms)), axis=0))

    def jacobian(self, theta: Floats) -> Floats:
        """Return d log L / d theta, [S, n, p]."""
        log_terms, _ = self.linearise(theta)
        total = self.log_prediction(theta)
        weights = (np.exp(term - total)[..., None] for term in log_terms)
        return np.asarray(sum(w * j for w, j in zip(weights, self.jacobians(theta), strict=True)))


class AffineTerms(Terms):
    """Terms whose logarithms are affine in theta: t_k = theta @ design_k. Most laws are of this kind."""

    def __init__(self, designs: Sequence[Floats]) -> None:
        """Take one design [p, n] per term; one that is the same for every row may be [p, 1]."""
        self.designs = [np.ascontiguousarray(design) for design in designs]

    def linearise(self, theta: Floats) -> Linearised:
        """Return the log terms and their pull-back: one small matrix product each."""

        def pull_back(weights: Sequence[Floats]) -> Floats:
            gradient = np.zeros_like(theta)
            for weight, design in zip(weights, self.designs, strict=True):
                if design.shape[1] == 1:
                    gradient += weight.sum(axis=1, keepdims=True) * design[:, 0]
                else:
                    gradient += weight @ design.T
            return gradient

        return [theta @ design for design in self.designs], pull_back

    def jacobians(self, theta: Floats) -> Sequence[Floats]:
        """Return the designs, transposed."""
        return [np.broadcast_to(design.T, (len(theta), *design.T.shape)) for design in self.designs]


class CurvedTerms(Terms):
    """Terms with any dependence on theta, from a function that gives them with their derivatives."""

    def __init__(self, function: Callable[[Floats], tuple[Sequence[Floats], Sequence[Floats]]]) -> None:
        """Take theta [S, p] -> (K log terms [S, n], K derivatives [S, n, p])."""
        self._function = function

    def linearise(self, theta: Floats) -> Linearised:
        """Return the log terms and their pull-back."""
        log_terms, derivatives = self._function(theta)

        def pull_back(weights: Sequence[Floats]) -> Floats:
            pairs = zip(weights, derivatives, strict=True)
            return np.asarray(
                sum(np.einsum("sn,snp->sp", weight, derivative) for weight, derivative in pairs)
            )

        return log_terms, pull_back

    def jacobians(self, theta: Floats) -> Sequence[Floats]:
        """Return the derivatives of the log terms."""
        return self._function(theta)[1]


@dataclass(frozen=True)
class Law:
    """A scaling law: what it says, what its symbols mean, and its terms."""

    name: str
    formula: str
    source: str
    """Where the form comes from."""
    parameters: tuple[Parameter, ...]
    inputs: tuple[str, ...]
    """Columns that enter through their logarithms and must be positive: `num_params`, `train_tokens`, ..."""
    bind: Callable[[Columns], Terms] = field(repr=False)
    """Rows -> terms."""
    shifts: tuple[Shift, ...] = ()
    shares: tuple[str, ...] = ()
    """Columns that enter as they are: shares of the training tokens, in [0, 1]."""
    centred_with: Mapping[str, str] = field(default_factory=dict)
    """Inputs that take the centre of another input, because the law adds or compares the two."""

    @property
    def columns_needed(self) -> tuple[str, ...]:
        """Every column a row must have beside its loss."""
        return (*self.inputs, *self.shares)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    def centre(self, rows: Mapping[str, ArrayLike]) -> dict[str, float]:
        """Return the mean logarithm of each input over these rows."""
        means = {
            name: float(np.mean(np.log(np.asarray(rows[name], dtype=np.float64)))) for name in self.inputs
        }
        return {name: means[self.centred_with.get(name, name)] for name in self.inputs}

    def columns(self, rows: Mapping[str, ArrayLike], centre: Mapping[str, float] | None = None) -> Columns:
        """Return rows as the solver sees them. Raises UserError when a column the law needs is not there."""
        missing = [name for name in self.columns_needed if name not in rows]
        if missing:
            raise UserError(f"the {self.name} law needs the column {missing[0]}, which the rows do not have")
        centre = centre or {}
        logs = {
            name: np.log(np.atleast_1d(np.asarray(rows[name], dtype=np.float64))) - centre.get(name, 0.0)
            for name in self.inputs
        }
        return logs | {name: np.atleast_1d(np.asarray(rows[name], dtype=np.float64)) for name in self.shares}

    def log_prediction(self, theta: Floats, x: Columns) -> Floats:
        """Return log L for parameter vectors theta [S, p] at rows x, [S, n]."""
        return self.bind(x).log_prediction(theta)

    def jacobian(self, theta: Floats, x: Columns) -> Floats:
        """Return d log L / d theta, [S, n, p]."""
        return self.bind(x).jacobian(theta)

    def to_parameters(self, theta: Floats, centre: Mapping[str, float]) -> Floats:
        """Return parameters as people know them [S, p] from solver coordinates [S, p] centred at `centre`."""
        moved = self._moved(theta, centre, sign=1.0)
        logs = np.array([parameter.is_log for parameter in self.parameters])
        with np.errstate(over="ignore"):
            return np.where(logs, np.exp(np.where(logs, moved, 0.0)), moved)

    def to_theta(self, parameters: Floats, centre: Mapping[str, float] | None = None) -> Floats:
        """Return solver coordinates [S, p] of parameters [S, p], centred at `centre`."""
        logs = np.array([parameter.is_log for parameter in self.parameters])
        with np.errstate(divide="ignore"):
            theta = np.where(logs, np.log(np.where(logs, parameters, 1.0)), parameters)
        return self._moved(theta, centre or {}, sign=-1.0)

    def starts(self, log_level: float) -> Floats:
        """Return the multi-start grid [S, p] for rows whose median log loss is `log_level`."""
        levels = log_level * np.array([parameter.of_loss for parameter in self.parameters])
        counts = [len(parameter.starts) for parameter in self.parameters]
        if np.prod([float(count) for count in counts]) <= MAX_STARTS:
            return (
                np.array(list(itertools.product(*(parameter.starts for parameter in self.parameters))))
                + levels
            )
        choice = np.random.RandomState(0).randint(0, counts, size=(MAX_STARTS, len(counts)))
        table = [np.asarray(parameter.starts)[choice[:, i]] for i, parameter in enumerate(self.parameters)]
        return np.stack(table, axis=1) + levels

    def bounds(self, log_level: float) -> tuple[Floats, Floats]:
        """Return the lower and upper bounds [p] in solver coordinates."""
        levels = log_level * np.array([parameter.of_loss for parameter in self.parameters])
        low = np.array([parameter.low for parameter in self.parameters]) + levels
        return low, np.array([parameter.high for parameter in self.parameters]) + levels

    def _moved(self, theta: Floats, centre: Mapping[str, float], sign: float) -> Floats:
        moved = np.array(theta, dtype=np.float64)
        for shift in self.shifts:
            move = shift.times * theta[..., shift.exponent] * centre.get(shift.of, 0.0)
            moved[..., shift.coefficient] += sign * move
        return moved
