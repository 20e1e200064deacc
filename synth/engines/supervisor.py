"""Keeps an engine alive under requests that may kill it, and says for every request how it ended.

When the engine dies, every request in flight is a suspect. They are tried again in halves, with nothing else
running, until the ones that kill an engine alone are known; those are quarantined, everybody else gets an answer.
Isolating one row among n takes at most log2(n) + 2 deaths. The halves follow the parts, so a death soon has rows of
one part alone in it; those are counted for the part and bounded, and an innocent part is never charged.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from synth.engines.protocol import (
    Engine,
    EngineBusy,
    EngineDead,
    EngineError,
    GenerationRequest,
    GenerationResult,
    RequestFailed,
    RequestTimedOut,
)

POISON = EngineDead.reason

RETRY_SECONDS = (0.1, 1.0, 5.0)
"""Pauses before the attempts after the first of a request that failed by itself."""

TIMED_OUT_RETRY_SECONDS = (0.0, 5.0)
"""Pauses before the attempts after one that timed out."""

BUSY_RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, *[30.0] * 20)
"""Pauses before the attempts after one the engine had no room for: about ten minutes together. Each is drawn from
half to one and a half of this, so that requests turned away together do not come back together."""


@dataclass(frozen=True)
class Quarantined:
    """A request that got no answer, and why."""

    reason: str
    """The `reason` of one of `synth.engines.protocol`'s errors: a fixed vocabulary."""
    detail: str
    """The engine's own words, for the ledger."""


Outcome = GenerationResult | Quarantined


class TooManyDeaths(Exception):
    """The rows of a part have killed the engine more often than allowed."""

    def __init__(self, part: int, deaths: int, last_words: str) -> None:
        super().__init__(f"the rows of part {part} have killed the engine {deaths} times ({last_words})")
        self.part, self.deaths, self.last_words = part, deaths, last_words


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


@dataclass
class _Suspect:
    part: int
    request: GenerationRequest
    answer: asyncio.Future[Outcome] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


def _pause(error: EngineError, failures: int) -> float | None:
    """Return how long to wait before another attempt after so many of this kind, seconds; None gives the request up."""
    if isinstance(error, EngineBusy):
        if failures >= len(BUSY_RETRY_SECONDS):
            return None
        return max(error.retry_after_seconds, BUSY_RETRY_SECONDS[failures] * random.uniform(0.5, 1.5))
    pauses: tuple[float, ...] = ()
    if isinstance(error, RequestTimedOut):
        pauses = TIMED_OUT_RETRY_SECONDS
    elif isinstance(error, RequestFailed):
        pauses = RETRY_SECONDS
    return pauses[failures] if failures < len(pauses) else None


