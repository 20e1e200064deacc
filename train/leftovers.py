"""What a run keeps while it is not finished, and who takes it away: its own end, or whoever finds that it was killed there.
No torch.

A run's record is written before its checkpoints go, because the reverse would lose the run to a kill in between. The count
of attempts goes last of all, so a finished run that still has one was not tidied up.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from upath import UPath

from synth.errors import first_line
from synth.storage import exists, read_json, remove_file
from train.attempts import ATTEMPTS_FILE
from train.checkpoint_files import remove_checkpoints
from train.memory import FIT_FILE
from train.record import RunRecord, TrunkUse, of_each, read_record, run_directory
from train.run import RunConfig

_LOG = logging.getLogger(__name__)

TRUNKS = "trunks"

USE_FILE = "trunk.json"
"""In the directory of a run that is not finished: what it took over, so that every attempt counts the same."""


def trunk_directory(run_directory: UPath, trunk_id: str) -> UPath:
    """Return `trunks/<trunk_id>` of the study a run's directory is in."""
    return run_directory.parent.parent / TRUNKS / trunk_id


def read_use(directory: UPath) -> TrunkUse | None:
    """Return what an unfinished run has taken over from its trunk; None when it has not started, or does not branch."""
    try:
        return TrunkUse.model_validate(read_json(directory / USE_FILE))
    except FileNotFoundError:
        return None


def tidy_up(run: RunConfig, directory: UPath) -> None:
    """Remove all that a run with a record has no use for; of its trunk the furthest point stays.

    The record stands whatever happens here: what cannot be removed is warned about, and tried again by `tidy_up_after`.
    """
    try:
        remove_checkpoints(directory)
        if run.trunk_id is not None:
            remove_checkpoints(trunk_directory(directory, run.trunk_id), but_newest=True)
        for name in (USE_FILE, FIT_FILE, ATTEMPTS_FILE):
            remove_file(directory / name)
    except Exception as error:
        _LOG.warning(
            "run %s has its record, but what it has no more use for is still in %s: %s: %s",
            run.run_id, directory, type(error).__name__, first_line(error),
        )  # fmt: skip


def tidy_up_after(root: str, records: Iterable[RunRecord]) -> None:
    """Do that for finished runs whose workers were killed before they could; from an object store many are asked at once."""

    def look(record: RunRecord) -> None:
        directory = run_directory(root, record.run_id)
        if exists(directory / ATTEMPTS_FILE):
            tidy_up(record.config, directory)

    of_each(root, look, records)


def find_record(root: str, run_id: str) -> RunRecord | None:
    """Return the record of a run, tidied up after; None when it has not finished."""
    record = read_record(root, run_id)
    if record is not None:
        tidy_up_after(root, [record])
    return record
