"""Where the rows of a fit come from: the records of a plan's runs, or any table of runs, checked and typed.

Nothing is left out silently: every row that is not used is listed with its reason, and a table that cannot be
trusted (a text where a number should be, a row twice) is refused in one sentence.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from synth.errors import IncompleteArtefact, UserError
from synth.identity import content_hash
from synth.storage import read_bytes, read_json, study_path
from train.grid import MADE_BY, PLAN_FILE, plan_directory
from train.record import RunRecord, records_of
from tune.config import ColumnMapping, LawsConfig
from tune.laws.registry import law_named
from tune.laws.rows import Rows
from tune.results import ExcludedRow

ALL = "all"
"""Group of the rows of a table without a group column."""
NATURAL = "natural"


@dataclass(frozen=True)
class Observation:
    """One row of a fit: a run, or a line of a table."""

    row: str
    """Its name: the run id of a record, `row 12` in a table."""
    run_id: str
    """Rows with the same run id come from one run."""
    group: str
    num_params: float | None
    """N, parameters; None when the table has no such column and the law does not need it."""
    train_tokens: float | None
    """D, tokens."""
    loss: float
    """Nats per token."""
    share: float | None = None
    """Synthetic share of the training tokens; None when the table does not say."""
    synthetic: str | None = None
    """Source of the synthetic tokens; None for natural text alone and for tables."""
    unique_tokens: float | None = None
    """Training tokens seen for the first time, of all sources; None when the table does not say."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Further shares by column name, for laws of the mixture."""

    def value(self, name: str) -> float | None:
        """Return an input of a law by name; None when it is not known."""
        found: float | None = self.shares[name] if name in self.shares else getattr(self, name)
        return found


@dataclass(frozen=True)
class LeftOut:
    """A row or run that is not fitted."""

    run_id: str
    reason: str
    group: str
    synthetic: str | None = None
    observation: Observation | None = None
    """What it measured; None when it has no loss."""


@dataclass(frozen=True)
class Observations:
    """All rows of one job, those to fit and those left out."""

    origin: str
    """What they were read from, for people."""
    rows: tuple[Observation, ...]
    left_out: tuple[LeftOut, ...] = ()
    hash: str = ""
    """Identity of what was read: of the runs' results, or of the table's bytes."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups in order of appearance, those without a row to fit included."""
        return tuple(
            dict.fromkeys([*(row.group for row in self.rows), *(row.group for row in self.left_out)])
        )

    def of(self, group: str) -> tuple[Observation, ...]:
        """Return the rows of one group."""
        return tuple(row for row in self.rows if row.group == group)

    def excluded_of(self, group: str) -> tuple[ExcludedRow, ...]:
        """Return what was left out of one group, and why."""
        return tuple(
            ExcludedRow(run_id=row.run_id, reason=row.reason) for row in self.left_out if row.group == group
        )

    def without_highest_losses(self, count: int) -> Observations:
        """Return the observations with the rows of the highest losses left out."""
        highest = {row.row for row in sorted(self.rows, key=lambda row: row.loss, reverse=True)[:count]}
        reason = f"one of the {count} highest losses (drop_highest_losses = {count})"
        dropped = (
            LeftOut(row.row, reason, row.group, row.synthetic, row) for row in self.rows if row.row in highest
        )
        kept = tuple(row for row in self.rows if row.row not in highest)
        return replace(self, rows=kept, left_out=(*self.left_out, *dropped))

    def by_source(self) -> Observations:
        """Return the observations grouped by synthetic source, the natural rows in every group."""
        mixed = [*(row.synthetic for row in self.rows), *(row.synthetic for row in self.left_out)]
        sources = [name for name in dict.fromkeys(mixed) if name is not None]
        return replace(
            self,
            rows=tuple(
                replace(row, group=name)
                for name in sources
                for row in self.rows
                if row.synthetic in (None, name)
            ),
            left_out=tuple(
                replace(row, group=name)
                for name in sources
                for row in self.left_out
                if row.synthetic in (None, name)
            ),
        )


def columns_of(rows: Sequence[Observation]) -> Rows:
    """Return observations as the columns a law is fitted to."""
    table: dict[str, Any] = {
        "row": np.array([row.row for row in rows]),
        "run_id": np.array([row.run_id for row in rows]),
        "loss": np.array([row.loss for row in rows]),
    }
    shares = rows[0].shares if rows else {}
    for name in ("num_params", "train_tokens", "unique_tokens", "share", *shares):
        values = [row.value(name) for row in rows]
        if None not in values:
            table[name] = np.array(values, dtype=np.float64)
    return table


