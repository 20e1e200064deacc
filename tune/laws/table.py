"""`tune.laws.fit`: a law and a table in, a `FittedLaw` out. For notebooks and for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from synth.errors import UserError, first_line
from tune.laws.estimate import Settings, Task, fit_all
from tune.laws.fitted import FittedLaw
from tune.laws.law import Law
from tune.laws.objectives import Objective
from tune.laws.registry import EXPONENTIAL_MIXING, law_named
from tune.laws.rows import (
    Rows,
    check_values,
    column,
    pin_gauge,
    refuse_duplicates,
    row_names,
    run_numbers,
    said_of_repeats,
    select,
)
from tune.laws.selection import candidates_for, choose_law
from tune.results import ExcludedRow, LawFit, Selection

AUTO = "auto"


def fit(  # noqa: PLR0913  # what a person may want to say of a fit, all by name
    law: str | Law,
    rows: Rows,
    objective: str = "huber_log",
    *,
    columns: Mapping[str, str] | None = None,
    shares: Sequence[str] = (),
    huber_delta: float = 1e-3,
    drop_highest_losses: int = 0,
    bootstrap_samples: int = 1000,
    confidence: float = 0.95,
    hold_out_largest: bool = True,
    seed: int = 42,
) -> FittedLaw:
    """Fit a law to rows and return it with intervals, profiles, hold-out error and warnings.

    `rows` are columns [n]: `loss` in nats per token, `num_params`, `train_tokens` as the law needs, and optionally
    `run_id`, whose equal values (checkpoints of one run) stay together in the bootstrap. A pandas DataFrame will do;
    `columns` says what they are called there, such as {"num_params": "N"}. `law` is a name, a `Law`, or "auto": the
    candidate that extrapolates best, with the comparison in `record.selection`. A `share` column is the synthetic share:
    where it varies, "auto" takes a law that knows it, and any other law says in its warnings that mixtures are pooled.
    `shares` are the columns of the exponential mixing law. `drop_highest_losses` is the outlier policy; rows dropped are listed in the record.

    Raises UserError, in one sentence, for a missing column, a value that is not a positive number, two identical
    rows, or too few rows.
    """
    chosen = Objective(objective, huber_delta if objective == "huber_log" else None)
    settings = Settings(chosen, bootstrap_samples, confidence, hold_out_largest, seed)
    table = _renamed(rows, columns or {})
    check_values(table, ("loss",))
    refuse_duplicates(table)
    kept, excluded = _without_highest(table, drop_highest_losses)
    selection: Selection | None = None
    if law == AUTO:
        for name in ("num_params", "train_tokens", "unique_tokens"):
            check_values(kept, (name,) if name in kept else ())
        selection = choose_law({"all": kept}, candidates_for(kept, shares), chosen)
        law = selection.law
    if isinstance(law, str):
        law = law_named(law, pin_gauge(shares, kept) if law == EXPONENTIAL_MIXING else ())
    said = (*_repeats(kept, shares), *_pooled(law, kept))
    return fit_all([Task(law, kept, excluded=excluded, selection=selection, said=said)], settings)[0]


def load(path: str | Path) -> FittedLaw:
    """Return a fit that `FittedLaw.save` wrote. Raises UserError for a file that holds none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        record = LawFit.model_validate(content["record"])
    except FileNotFoundError:
        raise UserError(f"there is no saved fit {str(path)!r}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is not a fit that FittedLaw.save wrote: {first_line(error)}"
        ) from None
    samples = np.array(content["samples"], dtype=np.float64).reshape(-1, len(record.parameters))
    rows = (
        None
        if content["rows"] is None
        else {name: np.array(values) for name, values in content["rows"].items()}
    )
    return FittedLaw(law_named(record.law, record.shares), record, samples, rows)


def _repeats(rows: Rows, shares: Sequence[str]) -> list[str]:
    known = ("num_params", "train_tokens", "unique_tokens", "share", *shares)
    names = [name for name in known if name in rows]
    places = list(zip(*(column(rows, name).tolist() for name in names), strict=True))
    runs = [str(number) for number in run_numbers(rows)]
    return said_of_repeats(places, row_names(rows), runs, column(rows, "loss").tolist()) if names else []


def _pooled(law: Law, rows: Rows) -> list[str]:
    """Return a sentence where a law is asked for by name that takes several mixtures for one."""
    if "share" not in rows or "share" in law.columns_needed:
        return []
    values = np.unique(column(rows, "share"))
    if len(values) < 2:
        return []
    return [
        f"the share takes {len(values)} values, which the {law.name} law does not know: all mixtures are pooled; fit each "
        'apart, or take a law in the share ("auto" does)'
    ]


def _renamed(rows: Rows, columns: Mapping[str, str]) -> Rows:
    missing = [name for name in columns.values() if name not in rows]
    if missing:
        raise UserError(f"the rows have no column {missing[0]!r}; they have {', '.join(map(str, rows))}")
    own = {name: np.asarray(rows[name]) for name in rows if name not in columns}
    return own | {role: np.asarray(rows[name]) for role, name in columns.items()}


def _without_highest(rows: Rows, count: int) -> tuple[Rows, tuple[ExcludedRow, ...]]:
    loss = column(rows, "loss")
    if not 0 <= count < len(loss):
        raise UserError(
            f"drop_highest_losses = {count}: it must be between 0 and the {len(loss)} rows less one"
        )
    dropped = np.zeros(len(loss), dtype=bool)
    dropped[np.argsort(-loss, kind="stable")[:count]] = True
    names = row_names(rows)
    reason = f"one of the {count} highest losses (drop_highest_losses = {count})"
    excluded = tuple(ExcludedRow(run_id=names[i], reason=reason) for i in np.flatnonzero(dropped))
    return select(rows, ~dropped), excluded
