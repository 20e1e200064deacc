"""Laws and rows in, `FittedLaw`s out. The one way a law is fitted; `tune.laws.fit` and the job both come here."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from synth.percentage import percentage
from tune.laws.bootstrap import Noise, method_for, pairs_bootstrap, parametric_bootstrap, residual_noise
from tune.laws.fitted import FittedLaw, interval_from
from tune.laws.frontier import frontier_of
from tune.laws.identify import bound_warnings, flat_direction_warning, vanished_terms
from tune.laws.law import Floats, Law
from tune.laws.minimise import TO_AN_OPTIMUM, WATCHING, Effort, multi_start
from tune.laws.objectives import Objective
from tune.laws.polish import gradient_norm, has_converged, polish
from tune.laws.problem import Problem
from tune.laws.profile import profiles_of, weak_verdicts
from tune.laws.rows import Rows, check_rows, column, row_names, run_numbers, select, too_few
from tune.results import ExcludedRow, HeldOutPoint, HoldOut, LawFit, Profile, Selection

AT_OPTIMUM = 1e-6
FEW_AT_OPTIMUM = 0.5
EXTRA_STARTS = 3
"""Further starts of each resample when a term vanished at the optimum: a vanished term has no slope to come back on."""


@dataclass(frozen=True)
class Settings:
    """How fits are made; the same for all fits of one job."""

    objective: Objective
    bootstrap_samples: int = 1000
    confidence: float = 0.95
    hold_out_largest: bool = True
    seed: int = 42
    profiles: bool = True


@dataclass(frozen=True, eq=False)
class Task:
    """One law to fit to one set of rows."""

    law: Law
    rows: Rows
    group: str = "all"
    fixed: Mapping[str, float] = field(default_factory=dict)
    """What the rows of a one-axis law have in common: num_params or train_tokens."""
    excluded: tuple[ExcludedRow, ...] = ()
    selection: Selection | None = None
    """How the law was chosen, when it was."""
    said: tuple[str, ...] = ()
    """What there is to say of the rows; it comes before the fit's own warnings."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """The exact optimum of one fit and how it was found."""

    problem: Problem
    theta: Floats
    """[p], solver coordinates."""
    value: float
    gradient_norm: float
    converged: bool
    num_starts: int
    starts_followed: int
    """Starts, spread evenly over the grid, that were carried to the end whatever became of them; 0 when none were watched."""
    at_optimum_fraction: float | None
    """Part of the followed starts that ended at the optimum: an estimate of the part of all starts; None when none were."""
    ends: Floats
    """Where the starts that were carried to the end did end [k, p], the best first."""

    @property
    def residual(self) -> Floats:
        """Log residuals [n], predicted minus measured."""
        return np.asarray(self.problem.terms.log_prediction(self.theta[None])[0] - self.problem.log_loss)


def fit_all(
    tasks: Sequence[Task], settings: Settings, done: Callable[[FittedLaw], None] = lambda fitted: None
) -> list[FittedLaw]:
    """Fit several laws; `done` is called with each as it is finished.

    Fits of the same law share one estimate of the run-to-run noise (log residuals pooled over their groups), which
    is what the intervals of fits with few runs rest on. Each fit draws its own random numbers, so resamples of two
    groups are independent.
    """
    for task in tasks:
        check_rows(task.law, task.rows, task.group)
    optima = [optimise(task.law, task.rows, settings.objective) for task in tasks]
    fits = []
    for task, optimum in zip(tasks, optima, strict=True):
        same = [
            residual_noise(other.residual, run_numbers(peer.rows), len(peer.law.names))
            for peer, other in zip(tasks, optima, strict=True)
            if peer.law.name == task.law.name
        ]
        fits.append(_conclude(task, optimum, Noise.pooled(same), settings))
        done(fits[-1])
    return fits