def read_observations(config: LawsConfig) -> Observations:
    """Return the rows a job fits. Raises UserError for what cannot be read or trusted, in one sentence."""
    if config.runs is None:
        found = read_plan(config.root, config.plan)
    else:
        law = None if config.law == "auto" else law_named(config.law, config.columns.shares)
        needed = ("num_params", "train_tokens") if law is None else law.columns_needed
        found = read_table(config.runs, config.columns, needed)
    return found.without_highest_losses(config.drop_highest_losses)


# --- the records of a plan -------------------------------------------------------------------------------------


def mixture_label(synthetic: str | None, share: float) -> str:
    """Return the name of a mixture: `natural`, or the source and its share, such as `hq 33 %`."""
    if synthetic is None or share == 0:
        return NATURAL
    return f"{synthetic} {_percent(100.0 * share)} %"


def read_plan(root: str, plan: str) -> Observations:
    """Return the runs of a plan. Raises IncompleteArtefact without the plan, or while runs are missing."""
    entries = _plan_entries(root, plan)
    records = records_of(root, (entry["run_id"] for entry in entries))
    missing = [entry["run_id"] for entry in entries if entry["run_id"] not in records]
    if missing:
        lacking = f"{len(missing)} of its {len(entries)} runs have no record yet, the first is {missing[0]}"
        raise IncompleteArtefact(str(plan_directory(root, plan)), MADE_BY, lacking)
    _refuse_shares_of_one_name(plan, entries)
    rows: list[Observation] = []
    left_out: list[LeftOut] = []
    for entry in entries:
        record = records[entry["run_id"]]
        group = mixture_label(entry["synthetic"], entry["share"])
        if record.status != "complete" or record.final is None:
            why = f"{record.status}: {record.reason}" if record.reason else record.status
            left_out.append(LeftOut(record.run_id, why, group, entry["synthetic"]))
        else:
            rows.append(_of_record(record, entry, group))
    results = [
        [row.row, row.group, row.num_params, row.train_tokens, row.unique_tokens, row.loss] for row in rows
    ]
    identity = content_hash({"rows": results, "left out": [[row.run_id, row.reason] for row in left_out]})
    return Observations(f"plan {plan!r}", tuple(rows), tuple(left_out), identity)


def _refuse_shares_of_one_name(plan: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError when two shares have one name, because laws are fitted by name and would take them for one."""
    shares: dict[str, float] = {}
    for entry in entries:
        group = mixture_label(entry["synthetic"], entry["share"])
        first = shares.setdefault(group, entry["share"])
        if first != entry["share"]:
            raise UserError(
                f"plan {plan!r} has the shares {first:.6g} and {entry['share']:.6g} of {entry['synthetic']}, which laws would "
                f"take for one mixture, {group!r}: fit a plan that has only one of them."
            )


def _plan_entries(root: str, plan: str) -> list[dict[str, Any]]:
    directory = plan_directory(root, plan)
    try:
        return list(read_json(directory / PLAN_FILE)["runs"])
    except FileNotFoundError:
        raise IncompleteArtefact(str(directory), MADE_BY) from None


def _of_record(record: RunRecord, entry: dict[str, Any], group: str) -> Observation:
    assert record.final is not None
    return Observation(
        row=record.run_id,
        run_id=record.run_id,
        group=group,
        num_params=float(record.num_params_non_embedding),
        train_tokens=float(record.train_tokens),
        loss=record.final.loss_nats_per_token,
        share=float(entry["share"]),
        synthetic=entry["synthetic"] if entry["share"] else None,
        unique_tokens=float(sum(use.unique_tokens for use in record.sources.values())) or None,
    )


def _percent(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 or abs(value - round(value)) < 0.005 else f"{value:.1f}"


# --- any table of runs -----------------------------------------------------------------------------------------


def read_table(path: str, columns: ColumnMapping, needed: Sequence[str]) -> Observations:
    """Return the rows of a .csv or .parquet table; `needed` are the inputs that must be there beside the loss.

    Raises UserError for a file that cannot be read, a column that is not there, a value that cannot be what it says
    it is, a missing run or group, or two identical rows.
    """
    data = _bytes_of(path)
    table = _parse(path, data)
    named = {
        role: getattr(columns, role, role)
        for role in dict.fromkeys((*needed, "loss", "num_params", "train_tokens"))
    }
    _check_columns(path, table, named, columns, {*needed, "loss"})
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
    return Observations(path, tuple(rows), hash=hashlib.sha256(data).hexdigest()[:16])


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
    raise UserError(f"{column} of row {index + 1} in {path!r} is {shown}: it must be {wanted}")


def _name(path: str, index: int, column: str | None, cells: list[Any] | None, default: str) -> str:
    if cells is None:
        return default
    if cells[index] is None or cells[index] == "":
        raise UserError(f"{column} of row {index + 1} in {path!r} is empty: every row needs one")
    return str(cells[index])
