"""Attempts at a run: whose its directory is, and how often it was started. No torch."""

from __future__ import annotations

from upath import UPath

from synth.errors import UserError
from synth.storage import read_json, write_json_atomic
from train.run import RunConfig

CONFIG_FILE = "config.json"
"""In the directory of a run: what decides it."""

ATTEMPTS_FILE = "attempts.json"
"""In the directory of a run that is not finished."""


def begin_attempt(run: RunConfig, directory: UPath) -> int:
    """Make the directory this run's own and count the attempt; return its number, from 1.

    Raises UserError when the directory is another run's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = run.model_dump(mode="json")
    try:
        found = read_json(directory / CONFIG_FILE)
    except FileNotFoundError:
        write_json_atomic(directory / CONFIG_FILE, config)
    else:
        if found != config:
            raise UserError(f"{directory} holds another run than {run.run_id}: move that directory away.")
    attempts = attempts_at(directory) + 1
    write_json_atomic(directory / ATTEMPTS_FILE, {"attempts": attempts})
    return attempts


def attempts_at(directory: UPath) -> int:
    """Return how often an unfinished run was started."""
    try:
        return int(read_json(directory / ATTEMPTS_FILE)["attempts"])
    except FileNotFoundError:
        return 0


def forget_attempts(directory: UPath) -> None:
    """Count no further, once the run has its record."""
    (directory / ATTEMPTS_FILE).unlink(missing_ok=True)
