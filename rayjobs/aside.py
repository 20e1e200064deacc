"""Where the artefacts of a step lie, and moving them out of the way so that the step is done again: nothing is deleted."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator

from upath import UPath

from rayjobs.study import Step
from synth.storage import MARKER, is_local, list_directories, read_json, study_path
from train.attempts import CONFIG_FILE
from train.grid import PLAN_FILE
from train.rates import RATES_FILE
from train.record import run_directory
from train.run import RunConfig
from tune.search import TRIALS_FILE

OWN_NAMES = (".exchanges", ".synthetic-exchanges")
"""What train_generator adds to a generator's name for the corpora and the packed set it makes for itself."""
ASIDE = "aside"
"""Directory under the study root that artefacts done again are moved to, by time."""


def what_is_there(step: Step) -> list[UPath]:
    """Return the directories and files a step has left so far, runs and trunks that are its own included."""
    return [path for path in dict.fromkeys(_paths(step)) if path.exists()]


def move_aside(root: str, step: Step) -> list[tuple[UPath, UPath]]:
    """Move everything a step has left to `aside/<time>/`; return (old place, new place) of each."""
    time = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    moved = []
    # The marker goes with its directory; a kill between two moves leaves a step that is not finished, and is done again.
    for path in what_is_there(step):
        target = study_path(root, ASIDE, time, *path.relative_to(study_path(root)).parts)
        _move(path, target)
        moved.append((path, target))
    return moved


def _move(path: UPath, target: UPath) -> None:
    if is_local(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    else:
        path.fs.mv(path.path, target.path, recursive=True)


def _paths(step: Step) -> Iterator[UPath]:
    root, name = step.config.root, step.config.name
    if step.section == "recommend":
        yield from (study_path(root, "recommendations", f"{name}{end}") for end in (".json", ".next.toml"))
        return
    for run_id in own_runs(step):
        yield from _of_run(root, run_id)
    if step.section == "generators":
        yield from (
            study_path(root, kind, f"{name}{end}") for kind in ("corpora", "packed") for end in OWN_NAMES
        )
    yield _directory(step)


_PLACES = {
    "corpora": "corpora", "generators": "generators", "rephrase": "synthetic", "pack": "packed", "learning_rates": "learning_rates", "pretrain": "plans",
    "search": "searches", "laws": "laws",
}  # fmt: skip
"""Section -> where its artefacts lie under the root; a report lies at the root itself."""


def _directory(step: Step) -> UPath:
    place = [_PLACES[step.section]] if step.section in _PLACES else []
    return study_path(step.config.root, *place, step.config.name)


def own_runs(step: Step) -> list[str]:
    """Return the runs that are this step's own: a trial that a plan has trained belongs to the plan."""
    directory = _directory(step)
    if step.section == "generators" and (directory / MARKER).exists():
        return [read_json(directory / MARKER)["run_id"]]
    if step.section == "pretrain" and (directory / PLAN_FILE).exists():
        return [run["run_id"] for run in read_json(directory / PLAN_FILE)["runs"]]
    if step.section == "learning_rates" and (directory / RATES_FILE).exists():
        planned = _planned_runs(step.config.root)
        trials = [trial for size in read_json(directory / RATES_FILE)["sizes"] for trial in size["trials"]]
        return [trial["run_id"] for trial in trials if trial["run_id"] not in planned]
    if step.section == "search":
        planned = _planned_runs(step.config.root)
        lines = [
            line for cell in list_directories(directory) for line in _lines(directory / cell / TRIALS_FILE)
        ]
        return [run_id for line in lines if (run_id := json.loads(line)["run_id"]) not in planned]
    return []


def _planned_runs(root: str) -> set[str]:
    plans = study_path(root, "plans")
    files = [plans / name / PLAN_FILE for name in list_directories(plans)]
    return {run["run_id"] for file in files if file.exists() for run in read_json(file)["runs"]}


def _lines(path: UPath) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _of_run(root: str, run_id: str) -> Iterator[UPath]:
    directory = run_directory(root, run_id)
    if (directory / CONFIG_FILE).exists():
        trunk = RunConfig.model_validate(read_json(directory / CONFIG_FILE)).trunk_id
        if trunk is not None:
            yield study_path(root, "trunks", trunk)
    yield directory