def optimise(
    law: Law,
    rows: Rows,
    objective: Objective,
    starts: Floats | None = None,
    effort: Effort = WATCHING,
) -> Optimum:
    """Return the exact optimum over a multi-start grid ([S, p] in centred solver coordinates; default the law's)."""
    problem = Problem.of(law, rows, objective)
    grid = law.starts(problem.log_level) if starts is None else starts
    found = multi_start(problem, grid, effort)
    theta = polish(problem, found.theta[found.best])
    value, norm = problem.value(theta), gradient_norm(problem, theta)
    return Optimum(
        problem=problem,
        theta=theta,
        value=value,
        gradient_norm=norm,
        converged=has_converged(problem, theta, norm),
        num_starts=len(grid),
        starts_followed=len(found.watched),
        at_optimum_fraction=float(np.mean(found.watched <= value * (1.0 + AT_OPTIMUM) + np.finfo(float).tiny))
        if len(found.watched)
        else None,
        ends=found.theta[np.argsort(found.value, kind="stable")],
    )


def hold_out(law: Law, rows: Rows, objective: Objective) -> HoldOut | None:
    """Predict the largest scale from a fit without it; None when there is none or the rest cannot determine the law.

    Left out are all rows at the largest N and all at the largest D, as far as the law has them.
    """
    largest = np.zeros(len(column(rows, "loss")), dtype=bool)
    for name in {"num_params", "train_tokens"} & set(law.inputs):
        largest |= column(rows, name) == column(rows, name).max()
    rest, held = select(rows, ~largest), select(rows, largest)
    if largest.all() or not largest.any() or too_few(law, rest):
        return None
    optimum = optimise(law, rest, objective, effort=TO_AN_OPTIMUM)
    predicted = np.exp(law.log_prediction(optimum.theta[None], law.columns(held, optimum.problem.centre)))[0]
    names, loss = row_names(held), column(held, "loss")
    points = tuple(
        HeldOutPoint(
            run_id=names[i],
            num_params=_at(held, "num_params", i),
            train_tokens=_at(held, "train_tokens", i),
            loss=float(loss[i]),
            predicted_loss=float(predicted[i]),
            relative_error=float(predicted[i] / loss[i] - 1.0),
        )
        for i in range(len(loss))
    )
    return HoldOut(
        points=points,
        mean_absolute_relative_error=float(np.mean([abs(point.relative_error) for point in points])),
    )


def _conclude(task: Task, optimum: Optimum, noise: Noise | None, settings: Settings) -> FittedLaw:
    law, centre = task.law, optimum.problem.centre
    method, thetas = _bootstrap(task, optimum, noise, settings)
    samples = law.to_parameters(thetas, centre)
    values = law.to_parameters(optimum.theta[None], centre)[0]
    parameters = {
        name: interval_from(float(values[i]), samples[:, i], settings.confidence)
        for i, name in enumerate(law.names)
    }
    held = hold_out(law, task.rows, settings.objective) if settings.hold_out_largest else None
    lowest = float(column(task.rows, "loss").min())
    profiles = (
        profiles_of(
            optimum.problem, optimum.theta, run_numbers(task.rows), noise, lowest, settings.confidence
        )
        if settings.profiles
        else {}
    )
    warnings = _warnings(task, optimum, profiles, noise)
    if settings.bootstrap_samples and noise is None:
        warnings.append("there are no intervals: no degree of freedom is left to estimate the noise from")
    if settings.hold_out_largest and held is None:
        warnings.append(
            "too few runs to leave the largest scale out, so how well the law extrapolates is not known"
        )
    record = LawFit(
        law=law.name,
        formula=law.formula,
        group=task.group,
        axis=_axis(law),
        shares=law.shares,
        fixed=dict(task.fixed),
        objective=settings.objective.name,
        huber_delta=settings.objective.delta,
        objective_value=optimum.value,
        gradient_norm=optimum.gradient_norm,
        converged=optimum.converged,
        parameters=parameters,
        confidence=settings.confidence,
        interval_method=method,
        bootstrap_samples=len(samples),
        noise_log=noise.standard_deviation if noise else None,
        noise_degrees_of_freedom=noise.degrees_of_freedom if noise else 0,
        ranges={name: (_low(task.rows, name), _high(task.rows, name)) for name in law.columns_needed},
        num_starts=optimum.num_starts,
        starts_followed=optimum.starts_followed,
        starts_at_optimum_fraction=optimum.at_optimum_fraction,
        rows_used=tuple(row_names(task.rows)),
        rows_excluded=task.excluded,
        hold_out=held,
        profiles=profiles,
        selection=task.selection,
        warnings=tuple(warnings),
    )
    fitted = FittedLaw(law, record, samples, task.rows)
    derived = {
        "frontier": frontier_of(fitted, task.rows),
        "best_shares": fitted.best_shares(task.rows),
    }
    return replace(fitted, record=record.model_copy(update=derived))


