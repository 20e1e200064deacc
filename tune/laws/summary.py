"""Fits as text for a terminal: one in full, or many as one table per law."""

from __future__ import annotations

from collections.abc import Sequence

from synth.percentage import percentage
from tune.results import Interval, LawFit, Selection


def describe(record: LawFit) -> str:
    """Return one fit in full: parameters with intervals, how it was found, hold-out error, warnings."""
    delta = f" (delta {record.huber_delta:g})" if record.huber_delta is not None else ""
    lines = [
        f"{record.law} law, {record.group}: {_formula(record)}",
        f"  {len(record.rows_used)} rows, {record.objective}{delta} = {record.objective_value:.10g}, "
        f"gradient {record.gradient_norm:.1e}, {'converged' if record.converged else 'NOT CONVERGED'}, "
        + _starts(record),
    ]
    width = max(len(name) for name in record.parameters) + 1
    level = f"{percentage(record.confidence)} interval"
    lines += [
        f"  {name:<{width}} {interval.value:>12.6g}   {level + ' ' if _has_ends(interval) else ''}{_ends(interval, 6)}"
        for name, interval in record.parameters.items()
    ]
    if record.hold_out is not None:
        count = len(record.hold_out.points)
        lines.append(
            f"  held-out largest scale ({count} run{'s' * (count != 1)}): mean absolute relative error {_held_out(record)}"
        )
    lines += [f"  {profile.verdict}" for profile in record.profiles.values() if not profile.weak]
    if record.frontier is not None and record.frontier.num_params_exponent is not None:
        lines.append(f"  compute-optimal: N* ~ C^{_with_ends(record.frontier.num_params_exponent)}")
    if record.best_shares:
        largest = record.best_shares[-1]
        lines.append(
            f"  best share at N = {largest.num_params:,.0f}, D = {largest.train_tokens:,.0f}: {_with_ends(largest.best_share)}"
        )
    if record.selection is not None and record.group == "all":
        lines += describe_selection(record.selection)
    return "\n".join([*lines, *(f"  ! {warning}" for warning in record.warnings)])


def _starts(record: LawFit) -> str:
    if record.starts_at_optimum_fraction is None:
        return f"{record.num_starts:,} starts"
    return (
        f"{percentage(record.starts_at_optimum_fraction)} of the starts reach the optimum "
        f"({record.starts_followed} of {record.num_starts:,} followed to the end)"
    )


def describe_selection(selection: Selection) -> list[str]:
    """Return a comparison of laws as lines of a table, the chosen one first."""
    held = ("num_params", "train_tokens", "compute")
    head = ["law", "parameters", "largest N", "largest D", "largest C", "in sample"]
    table = [
        [
            score.law,
            str(score.num_parameters),
            *("-" if (error := score.held_out.get(axis)) is None else percentage(error, 3) for axis in held),
            score.reason or ("-" if score.in_sample is None else f"{score.in_sample:.6g}"),
        ]
        for score in selection.scores
    ]
    return [
        f"  law chosen: {selection.law} ({selection.reason})",
        *(f"    {line}" for line in _aligned([head, *table])),
    ]


def _with_ends(interval: Interval) -> str:
    return f"{interval.value:.4g}" + (f" ({_ends(interval, 4)})" if _has_ends(interval) else "")


def tabulate(records: Sequence[LawFit]) -> list[str]:
    """Return many fits as lines: a table for each law with a row for each group, warnings below it."""
    lines: list[str] = []
    for law in dict.fromkeys(record.law for record in records):
        chosen = [record for record in records if record.law == law]
        if len(chosen) == 1:
            lines += describe(chosen[0]).splitlines()
            continue
        lines.append(
            f"{law} law: {_formula(chosen[0])}; {chosen[0].objective}, {percentage(chosen[0].confidence)} intervals"
        )
        lines += [
            f"  {line}" for line in _aligned([_head(chosen[0]), *(_cells(record) for record in chosen)])
        ]
        lines += [f"  ! {record.group}: {warning}" for record in chosen for warning in record.warnings]
    return lines


def _formula(record: LawFit) -> str:
    return record.formula + "".join(f", {name} = {value:g}" for name, value in record.fixed.items())


def _head(record: LawFit) -> list[str]:
    return ["group", "rows", *record.parameters, "held-out error", ""]


def _cells(record: LawFit) -> list[str]:
    parameters = [
        f"{interval.value:.4g} ({_ends(interval, 3)})" if _has_ends(interval) else f"{interval.value:.4g}"
        for interval in record.parameters.values()
    ]
    converged = "" if record.converged else "NOT CONVERGED"
    return [record.group, str(len(record.rows_used)), *parameters, _held_out(record), converged]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _held_out(record: LawFit) -> str:
    return (
        "not known"
        if record.hold_out is None
        else percentage(record.hold_out.mean_absolute_relative_error, 2)
    )


def _has_ends(interval: Interval) -> bool:
    return interval.low is not None or interval.high is not None


def _ends(interval: Interval, digits: int) -> str:
    if not _has_ends(interval):
        return "no interval"
    low, high = ("unbounded" if end is None else f"{end:.{digits}g}" for end in (interval.low, interval.high))
    return f"{low} to {high}"
