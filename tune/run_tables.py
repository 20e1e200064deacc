"""Any table of runs, from CSV or Parquet: which column is what, checked and typed.

A table that cannot be trusted (a text where a number should be, a row twice) is refused in one sentence.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from synth.errors import UserError
from synth.storage import read_bytes, study_path
from tune.config import ColumnMapping
from tune.laws.rows import said_of_repeats
from tune.observations import ALL, Observation, Observations


def read_table(path: str, columns: ColumnMapping, needed: Sequence[str]) -> Observations:
    """Return the rows of a .csv or .parquet table; `needed` are the inputs that must be there beside the loss.

    Size, budget, share and unique tokens are read wherever the table has them, and the columns of shares that are mapped:
    two mixtures are not one because a law does not ask for their difference. Raises UserError for a file that cannot be
    read, a column that is not there, a value that cannot be what it says it is, a missing run or group, or two identical
    rows. Rows that repeat a place of others are noted.
    """
    data = _bytes_of(path)
    table = _parse(path, data)
    mapped = {
        role
        for role in _OPTIONAL
        if getattr(columns, role) not in ("", ColumnMapping.model_fields[role].default)
    }
    wanted = {*needed, "loss", *mapped, *columns.shares}
    named = {
        role: name
        for role in dict.fromkeys((*needed, "loss", *_OPTIONAL, *columns.shares))
        if (name := getattr(columns, role, role)) or role in needed
    }
    _check_columns(path, table, named, columns, wanted)
    _refuse_duplicates(path, table)
    present = {
        role: table.column(name).to_pylist() for role, name in named.items() if name in table.column_names
    }
    runs, groups = (
        table.column(name).to_pylist() if name else None for name in (columns.run_id, columns.group)
    )
    rows = []
    for index in range(table.num_rows):
        numbers = {
            role: _number(path, index, named[role], role, cells[index]) for role, cells in present.items()
        }
        rows.append(
            Observation(
                row=f"row {index + 1}",
                run_id=_name(path, index, columns.run_id, runs, f"row {index + 1}"),
                group=_name(path, index, columns.group, groups, ALL),
                num_params=numbers.get("num_params"),
                train_tokens=numbers.get("train_tokens"),
                loss=numbers["loss"],
                share=numbers.get("share"),
                unique_tokens=numbers.get("unique_tokens"),
                shares={role: value for role, value in numbers.items() if role in columns.shares},
            )
        )
    notes = _said_of_repeats(rows)
    return Observations(path, tuple(rows), hash=hashlib.sha256(data).hexdigest()[:16], notes=notes)


_OPTIONAL = ("num_params", "train_tokens", "share", "unique_tokens")
"""What is read of a table wherever it is there."""


def _said_of_repeats(rows: Sequence[Observation]) -> tuple[str, ...]:
    places = [
        (row.group, row.num_params, row.train_tokens, row.share, row.unique_tokens, *row.shares.values())
        for row in rows
    ]
    names, runs, losses = (
        zip(*((row.row, row.run_id, row.loss) for row in rows), strict=True) if rows else ((),) * 3
    )
    return tuple(said_of_repeats(places, names, runs, losses))


def _bytes_of(path: str) -> bytes:
    if not path.endswith((".csv", ".parquet")):
        raise UserError(f"runs = {path!r}: a table of runs must end in .csv or .parquet")
    try:
        return read_bytes(study_path(path))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"runs = {path!r} does not exist or is not a file") from None
    except OSError as error:
        raise UserError(f"runs = {path!r} cannot be read: {error.strerror or error}") from None


def _parse(path: str, data: bytes) -> pa.Table:
    try:
        if path.endswith(".parquet"):
            return pq.read_table(io.BytesIO(data))
        blanks = pyarrow.csv.ConvertOptions(
            null_values=[""]
        )  # "nan" and "NA" are shown as they stand, not as empty
        return pyarrow.csv.read_csv(io.BytesIO(data), convert_options=blanks)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"runs = {path!r} cannot be read as a table: {reason}") from None


def _check_columns(
    path: str, table: pa.Table, named: Mapping[str, str], columns: ColumnMapping, needed: Set[str]
) -> None:
    wanted = {role: name for role, name in named.items() if role in needed}
    wanted |= {role: name for role in ("run_id", "group") if (name := getattr(columns, role)) is not None}
    for role, name in wanted.items():
        if name not in table.column_names:
            flag = "shares" if role in columns.shares else role
            name = name or "(none)"
            raise UserError(
                f"runs = {path!r} has no column {name!r}; it has {', '.join(table.column_names) or 'none'}: "
                f"say which one it is with --columns.{flag} NAME"
            )


def _refuse_duplicates(path: str, table: pa.Table) -> None:
    lines = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    twice = [line for line, count in Counter(lines).items() if count > 1]
    if twice:
        first = lines.index(twice[0])
        second = lines.index(twice[0], first + 1)
        raise UserError(
            f"rows {first + 1} and {second + 1} of {path!r} are identical in every column: remove one, or add a column "
            "that tells the two runs apart"
        )


def _number(path: str, index: int, column: str, role: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    is_positive = role in ("num_params", "train_tokens", "unique_tokens", "loss")
    if math.isfinite(number) and (number > 0 if is_positive else 0 <= number <= 1):
        return number
    shown = "empty" if value is None else repr(value)
    wanted = "a positive number" if is_positive else "a share between 0 and 1"
    unless = (
        f"; if that column is something else, --columns.{role} '' leaves it alone"
        if role in _OPTIONAL[2:]
        else ""
    )
    raise UserError(f"{column} of row {index + 1} in {path!r} is {shown}: it must be {wanted}{unless}")


def _name(path: str, index: int, column: str | None, cells: list[Any] | None, default: str) -> str:
    if cells is None:
        return default
    if cells[index] is None or cells[index] == "":
        raise UserError(f"{column} of row {index + 1} in {path!r} is empty: every row needs one")
    return str(cells[index])
