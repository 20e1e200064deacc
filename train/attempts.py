"""Attempts at a run: whose its directory is, how often it was started, and how long each attempt was at work. No torch."""

from __future__ import annotations

from pydantic import TypeAdapter
from upath import UPath

from synth.errors import UserError
from synth.storage import read_json, write_json_atomic
from train.record import Record
from train.run import RunConfig

CONFIG_FILE = "config.json"
"""In the directory of a run: what decides it."""

ATTEMPTS_FILE = "attempts.json"
"""In the directory of a run that is not finished, or whose end was not tidied up; goes last."""


class Attempt(Record):
    """What one attempt has taken, as last noted; a kill loses what came after."""

    wall_seconds: float = 0.0
    """Training and evaluation, start-up left out."""
    devices: float
    """Workers x devices of each."""


_ATTEMPTS = TypeAdapter(list[Attempt])


class Attempts:
    """All attempts at a run so far, the last of which may be under way."""

    def __init__(self, directory: UPath, attempts: list[Attempt]) -> None:
        self._directory, self._attempts = directory, attempts

    @property
    def number(self) -> int:
        """Times the run was started."""
        return len(self._attempts)

    @property
    def wall_seconds(self) -> float:
        """What all attempts have taken."""
        return sum(attempt.wall_seconds for attempt in self._attempts)

    @property
    def device_seconds(self) -> float:
        """The same times the devices of each."""
        return sum(attempt.wall_seconds * attempt.devices for attempt in self._attempts)

    def begin(self, devices: float) -> None:
        """Count one more attempt."""
        self._attempts.append(Attempt(devices=devices))
        self._write()

    def add(self, wall_seconds: float) -> None:
        """Note that the last attempt has taken so much more."""
        last = self._attempts[-1]
        self._attempts[-1] = last.model_copy(update={"wall_seconds": last.wall_seconds + wall_seconds})
        self._write()

    def _write(self) -> None:
        write_json_atomic(self._directory / ATTEMPTS_FILE, _ATTEMPTS.dump_python(self._attempts, mode="json"))


def begin_attempt(run: RunConfig, directory: UPath, devices: float) -> Attempts:
    """Make the directory this run's own, count an attempt on so many devices, and return all of them.

    Raises UserError when the directory is another run's.
    """
    config = run.model_dump(mode="json")
    try:
        found = read_json(directory / CONFIG_FILE)
    except FileNotFoundError:
        write_json_atomic(directory / CONFIG_FILE, config)
    else:
        if found != config:
            raise UserError(f"{directory} holds another run than {run.run_id}: move that directory away.")
    attempts = read_attempts(directory)
    attempts.begin(devices)
    return attempts


def read_attempts(directory: UPath) -> Attempts:
    """Return the attempts at an unfinished run; none when it was never started."""
    try:
        return Attempts(directory, _ATTEMPTS.validate_python(read_json(directory / ATTEMPTS_FILE)))
    except FileNotFoundError:
        return Attempts(directory, [])
