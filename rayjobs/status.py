"""How far a study is: one row a step with its state, what it has taken, and how long the rest will take."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rayjobs.aside import planned_runs, runs_of
from rayjobs.cli import Mistakes
from rayjobs.forecast import Forecast, StudyForecast
from rayjobs.schedule import running_now
from rayjobs.study import Step, StudyConfig, steps_of
from synth.errors import UserError
from synth.ledger import LEDGER, synthetic_directory
from synth.percentage import percentage
from synth.plan import Plan
from synth.progress import clock
from synth.storage import MARKER, exists, list_names, read_json
from synth.study_log import read_log
from train.placement import TrainPlacement
from train.record import records_of


@dataclass(frozen=True)
class StepStatus:
    """One step of a study."""

    step: str
    """Its place in the study file, such as `pretrain.grid`."""
    state: str
    """`finished`; `running` now; `begun` and not running; `ready` to begin; `waiting` for others; `wrong`: cannot run."""
    done_fraction: float | None
    """How much of it is there, [0, 1]; null where it has no parts to count."""
    wall_seconds: float
    """Wall-clock seconds of the times it ran to its end, by the study's log."""
    device_hours: float | None
    """Device-hours spent, by records and ledgers; null where an engine does not tell. A run that several steps list counts
    for the first of them."""
    cost: float | None
    """These at the study's prices; null without a price."""
    remaining_device_hours: float | None
    """Device-hours left: by the speed measured so far, else by the study's assumptions; null when neither says."""
    eta_seconds: float | None
    """Wall-clock seconds left on all engines or workers its placement asks for; null when not known."""
    note: str = ""
    """Since when it runs, what it waits for, or what is wrong."""


def status_of(study: StudyConfig) -> list[StepStatus]:
    """Return the status of every step in the order they run; nothing is written and nothing started."""
    steps = steps_of(study)
    forecast = StudyForecast(study, steps)
    running = {
        key: f"since {began_at} on {entry['host']}"
        for entry in running_now(study.root)
        for key, began_at in entry["steps"].items()
    }
    log = read_log(study.root)
    finished: set[str] = set()
    counted: set[str] = set()
    rows = []
    for step in steps:
        seconds = _device_seconds(step, counted)
        row = _status(study, step, forecast, running.get(step.key), log, finished, seconds)
        rows.append(row)
        if row.state == "finished":
            finished.add(step.key)
    return rows


def _status(
    study: StudyConfig,
    step: Step,
    forecast: StudyForecast,
    since: str | None,
    log: list[dict[str, Any]],
    finished: set[str],
    device_seconds: float | None,
) -> StepStatus:
    plan, note = _plan(step)
    foreseen, wrong = _foreseen(forecast, step)
    waits = [parent for parent in step.parents if parent not in finished]
    fraction = 1.0 if plan and plan.finished else _fraction(step, plan)
    if plan is not None and plan.finished:
        state = "finished"
    elif since is not None:
        state, note = "running", since
    elif wrong:
        state, note = "wrong", wrong
    elif waits:
        state, note = "waiting", f"needs {', '.join(waits)}"
    elif plan is None:
        state = "ready" if step.reads_elsewhere else "wrong"
        note = f"not looked at from here: {note}" if step.reads_elsewhere else note
    else:
        state = "begun" if fraction else "ready"
    hours = None if device_seconds is None else device_seconds / 3600
    generates = step.section == "rephrase"  # its price is the study's where it has none of its own
    price = step.config.cost.device_hour_price if generates else study.prices.training_device_hour
    left = 0.0 if state == "finished" else _remaining_hours(plan, foreseen, fraction)
    return StepStatus(
        step=step.key,
        state=state,
        done_fraction=fraction,
        wall_seconds=sum(
            entry["wall_seconds"] for entry in log if (entry["step"], entry["name"]) == (step.job.name, step.config.name)
        ),
        device_hours=hours,
        cost=None if price is None or hours is None else hours * price,
        remaining_device_hours=left,
        eta_seconds=None if left is None else left / _devices(step) * 3600,
        note=note,
    )  # fmt: skip


def _foreseen(forecast: StudyForecast, step: Step) -> tuple[Forecast, str]:
    try:
        return forecast.of(step), ""
    except UserError as error:
        return Forecast(generation_device_hours=None, training_device_hours=None), str(error)


def _plan(step: Step) -> tuple[Plan | None, str]:
    try:
        return step.plan(), ""
    except UserError as error:
        return None, str(error)


_COUNTS = {
    "corpora": ("inputs read already", "inputs to read", False),
    "rephrase": ("parts missing", "parts total", True),
    "pretrain": ("runs missing", "runs", True),
    "search": ("cells missing", "cells", True),
}
"""By section: the plan's facts that count the parts, and whether the first counts what is missing."""


def _fraction(step: Step, plan: Plan | None) -> float | None:
    if plan is None or step.section not in _COUNTS:
        return None
    part, whole, missing = _COUNTS[step.section]
    count, total = plan.facts.get(part), plan.facts.get(whole)
    if not isinstance(count, int) or not isinstance(total, int) or not total:
        return None
    return (total - count) / total if missing else count / total


