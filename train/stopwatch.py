"""Time a run takes: of all its attempts, in training steps alone, and since its last line of metrics. No torch."""

from __future__ import annotations

import time
from typing import NamedTuple

from train.attempts import Attempts
from train.checkpoint_files import RunState
from train.record import TrunkUse

NOTE_SECONDS = 10.0
"""What an attempt has taken is on disk at least this often: a kill loses no more of the account."""


class Taken(NamedTuple):
    """What a run has taken, by one look at the clock: read one after the other, the two would not agree."""

    wall_seconds: float
    device_seconds: float
    """The same times the devices there were."""


class Stopwatch:
    """Started when an attempt is about to train. Each worker has one; the leading one keeps the account of all attempts."""

    def __init__(
        self, attempts: Attempts | None, devices: float, state: RunState, trunk: TrunkUse | None
    ) -> None:
        """Go on from a state; `attempts` is the account, `devices` what a second is charged as, in device-seconds."""
        self._attempts, self._devices = attempts, devices
        before = (trunk, attempts)
        self._wall_before = sum(each.wall_seconds for each in before if each is not None)
        self._device_before = sum(each.device_seconds for each in before if each is not None)
        self.train_seconds = state.train_seconds
        """Seconds in training steps that the weights have profited from, all attempts."""
        self._at_last_line = self.train_seconds
        self._began = self._noted = self._lap = time.perf_counter()

    @property
    def taken(self) -> Taken:
        """What the run has taken from its first token on, what came from a trunk and all attempts together."""
        seconds = time.perf_counter() - self._began
        return Taken(self._wall_before + seconds, self._device_before + seconds * self._devices)

    def lap(self) -> None:
        """Count the time since the last lap, or since `leave_out`, as training."""
        now = time.perf_counter()
        self.train_seconds, self._lap = self.train_seconds + now - self._lap, now
        if now - self._noted >= NOTE_SECONDS:
            self.note()

    def leave_out(self) -> None:
        """Count the time since the last lap as no training: an evaluation, a checkpoint."""
        self._lap = time.perf_counter()

    def since_last_line(self) -> float:
        """Return the training seconds since this was called last, or since the start."""
        seconds, self._at_last_line = self.train_seconds - self._at_last_line, self.train_seconds
        return seconds

    def note(self) -> None:
        """Write down what this attempt has taken up to now."""
        now = time.perf_counter()
        if self._attempts is not None:
            self._attempts.add(now - self._noted)
        self._noted = now
