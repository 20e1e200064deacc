"""The rows a law is fitted to: columns of equal length, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synth.errors import UserError
from tune.laws.law import Flags, Floats, Indices, Law

Rows = Mapping[str, ArrayLike]
"""Columns [n]: `loss`, a law's inputs (`num_params`, `train_tokens`, ...), optionally `run_id` (which rows are of one
run) and `row` (a name for each row)."""


def column(rows: Rows, name: str) -> Floats:
    """Return a numeric column, [n]. Raises UserError when it is missing or not numeric."""
    if name not in rows:
        raise UserError(f"the rows have no column {name!r}; they have {', '.join(map(str, rows))}")
    try:
        return np.asarray(rows[name], dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"the column {name!r} holds something that is not a number") from None


def run_numbers(rows: Rows) -> Indices:
    """Return the number of the run each row belongs to, from 0 in order of appearance, [n]."""
    if "run_id" not in rows:
        return np.arange(len(column(rows, "loss")))
    names = [str(name) for name in np.asarray(rows["run_id"])]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def row_names(rows: Rows) -> list[str]:
    """Return a name for each row: its `row`, else its `run_id`, else its place, counted from 1."""
    for name in ("row", "run_id"):
        if name in rows:
            return [str(value) for value in np.asarray(rows[name])]
    return [f"row {i + 1}" for i in range(len(column(rows, "loss")))]


def select(rows: Rows, mask: Flags) -> dict[str, NDArray[np.generic]]:
    """Return the rows where the mask [n] holds."""
    return {name: np.asarray(rows[name])[mask] for name in rows}


def check_rows(law: Law, rows: Rows, group: str) -> None:
    """Raise UserError unless every value can be what it says it is, and the rows are enough to determine the law."""
    check_values(rows, (*law.inputs, "loss"))
    for name in law.shares:
        values = column(rows, name)
        _refuse_first(rows, name, values, (values >= 0) & (values <= 1), "a share between 0 and 1")
    shortage = too_few(law, rows)
    if shortage:
        raise UserError(f"too few runs for the {law.name} law of {group!r}: {shortage}")


def check_values(rows: Rows, names: Sequence[str]) -> None:
    """Raise UserError unless every value of these columns is a positive number."""
    for name in names:
        values = column(rows, name)
        _refuse_first(rows, name, values, np.isfinite(values) & (values > 0), "a positive number")


def refuse_duplicates(rows: Rows) -> None:
    """Raise UserError when two rows agree in every column."""
    seen: dict[tuple[object, ...], int] = {}
    for i, line in enumerate(zip(*(np.asarray(rows[name]).tolist() for name in rows), strict=True)):
        first = seen.setdefault(line, i)
        if first != i:
            names = row_names(rows)
            which = f"{names[first]} and {names[i]}"
            raise UserError(
                f"{which} are identical in every column: remove one, or add a column that tells the two runs apart"
            )


def said_of_repeats(
    places: Sequence[tuple[object, ...]], names: Sequence[str], runs: Sequence[str], losses: Sequence[float]
) -> list[str]:
    """Return a sentence if rows share a place (what was trained, on how much, of what), one more if they share a run too.

    Rows of one place are taken for seeds of one another, which is right for seeds and wrong for two settings that the
    table does not tell apart.
    """
    first: dict[tuple[object, ...], int] = {}
    of_one_run: dict[tuple[object, ...], int] = {}
    seeds, twice = [], []
    for i, (place, run) in enumerate(zip(places, runs, strict=True)):
        earlier, same_run = first.setdefault(place, i), of_one_run.setdefault((place, run), i)
        if same_run != i:
            twice.append((same_run, i))
        elif earlier != i:
            seeds.append((earlier, i))
    said = []
    for pairs, taken in (
        (
            seeds,
            "taken for runs that differ in their seed alone; if something else differs, say it in a column",
        ),
        (twice, "although they are of one run, which has one loss there: remove one"),
    ):
        if pairs:
            a, b = pairs[0]
            more = f", and {len(pairs) - 1} more such row{'s' * (len(pairs) != 2)}" if len(pairs) > 1 else ""
            said.append(
                f"{names[a]} and {names[b]} have the same size, budget and mixture and the losses {losses[a]:g} and "
                f"{losses[b]:g}{more}: {taken}"
            )
    return said


SUM_TOLERANCE = 0.01
"""Shares that add up to one constant within this, rounding included, leave a direction of the mixing law free."""


def pin_gauge(shares: Sequence[str], rows: Rows) -> tuple[str, ...]:
    """Return the shares the mixing law is written in: without the most common one where all add up to a constant.

    Adding a constant to every slope then only rescales k. The slope of the share left out is 0, which pins it.
    """
    if len(shares) < 2:
        return tuple(shares)
    table = np.stack([column(rows, name) for name in shares])
    total = table.sum(axis=0)
    if np.ptp(total) > 2.0 * SUM_TOLERANCE:
        return tuple(shares)
    reference = shares[int(table.mean(axis=1).argmax())]
    return tuple(name for name in shares if name != reference)


def _refuse_first(rows: Rows, name: str, values: Floats, good: Flags, wanted: str) -> None:
    if not good.all():
        first = int(np.argmin(good))
        raise UserError(f"{name} of {row_names(rows)[first]} is {values[first]:g}; it must be {wanted}")


def too_few(law: Law, rows: Rows) -> str | None:
    """Return what these rows lack to determine the law, as half a sentence; None when they suffice."""
    columns = {name: column(rows, name).tolist() for name in law.columns_needed}
    least = 3 if len(columns) == 1 else 2
    for name, values in columns.items():
        levels = len(set(values))
        if levels < least and name != "unique_tokens":
            return (
                f"{name} takes {levels} different value{'s' * (levels != 1)} and must take at least {least}"
            )
    points, needed = len(set(zip(*columns.values(), strict=True))), len(law.names)
    if points < needed:
        return f"there are {points} different points and its {needed} parameters need at least {needed}"
    return None
