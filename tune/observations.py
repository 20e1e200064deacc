"""The rows of a fit: the runs of a plan, read here from their records, or lines of a table (`tune.run_tables`).

Nothing is left out silently: every row that is not used is listed with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from synth.errors import IncompleteArtefact, UserError
from synth.identity import content_hash
from synth.storage import read_json
from train.grid import MADE_BY, PLAN_FILE, plan_directory
from train.record import RunRecord, records_of
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
    notes: tuple[str, ...] = ()
    """What a reader should know of the rows, such as that some repeat others."""

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

    def by_share(self) -> Observations:
        """Return a table's rows with every group in which the mixture varies split by it; other groups stay as they are.

        A mixture is the synthetic share, or the shares of several sources.
        """
        dropped = [row.observation for row in self.left_out if row.observation is not None]
        mixtures: dict[str, set[tuple[float | None, ...]]] = {}
        for row in (*self.rows, *dropped):
            mixtures.setdefault(row.group, set()).add(_mixture(row))
        varied = {group for group, found in mixtures.items() if len(found) > 1}
        digits = _digits(
            {100.0 * share for group in varied for one in mixtures[group] for share in one if share}
        )

        def split(row: Observation) -> Observation:
            if row.group not in varied:
                return row
            if row.shares:
                return replace(row, group=_in_group(row.group, _parts(row, digits)))
            name = "synthetic" if row.group == ALL else row.group
            label = (
                NATURAL
                if row.group == ALL and not row.share
                else f"{name} {_percent(100.0 * (row.share or 0.0), digits)} %"
            )
            return replace(row, group=label, synthetic=name if row.share else None)

        left_out = []
        for each in self.left_out:
            moved = None if each.observation is None else split(each.observation)
            group = each.group if moved is None else moved.group
            left_out.append(replace(each, group=group, observation=moved))
        return replace(self, rows=tuple(split(row) for row in self.rows), left_out=tuple(left_out))

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


def _percent(value: float, digits: int | None = None) -> str:
    if digits is not None:
        return f"{value:.{digits}g}"
    return f"{value:.0f}" if value >= 9.95 or abs(value - round(value)) < 0.005 else f"{value:.1f}"


def _digits(percentages: set[float]) -> int | None:
    """Return so many significant digits that no two of these look alike; None where the usual ones suffice."""
    if len({_percent(value) for value in percentages}) == len(percentages):
        return None
    return next(
        (n for n in range(3, 17) if len({f"{value:.{n}g}" for value in percentages}) == len(percentages)), 17
    )


def _mixture(row: Observation) -> tuple[float | None, ...]:
    return tuple(row.shares.values()) if row.shares else (row.share,)


def _parts(row: Observation, digits: int | None) -> str:
    parts = [f"{name} {_percent(100.0 * share, digits)} %" for name, share in row.shares.items() if share > 0]
    return " + ".join(parts) or NATURAL


def _in_group(group: str, label: str) -> str:
    return label if group == ALL else f"{group}, {label}"
