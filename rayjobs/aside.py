"""Where the artefacts of a step lie, and moving them out of the way so that the step is done again: nothing is deleted."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator

from upath import UPath

from rayjobs.references import PLACES
from rayjobs.study import Step
from synth.storage import MARKER, exists, is_local, list_directories, read_bytes, read_json, study_path
from train.attempts import CONFIG_FILE
from train.grid import PLAN_FILE
from train.rates import RATES_FILE
from train.record import RECORD_FILE, run_directory
from train.run import RunConfig
from tune.search import TRIALS_FILE

OWN_NAMES = (".exchanges", ".synthetic-exchanges")
"""What train_generator adds to a generator's name for the corpora and the packed set it makes for itself."""
ASIDE = "aside"
"""Directory under the study root that artefacts done again are moved to, by time."""


def what_is_there(step: Step) -> list[UPath]:
    """Return the directories and files a step has left so far, runs and trunks that are its own included."""
    return [path for path in dict.fromkeys(_paths(step)) if exists(path)]


def move_aside(root: str, step: Step) -> list[tuple[UPath, UPath]]:
    """Move everything a step has left to `aside/<time>/`; return (old place, new place) of each."""
    time = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    moved = []
    # A kill between two moves leaves a step that is not finished, and is done again.
    for path in what_is_there(step):
        target = study_path(root, ASIDE, time, *path.relative_to(study_path(root)).parts)
        _move(path, target)
        moved.append((path, target))
    return moved


def _move(path: UPath, target: UPath) -> None:
    if is_local(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    else:  # no store moves a directory at once: what makes it finished goes first, so that a kill leaves no torn one
        path.fs.copy(path.path, target.path, recursive=True)
        for last in (MARKER, RECORD_FILE):
            (path / last).unlink(missing_ok=True)
        path.fs.rm(path.path, recursive=True)


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
    yield directory_of(step)


def directory_of(step: Step, root: str | None = None) -> UPath:
    """Return where a step's artefact lies, under its own root or under another study's."""
    place = [PLACES[step.section]] if step.section in PLACES else []
    return study_path(root or step.config.root, *place, step.config.name)


def runs_of(step: Step) -> list[str]:
    """Return the runs a step lists, each once, whoever else lists them."""
    return list(dict.fromkeys(_runs_in(step.section, directory_of(step))))


def _runs_in(section: str, directory: UPath) -> Iterator[str]:
    if section == "generators" and exists(directory / MARKER):
        yield read_json(directory / MARKER)["run_id"]
    if section == "pretrain" and exists(directory / PLAN_FILE):
        yield from (run["run_id"] for run in read_json(directory / PLAN_FILE)["runs"])
    if section == "search":
        for cell in list_directories(directory):
            yield from (json.loads(line)["run_id"] for line in _lines(directory / cell / TRIALS_FILE))
    if section == "learning_rates" and exists(directory / RATES_FILE):
        sizes = read_json(directory / RATES_FILE)["sizes"]
        yield from (trial["run_id"] for size in sizes for trial in size["trials"])


_OWNERS = ("pretrain", "search", "learning_rates")
"""Sections that share runs: a run belongs to the first that lists it."""


def own_runs(step: Step) -> list[str]:
    """Return the runs that are this step's alone: no other plan lists them, and if it is a search or a sweep no other of
    those either. The others' records would be gone with them."""
    if step.section not in _OWNERS:
        return runs_of(step)
    others: set[str] = set()
    for section in _OWNERS[: _OWNERS.index(step.section) + 1]:
        place = study_path(step.config.root, PLACES[section])
        for name in list_directories(place):
            if (section, name) != (step.section, step.config.name):
                others.update(_runs_in(section, place / name))
    return [run_id for run_id in runs_of(step) if run_id not in others]


def planned_runs(root: str) -> set[str]:
    """Return the runs of all plans under a root."""
    plans = study_path(root, PLACES["pretrain"])
    return {run_id for name in list_directories(plans) for run_id in _runs_in("pretrain", plans / name)}


def _lines(path: UPath) -> list[str]:
    return read_bytes(path).decode("utf-8").splitlines() if exists(path) else []


def _of_run(root: str, run_id: str) -> Iterator[UPath]:
    directory = run_directory(root, run_id)
    if exists(directory / CONFIG_FILE):
        trunk = RunConfig.model_validate(read_json(directory / CONFIG_FILE)).trunk_id
        if trunk is not None:
            yield study_path(root, "trunks", trunk)
    yield directory
