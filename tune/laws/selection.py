"""Which law to use: the one that predicts what it has not seen, not the one that fits best what it has.

Each candidate is fitted without the largest sizes, without the largest budgets and without the largest compute, and
asked for what was left out (the paper's check, its RMABE read as the mean of |predicted / measured - 1|). A law with
more parameters always fits its own rows better; only this says whether they are worth having.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from synth.errors import UserError
from tune.laws.estimate import Optimum, optimise
from tune.laws.forms import (
    CHINCHILLA,
    CHINCHILLA_TIED,
    DATA,
    DATA_CONSTRAINED,
    MODEL,
    RECTIFIED,
)
from tune.laws.forms_mixture import BIVARIATE_MIXING, RATIO_DATA, RATIO_FLOOR, RATIO_FULL, exponential_mixing
from tune.laws.law import Flags, Floats, Law
from tune.laws.minimise import FOR_A_PREDICTION
from tune.laws.objectives import Objective
from tune.laws.rows import Rows, column, pin_gauge, select, too_few
from tune.results import LawScore, Selection

HELD_OUT_FRACTION = 0.1
"""The highest values are held out level by level until they hold this part of the rows."""
REPEATED = 1.05
"""D / U from which tokens count as repeated, so that a law of repetition has something to see."""
STARTS = 250
"""Starting points of the fits made only to predict: they are many, and 250 spread over the grid find the optimum."""
AXES = ("num_params", "train_tokens", "compute")


def candidates_for(rows: Rows, shares: Sequence[str] = ()) -> tuple[Law, ...]:
    """Return the laws these columns could determine: joint ones where N and D vary, with the share where it does; none
    where the mixture varies in a way that none of them can follow.

    `shares` are columns of shares of several sources: the exponential mixing law is the one candidate that knows them,
    at one size and one budget.
    """
    mixed = any(len(np.unique(column(rows, name))) > 1 for name in shares)
    levels = {
        name: len(np.unique(column(rows, name)))
        for name in ("num_params", "train_tokens", "share")
        if name in rows
    }
    n, d, share = (levels.get(name, 0) for name in ("num_params", "train_tokens", "share"))
    if n < 2 and d < 2:
        return (exponential_mixing(pin_gauge(shares, rows)),) if mixed else ()
    if mixed:
        return ()
    if d < 2:
        return (MODEL,) if share < 2 else ()
    if n < 2:
        mixing = (BIVARIATE_MIXING,) if share >= 3 and column(rows, "share").min() > 0 else ()
        return (DATA, RECTIFIED, *mixing) if share < 2 else mixing
    joint: tuple[Law, ...] = (CHINCHILLA, CHINCHILLA_TIED)  # over_training is the tied law in other letters
    if share >= 2:  # a law without the share would take two mixtures for one
        joint = (RATIO_FLOOR, RATIO_DATA, RATIO_FULL) if share >= 3 else ()
    elif "unique_tokens" in rows and np.any(
        column(rows, "train_tokens") > REPEATED * column(rows, "unique_tokens")
    ):
        joint = (*joint, DATA_CONSTRAINED)
    return joint


def choose_law(groups: Mapping[str, Rows], candidates: Sequence[Law], objective: Objective) -> Selection:
    """Return the candidates with their errors over all groups, best first.

    One law is chosen for all groups, so that they compare. Candidates are compared on the splits that all of them can
    be fitted on; a candidate that fits on none is listed with the reason and does not count. Raises UserError when no
    candidate can be fitted at all.
    """
    able = [law for law in candidates if not any(too_few(law, rows) for rows in groups.values())]
    unable = [law for law in candidates if law not in able]
    if not able:
        reasons = "; ".join(f"{law.name}: {_why(law, groups)}" for law in candidates)
        raise UserError(
            f"too few runs for any law ({reasons})"
            if reasons
            else "no law to choose from: N or D must vary, and a share that varies needs three values and, where N or D does "
            "not vary, a law of its own: fit each share apart, or name a law"
        )
    errors = {law.name: {axis: _errors(law, groups, axis, objective) for axis in AXES} for law in able}
    tested = [law for law in able if any(errors[law.name].values())]
    common = {
        axis: set.intersection(*(set(errors[law.name][axis]) for law in tested)) if tested else set()
        for axis in AXES
    }
    scores = [
        LawScore(
            law=law.name,
            num_parameters=len(law.names),
            in_sample=sum(_quick(law, rows, objective).value for rows in groups.values()),
            held_out={
                axis: float(np.mean([np.mean(errors[law.name][axis][group]) for group in sorted(common[axis])]))
                if law in tested and common[axis] else None
                for axis in AXES
            },
            reason=None if law in tested else "too few runs are left when the largest are held out",
        )
        for law in able
    ]  # fmt: skip
    scores.sort(key=lambda score: (_mean(score) is None, _mean(score) or 0.0, score.num_parameters))
    scores += [
        LawScore(law=law.name, num_parameters=len(law.names), in_sample=None, held_out=dict.fromkeys(AXES), reason=_why(law, groups))
        for law in unable
    ]  # fmt: skip
    tried = _mean(scores[0]) is not None
    return Selection(
        law=scores[0].law if tried else _default(able).name,
        scores=tuple(scores),
        reason=(
            "lowest mean absolute relative error on the largest sizes, budgets and compute, each predicted without them"
            if tried
            else "no law can be tested by extrapolation: too few runs are left when the largest are held out"
        ),
    )


def largest(rows: Rows, axis: str) -> Flags:
    """Return which rows [n] are of the largest `num_params`, `train_tokens` or `compute`: at least a tenth of them."""
    if axis == "compute":
        values: Floats = column(rows, "num_params") * column(rows, "train_tokens")
    else:
        values = column(rows, axis)
    levels, counts = np.unique(values, return_counts=True)
    enough = np.cumsum(counts[::-1]) >= HELD_OUT_FRACTION * len(values)
    return np.asarray(values >= levels[::-1][int(np.argmax(enough))])


def _mean(score: LawScore) -> float | None:
    found = [error for error in score.held_out.values() if error is not None]
    return float(np.mean(found)) if found else None


def _errors(law: Law, groups: Mapping[str, Rows], axis: str, objective: Objective) -> dict[str, Floats]:
    """Return |relative error| of the held-out rows by group, of the groups where the rest determines the law."""
    needed = {"num_params", "train_tokens"} if axis == "compute" else {axis}
    if not needed <= set(law.inputs):
        return {}
    found = {}
    for group, rows in groups.items():
        held = largest(rows, axis)
        rest = select(rows, ~held)
        if not held.all() and not too_few(law, rest):
            optimum = _quick(law, rest, objective)
            x = law.columns(select(rows, held), optimum.problem.centre)
            predicted = np.exp(law.log_prediction(optimum.theta[None], x)[0])
            found[group] = np.abs(predicted / column(rows, "loss")[held] - 1.0)
    return found


def _quick(law: Law, rows: Rows, objective: Objective) -> Optimum:
    grid = law.starts(float(np.median(np.log(column(rows, "loss")))))
    return optimise(law, rows, objective, grid[:: max(1, len(grid) // STARTS)], FOR_A_PREDICTION)


def _why(law: Law, groups: Mapping[str, Rows]) -> str:
    return next((f"{group}: {short}" for group, rows in groups.items() if (short := too_few(law, rows))), "")


def _default(able: Sequence[Law]) -> Law:
    return min(able, key=lambda law: len(law.names))