def _bootstrap(
    task: Task, optimum: Optimum, noise: Noise | None, settings: Settings
) -> tuple[Literal["pairs", "parametric", "none"], Floats]:
    problem, theta, samples = optimum.problem, optimum.theta, settings.bootstrap_samples
    starts = theta[None]
    if vanished_terms(problem, theta):
        starts = np.concatenate([starts, _revived(problem, optimum.ends)])
    run, seed = run_numbers(task.rows), _seed(settings.seed, task)
    if samples and method_for(int(run.max()) + 1, len(theta)) == "pairs":
        return "pairs", pairs_bootstrap(problem, starts, run, samples, seed)
    if samples and noise is not None:
        return "parametric", parametric_bootstrap(problem, starts, run, noise, samples, seed)
    return "none", np.empty((0, len(theta)))


def _revived(problem: Problem, ends: Floats) -> Floats:
    """Return a few of these ends [k, p] with every term brought back to at least a tenth of the median loss."""
    logs = np.array([parameter.of_loss for parameter in problem.law.parameters])
    chosen = ends[np.linspace(0, len(ends) - 1, EXTRA_STARTS).round().astype(int)]
    return np.where(logs, np.maximum(chosen, problem.log_level + np.log(0.1)), chosen)


def _seed(seed: int, task: Task) -> int:
    """Return the seed of one fit: the given one for a fit of all rows, else one that depends on law and group."""
    return seed if task.group == "all" else zlib.crc32(f"{seed}|{task.law.name}|{task.group}".encode())


def _warnings(
    task: Task, optimum: Optimum, profiles: Mapping[str, Profile], noise: Noise | None
) -> list[str]:
    problem, theta = optimum.problem, optimum.theta
    said = [*task.said]
    if not optimum.converged:
        said.append(
            f"the fit did not converge: the gradient at its best point is {optimum.gradient_norm:.2g} and should be 0"
        )
    if optimum.at_optimum_fraction is not None and optimum.at_optimum_fraction < FEW_AT_OPTIMUM:
        said.append(
            f"only {percentage(optimum.at_optimum_fraction)} of {optimum.starts_followed} starts taken evenly from the grid of "
            f"{optimum.num_starts:,} reached the optimum: the objective has other valleys or a flat floor"
        )
    num_runs = int(run_numbers(task.rows).max()) + 1
    if num_runs <= len(theta):
        said.append(
            f"{num_runs} runs for {len(theta)} parameters: the curve passes through its points, and nothing in them "
            "says how far off it may be"
        )
    said += bound_warnings(problem, theta)
    flat = flat_direction_warning(problem, theta, noise.standard_deviation if noise else None)
    said += [flat] if flat else []
    return said + weak_verdicts(profiles, vanished_terms(problem, theta))


def _axis(law: Law) -> Literal["tokens", "params", "both", "shares"]:
    if not law.inputs:
        return "shares"
    if law.inputs == ("train_tokens",):
        return "tokens"
    return "params" if law.inputs == ("num_params",) else "both"


def _at(rows: Rows, name: str, index: int) -> float | None:
    return float(column(rows, name)[index]) if name in rows else None


def _low(rows: Rows, name: str) -> float:
    return float(column(rows, name).min())


def _high(rows: Rows, name: str) -> float:
    return float(column(rows, name).max())
