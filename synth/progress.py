"""One line that says how far a step is and when it will be done, fit for a terminal and for a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from synth.percentage import percentage


def clock(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


_listeners: list[Callable[[Progress, str], None]] = []


def listen(listener: Callable[[Progress, str], None]) -> None:
    """Have every line of progress in this process told to `listener` too: the step's progress, and what it says."""
    _listeners.append(listener)


class Progress:
    """Progress of one step: `[step] 12/40 parts, 30 %, 0:21 elapsed, ETA 0:49`; at most one line an interval.

    Work found finished at the start (`already`) counts towards the total and not towards the rate.
    """

    def __init__(
        self,
        step: str,
        total: float,
        unit: str,
        *,
        already: float = 0,
        interval_seconds: float = 5.0,
        stream: TextIO | None = None,
    ) -> None:
        self.step, self.total, self.unit = step, total, unit
        self.done = self._already = already
        self._partly = 0.0
        self._interval = interval_seconds
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._last_line = float("-inf")
        self._first: tuple[float, float] | None = None

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count work as done and print a line if the last one is old enough; `note` is added to it."""
        self.set(self.done + amount, note)

    def set(self, done: float, note: str = "") -> None:
        """Set the work done so far, for callers that keep the count themselves."""
        self.done = done
        self._tell(note)

    def partly(self, amount: float, note: str = "") -> None:
        """Set how much of the units in work is done, in units: it counts towards the part that is done, and towards the ETA."""
        self._partly = amount
        self._tell(note)

    def _tell(self, note: str) -> None:
        now = time.monotonic()
        if self._first is None and self._reached > self._already:
            self._first = (now, self._reached)
        if now - self._last_line >= self._interval or self.done >= self.total:
            self._last_line = now
            self.say(self._state(now) + (f", {note}" if note else ""))

    def say(self, text: str) -> None:
        """Print a line under the step's name."""
        print(f"[{self.step}] {text}", file=self._stream, flush=True)
        for listener in _listeners:
            listener(self, text)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since this step began in this process."""
        return time.monotonic() - self._started

    @property
    def _reached(self) -> float:
        """All that is done, units in work included; a unit that has just ended may count twice until the next word of the others."""
        return min(self.done + self._partly, self.total)

    def _state(self, now: float) -> str:
        elapsed = now - self._started
        share = self._reached / self.total if self.total else 1.0
        pace = self._seconds_per_unit(now)
        eta = "unknown" if pace is None else clock(pace * (self.total - self._reached))
        return f"{self.done:,.0f}/{self.total:,.0f} {self.unit}, {percentage(share)}, {clock(elapsed)} elapsed, ETA {eta}"

    def _seconds_per_unit(self, now: float) -> float | None:
        """Return the pace since the first work was seen done: what came before it is start-up, which does not recur."""
        if self._first is None:
            return None
        since, first = self._first
        if self._reached > first:
            return (now - since) / (self._reached - first)
        if self.done == self._already:
            return None  # a few rows, and all of the start-up
        return (now - self._started) / (first - self._already)
