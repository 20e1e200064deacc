"""Whose time on an engine was whose: at each moment it is shared among the requests in flight."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class PartUsage:
    """What a part has taken of the engine."""

    device_seconds: float = 0.0
    """Its share of the time the engine was at work: at each moment, its requests in flight over all of them."""
    start_seconds: float = 0.0
    """Starts of the engine that happened on its account."""
    deaths: int = 0
    """Engine deaths with rows of this part alone in flight: its own doing, or chance."""
    shared_deaths: int = 0
    """Engine deaths with rows of several parts in flight, each counted for one of them."""
    retries: int = 0
    """Attempts after the first of requests that failed by themselves."""
    lost_attempts: int = 0
    """Attempts that ended without an answer: the engine died or hung, the request timed out or failed."""
    lost_device_seconds: float = 0.0
    """What of `device_seconds` these took."""


class Accounts:
    """The usage of every part in work, and the requests in flight."""

    def __init__(self) -> None:
        self._parts: dict[int, PartUsage] = {}
        self._in_flight: Counter[int] = Counter()
        self._since = time.monotonic()
        self._seconds_of_each = 0.0

    @property
    def running(self) -> int:
        """Requests in flight."""
        return sum(self._in_flight.values())

    def of(self, part: int) -> PartUsage:
        """Return the account of a part, kept from now on if it was not."""
        return self._parts.setdefault(part, PartUsage())

    def settled(self, part: int) -> PartUsage:
        """Return the account of a part as of now."""
        self._settle()
        return self.of(part)

    def close(self, part: int) -> None:
        """Drop the account of a part that is done."""
        self._parts.pop(part, None)

    @contextmanager
    def flight(self, part: int) -> Iterator[None]:
        """Count one request as in flight; one that raises is lost."""
        self._settle()
        self._in_flight[part] += 1
        before, answered = self._seconds_of_each, False
        try:
            yield
            answered = True
        finally:
            self._settle()
            self._in_flight[part] -= 1
            self._in_flight += Counter()  # drops the zeros
            if not answered:
                usage = self.of(part)
                usage.lost_attempts += 1
                usage.lost_device_seconds += self._seconds_of_each - before

    def _settle(self) -> None:
        """Share the time since the last change among the requests in flight."""
        now = time.monotonic()
        if total := self.running:
            each = (now - self._since) / total
            self._seconds_of_each += each
            for part, count in self._in_flight.items():
                self.of(part).device_seconds += count * each
        self._since = now