class Supervisor:
    """One engine, started when first needed, shared by several parts of work on one event loop."""

    def __init__(
        self,
        engine: Engine,
        max_in_flight: int,
        max_deaths_per_part: int,
        request_timeout_seconds: float | None = None,
    ) -> None:
        self.engine = engine
        self._timeout_seconds = request_timeout_seconds
        self._max_deaths = max_deaths_per_part
        self._slots = asyncio.Semaphore(max_in_flight)
        self._calm = asyncio.Event()
        self._calm.set()
        self._is_up = self._has_spoken = False
        self.last_words = ""
        """What the engine said when it died last; "" while it has not."""
        self._changing = asyncio.Lock()
        self._in_flight: Counter[int] = Counter()
        self._asked = 0
        self._since = time.monotonic()
        self._usage: dict[int, PartUsage] = {}
        self._suspects: list[_Suspect] = []
        self._isolation: asyncio.Task[None] | None = None

    @property
    def load(self) -> tuple[int, int]:
        """Requests in the engine, and requests that wait for a place in it or for it to be up."""
        running = sum(self._in_flight.values())
        return running, self._asked - running

    def usage(self, part: int) -> PartUsage:
        """Return what a part has taken of the engine up to now."""
        self._settle()
        return self._usage.setdefault(part, PartUsage())

    def forget(self, part: int) -> None:
        """Drop the account of a part that is done."""
        self._usage.pop(part, None)

    async def ready(self, part: int) -> None:
        """Have the engine up, on account of this part if it is not yet. Raises EngineStartFailed, TooManyDeaths."""
        await self._normal_service(part)

    async def generate(self, part: int, request: GenerationRequest) -> Outcome:
        """Answer a request of a part, or quarantine it.

        Raises EngineStartFailed when the engine does not come up, TooManyDeaths when the part exceeds its bound.
        """
        self._asked += 1
        try:
            return await self._answer(part, request)
        finally:
            self._asked -= 1

    async def _answer(self, part: int, request: GenerationRequest) -> Outcome:
        async with self._slots:
            try:
                return await self._attempt(part, request, self._normal_service)
            except EngineDead as error:
                self._hear(error)
                suspect = _Suspect(part, request)
                self._suspects.append(suspect)
                if self._isolation is None:
                    self._calm.clear()
                    self._isolation = asyncio.create_task(self._isolate())
        return await suspect.answer

    async def close(self) -> None:
        """Take the engine down."""
        if self._isolation:
            self._isolation.cancel()
        await self._engine_down()

    # --- one request ---------------------------------------------------------------------------------------------

    async def _attempt(
        self, part: int, request: GenerationRequest, ready: Callable[[int], Awaitable[None]]
    ) -> Outcome:
        """Answer a request, trying again what may pass by itself. Raises EngineDead."""
        failures: Counter[str] = Counter()
        while True:
            await ready(part)
            try:
                with self._accounting(part):
                    return await self._in_time(request)
            except EngineDead:
                raise
            except EngineError as error:
                pause = _pause(error, failures[error.reason])
                if pause is None:
                    return Quarantined(error.reason, str(error))
                failures[error.reason] += 1
                self._usage.setdefault(part, PartUsage()).retries += 1
            await asyncio.sleep(pause)

    async def _in_time(self, request: GenerationRequest) -> GenerationResult:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self.engine.generate(request)
        except TimeoutError:
            raise RequestTimedOut(f"no answer within {self._timeout_seconds:g} s") from None

    async def _normal_service(self, part: int) -> None:
        """Wait until the engine is up and no search for a killer is on: strangers would spoil its result.

        Raises TooManyDeaths when the part has been given up meanwhile.
        """
        while True:
            await self._calm.wait()
            await self._engine_up(part)
            if self._calm.is_set():
                break
        if (deaths := self._deaths(part)) > self._max_deaths:
            raise TooManyDeaths(part, deaths, self.last_words)

    def _deaths(self, part: int) -> int:
        return self._usage[part].deaths if part in self._usage else 0

    async def _engine_up(self, part: int) -> None:
        """Start the engine unless it is up, on account of this part."""
        async with self._changing:
            if not self._is_up:
                began = time.monotonic()
                await self.engine.start()
                self._is_up, self._has_spoken = True, False
                self._usage.setdefault(part, PartUsage()).start_seconds += time.monotonic() - began

    async def _engine_down(self) -> None:
        async with self._changing:
            await self.engine.stop()
            self._is_up = False

    # --- after a death -------------------------------------------------------------------------------------------

    async def _isolate(self) -> None:
        """Find the requests that kill the engine among those in flight at its death; answer all the others."""
        try:
            while self._suspects:
                while sum(self._in_flight.values()):  # the rest of them has yet to notice
                    await asyncio.sleep(0.005)
                suspects, self._suspects = self._suspects, []
                await self._search(suspects)
        finally:
            self._isolation = None
            self._calm.set()

    async def _search(self, suspects: list[_Suspect]) -> None:
        try:
            await self._bury(suspects)
            groups = [sorted(suspects, key=lambda suspect: suspect.part)]
            while groups:
                groups.extend(await self._narrow(groups.pop()))
        # Whatever ends the search early (the engine does not start again, a bug here) must reach every request that
        # waits for it; with them it reaches their parts and the job.
        except BaseException as error:
            waiting = [suspect.answer for suspect in suspects if not suspect.answer.done()]
            for answer in waiting:
                if isinstance(error, Exception):
                    answer.set_exception(error)
                else:
                    answer.cancel()
            if not waiting or not isinstance(error, Exception):
                raise

    async def _narrow(self, group: list[_Suspect]) -> list[list[_Suspect]]:
        """Try a group that holds a killer, if it was not chance; return the smaller groups that still may hold one."""
        for suspect in group:
            if not suspect.answer.done() and (deaths := self._deaths(suspect.part)) > self._max_deaths:
                suspect.answer.set_exception(TooManyDeaths(suspect.part, deaths, self.last_words))
        group = [suspect for suspect in group if not suspect.answer.done()]
        if len(group) <= 1:
            for suspect in await self._unanswered(group):
                if not suspect.answer.done():
                    suspect.answer.set_result(
                        Quarantined(POISON, f"the engine died with no other request in it: {self.last_words}")
                    )
            return []
        first, second = group[: len(group) // 2], group[len(group) // 2 :]
        if left := await self._unanswered(first):
            return [await self._unanswered(second), left]
        return [second]  # the killer is in here: no need to lose an engine to see it

    async def _unanswered(self, group: Iterable[_Suspect]) -> list[_Suspect]:
        """Run requests together; answer those that can be; return those that went down with the engine."""
        waiting = [suspect for suspect in group if not suspect.answer.done()]
        outcomes = await asyncio.gather(*map(self._try_again, waiting))
        left = [suspect for suspect, answered in zip(waiting, outcomes, strict=True) if not answered]
        if left:
            await self._bury(left)
        return left

    async def _try_again(self, suspect: _Suspect) -> bool:
        try:
            outcome = await self._attempt(suspect.part, suspect.request, self._engine_up)
        except EngineDead as error:
            self._hear(error)
            return False
        if not suspect.answer.done():  # its part may have been given up meanwhile
            suspect.answer.set_result(outcome)
        return True

    def _hear(self, error: EngineDead) -> None:
        """Note why the engine died: the first to notice knows best, the others find it dead."""
        if not self._has_spoken:
            self.last_words, self._has_spoken = str(error), True

    async def _bury(self, suspects: list[_Suspect]) -> None:
        """Take down what is left of the engine, and charge a part whose rows alone were in it."""
        await self._engine_down()
        parts = {suspect.part for suspect in suspects}
        usage = self._usage.setdefault(min(parts), PartUsage())
        if len(parts) > 1:
            usage.shared_deaths += 1
            return
        usage.deaths += 1

    # --- accounting ----------------------------------------------------------------------------------------------

    def _accounting(self, part: int) -> _Flight:
        return _Flight(self, part)

    def _settle(self, part: int | None = None, change: int = 0) -> None:
        """Share the time since the last change among the requests in flight, then count the change."""
        now = time.monotonic()
        if total := sum(self._in_flight.values()):
            for each, count in self._in_flight.items():
                self._usage.setdefault(each, PartUsage()).device_seconds += (
                    (now - self._since) * count / total
                )
        self._since = now
        if part is not None:
            self._in_flight[part] += change
            self._in_flight += Counter()  # drops the zeros


@dataclass
class _Flight:
    """Counts one request as in flight."""

    supervisor: Supervisor
    part: int

    def __enter__(self) -> None:
        self.supervisor._settle(self.part, +1)

    def __exit__(self, *_: object) -> None:
        self.supervisor._settle(self.part, -1)
