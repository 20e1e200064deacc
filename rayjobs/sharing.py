"""Take over from another study's root what this study would make in exactly the same way.

The same way means: under the same section and name, finished, from the same recipe, and made from parents that have
the same hashes here and there. Runs go by their id alone, which is a hash of everything that decides them. Files are
linked where both roots are on one disk, copied otherwise, the marker last; nothing in the other root is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from upath import UPath

from rayjobs.aside import OWN_NAMES, directory_of
from rayjobs.study import Step
from synth.errors import UserError
from synth.identity import is_finished
from synth.storage import (
    MARKER,
    exists,
    is_local,
    patiently,
    read_bytes,
    read_json,
    study_path,
    write_bytes_atomic,
)
from train.config import PretrainConfig, RateSweepConfig
from train.grid import plan_runs
from train.rate_sweep import missing_runs
from train.record import RECORD_FILE, read_record, run_directory
from train.tokens import PackedInfo
from tune.cells import trial_run
from tune.config import SearchConfig
from tune.rounds import first_choices
from tune.search import cells_of

TAKEN_WHOLE = ("corpora", "generators", "rephrase", "pack")
"""Sections whose artefacts are taken over whole; of others only runs are."""


def take_over(step: Step, roots: Iterable[str], steps: Mapping[str, Step]) -> str | None:
    """Take what there is of a step from the first root that has it; return that root, None when none has.

    Of a plan, a search or a sweep the runs that are there are taken, from every root, and None is returned: the step
    itself still has to be run, and finds them done.
    """
    if step.section in TAKEN_WHOLE:
        for root in roots:
            if _same_there(step, root, steps):
                _take_artefact(step, root)
                return root
    if step.section in ("pretrain", "search", "learning_rates"):
        for root in roots:
            for run_id in _wanted_runs(step):
                _take_run(root, step.config.root, run_id)
    return None


def _same_there(step: Step, root: str, steps: Mapping[str, Step]) -> bool:
    """Return whether the step is finished under another root, from the same recipe and the same parents."""
    if not is_finished(directory_of(step, root)):
        return False
    for key in step.parents:
        parent = steps[key]
        here = _hash(step.config.root, parent) if parent.section in TAKEN_WHOLE else None
        if here is None or here != _hash(root, parent):
            return False
    try:
        return replace(step, config=step.config.model_copy(update={"root": root})).plan().finished
    except UserError:  # another recipe, or something it needs is gone there
        return False


def _hash(root: str, step: Step) -> Any:
    marker = directory_of(step, root) / MARKER
    return read_json(marker)["hash"] if exists(marker) else None


def _take_artefact(step: Step, root: str) -> None:
    own = step.config.root
    if step.section == "generators":
        _take_run(root, own, read_json(directory_of(step, root) / MARKER)["run_id"])
        for kind in ("corpora", "packed"):
            for end in OWN_NAMES:
                name = f"{step.config.name}{end}"
                _copy_tree(study_path(root, kind, name), study_path(own, kind, name), MARKER)
    _copy_tree(directory_of(step, root), directory_of(step), MARKER)


def _wanted_runs(step: Step) -> list[str]:
    config = step.config
    packed = PackedInfo.read(config.root, config.packed)
    if isinstance(config, PretrainConfig):
        return [each.run.run_id for each in plan_runs(config, packed)]
    # What is tried later depends on the losses of what comes first; only that is taken.
    if isinstance(config, RateSweepConfig):
        return [each.run.run_id for each in missing_runs(config, packed, {})]
    assert isinstance(config, SearchConfig)
    return [
        trial_run(config, packed, cell.cell, choice).run_id
        for cell in cells_of(config, packed)
        for choice in first_choices(config, cell.space)
    ]


def _take_run(root: str, own: str, run_id: str) -> None:
    # A run that failed there, on what it had there, has not been had: here it may end.
    if (record := read_record(root, run_id)) is not None and record.status != "failed":
        _copy_tree(run_directory(root, run_id), run_directory(own, run_id), RECORD_FILE)


def _copy_tree(source: UPath, target: UPath, last: str) -> None:
    """Copy a finished directory, the file that makes it finished last; what is there already is left."""
    if not exists(source / last) or exists(target / last):
        return
    files = patiently(
        source,
        lambda: [path for path in source.rglob("*") if path.is_file() and not path.name.startswith(".")],
    )
    for path in sorted(files, key=lambda path: (path == source / last, str(path))):
        _copy_file(path, target.joinpath(*path.relative_to(source).parts))


def _copy_file(source: UPath, target: UPath) -> None:
    if exists(target):
        return
    if not (is_local(source) and is_local(target)):
        write_bytes_atomic(target, read_bytes(source))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Artefacts are replaced whole and never written into, so two studies can hold the same file.
    with contextlib.suppress(OSError):
        os.link(str(source), str(target))
        return
    unfinished = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(str(source), str(unfinished))
    unfinished.replace(target)