def _remaining_hours(plan: Plan | None, forecast: Forecast, fraction: float | None) -> float | None:
    measured = next((value for name, value in (plan.facts if plan else {}).items()
                     if name.startswith("device-hours") and isinstance(value, (int, float))), None)  # fmt: skip
    if measured is not None:
        return float(measured)
    foreseen = (forecast.generation_device_hours, forecast.training_device_hours)
    if None in foreseen:
        return None
    return sum(hours for hours in foreseen if hours is not None) * (1.0 - (fraction or 0.0))


def _devices(step: Step) -> float:
    """Return how many devices are at work at once, as ledgers and records count them: GPUs, or engines and workers on CPUs."""
    placement: Any = getattr(step.config, "placement", None)
    if step.section == "rephrase":
        return float(placement.engines * (placement.gpus_per_engine or 1.0))
    if isinstance(placement, TrainPlacement):
        workers = placement.max_workers * (1 if step.section == "generators" else placement.lanes)
        return workers * placement.devices_per_worker
    return 1.0


def _device_seconds(step: Step, counted: set[str]) -> float | None:
    """Return the device-seconds a step has taken, None when an engine does not tell; its runs are added to `counted`.

    Runs that are counted already are left out, and so are trials that a plan, of whatever study, has trained.
    """
    if step.section == "rephrase":
        directory = synthetic_directory(step.config.root, step.config.name)
        found = [directory / MARKER] if exists(directory / MARKER) else [
            directory / LEDGER / name for name in list_names(directory / LEDGER, ".json")
        ]  # fmt: skip
        entries = [read_json(path) for path in found]
        seconds = [entry[name] for entry in entries for name in ("device_seconds", "engine_start_seconds")]
        return None if None in seconds else float(sum(seconds))
    planned = planned_runs(step.config.root) if step.section in ("search", "learning_rates") else set()
    runs = [run_id for run_id in runs_of(step) if run_id not in counted | planned]
    counted.update(runs)
    return float(sum(record.own_device_seconds for record in records_of(step.config.root, runs).values()))


# --- saying it -------------------------------------------------------------------------------------------------


def print_status(study: StudyConfig, json_output: bool, write: Callable[[str], None]) -> None:
    """Write the table of steps, or the same as JSON. Raises Mistakes when a step cannot be run as it stands."""
    rows = status_of(study)
    write(_as_json(study, rows) if json_output else _as_table(study, rows))
    if wrong := [f"{row.step}: {row.note}" for row in rows if row.state == "wrong"]:
        raise Mistakes(wrong)


def _as_json(study: StudyConfig, rows: list[StepStatus]) -> str:
    at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    value = {"root": study.root, "at": at, "currency": study.prices.currency, "steps": [asdict(row) for row in rows], "total": _total(rows)}  # fmt: skip
    return json.dumps(value, indent=2, ensure_ascii=False)


def _total(rows: Iterable[StepStatus]) -> dict[str, float | int | None]:
    rows = list(rows)
    left = [row.remaining_device_hours for row in rows]
    hours = [row.device_hours for row in rows]
    costs = [row.cost for row in rows if row.device_hours != 0]
    unpriced = all(row.cost is None for row in rows)
    return {
        "finished": sum(row.state == "finished" for row in rows),
        "steps": len(rows),
        "wall_seconds": sum(row.wall_seconds for row in rows),
        "device_hours": None if None in hours else sum(each for each in hours if each is not None),
        "cost": None if unpriced or None in costs else sum(cost for cost in costs if cost is not None),
        "remaining_device_hours": None if None in left else sum(each for each in left if each is not None),
    }


_HEADINGS = ("step", "state", "done", "wall", "device-hours", "cost", "left", "ETA", "")


def _as_table(study: StudyConfig, rows: list[StepStatus]) -> str:
    total = _total(rows)
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    lines.append((
        "all", f"{total['finished']} of {total['steps']}", "", clock(float(total["wall_seconds"] or 0)),
        _hours(total["device_hours"]), _money(total["cost"]), _hours(total["remaining_device_hours"]), "", "",
    ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    right = {2, 3, 4, 5, 6, 7}
    table = [
        "  ".join(cell.rjust(width) if column in right else cell.ljust(width) for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip
    currency = f"; cost in {study.prices.currency}" if total["cost"] is not None else ""
    return "\n".join([f"{study.root}: device-hours and time left are estimates{currency}", "", *table])


def _cells(row: StepStatus) -> tuple[str, ...]:
    done = "" if row.done_fraction is None else percentage(row.done_fraction)
    wall = clock(row.wall_seconds) if row.wall_seconds else ""
    finished = row.state == "finished"
    spent = _hours(row.device_hours)
    cost = _money(row.cost) if row.device_hours else ""
    left = "" if finished else _hours(row.remaining_device_hours)
    eta = (
        ""
        if finished
        else "unknown"
        if row.eta_seconds is None
        else clock(row.eta_seconds)
        if row.eta_seconds
        else ""
    )
    return (row.step, row.state, done, wall, spent, cost, left, eta, row.note)


def _hours(value: float | int | None) -> str:
    return "unknown" if value is None else "" if value == 0 else f"{value:,.3g}"


def _money(value: float | int | None) -> str:
    return "" if value is None else f"{value:,.2f}"
