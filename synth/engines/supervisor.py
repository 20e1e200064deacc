"""Keeps an engine alive under requests that may kill it, and says for every request how it ended.

When the engine dies, every request in flight is a suspect. They are tried again in halves, with nothing else
running, until the ones that kill an engine alone are known; those are quarantined, everybody else gets an answer.
Isolating one row among n takes at most log2(n) + 2 deaths. The halves follow the parts, so a death soon has rows of
one part alone in it; those are counted for the part and bounded, and an innocent part is never charged. An engine that
answers nobody any more (`synth.engines.pulse`) counts as dead.

A row is found guilty only once the engine has answered another one since: an engine that dies whatever it is sent ends
the job instead.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from synth.engines.accounts import Accounts, PartUsage
from synth.engines.outage import UNWELL, Outage
from synth.engines.protocol import (
    Engine,
    EngineAway,
    EngineDead,
    EngineError,
    EngineStartFailed,
    GenerationRequest,
    GenerationResult,
)
from synth.engines.pulse import Pulse
from synth.engines.retries import pause_before_retry
from synth.errors import UserError

FRUITLESS_DEATHS = 8
"""After so many deaths without an answer in between an engine is asked for a token of next to nothing."""

PROBE_TOKENS = 1
"""Prompt tokens of that: the first of some row's prompt. More could hold the very text that kills."""

START_SECONDS = 1800.0
OUTAGE_SECONDS = 3600.0
"""Bounds of a supervisor that is told none; a job's are in its placement."""


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
class _Suspect:
    part: int
    request: GenerationRequest
    error: EngineDead
    """How the engine went down under it last."""
    answer: asyncio.Future[Outcome] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Supervisor:
    """One engine, started when first needed, shared by several parts of work on one event loop."""

    def __init__(
        self,
        engine: Engine,
        max_in_flight: int,
        max_deaths_per_part: int,
        request_timeout_seconds: float | None = None,
        start_timeout_seconds: float = START_SECONDS,
        outage_seconds: float = OUTAGE_SECONDS,
    ) -> None:
        self.engine = engine
        self._start_seconds = start_timeout_seconds
        self._pulse = Pulse(request_timeout_seconds)
        self._outage = Outage(self._in_time, outage_seconds)
        self._max_deaths, self._allowed = max_deaths_per_part, dict[int, int]()
        self._fruitless = 0
        self._end: UserError | None = None
        self._accused: list[_Suspect] = []
        self._slots = asyncio.Semaphore(max_in_flight)
        self._calm = asyncio.Event()
        self._calm.set()
        self._is_up = self._has_spoken = False
        self.last_words = ""
        """What the engine said when it died last; "" while it has not."""
        self._changing = asyncio.Lock()
        self._asked = 0
        self._accounts = Accounts()
        self._suspects: list[_Suspect] = []
        self._isolation: asyncio.Task[None] | None = None

    @property
    def load(self) -> tuple[int, int]:
        """Requests in the engine, and requests that wait for a place in it or for it to be up."""
        running = self._accounts.running
        return running, self._asked - running

    def usage(self, part: int) -> PartUsage:
        """Return what a part has taken of the engine up to now."""
        return self._accounts.settled(part)

    def allow(self, part: int, deaths: int) -> None:
        """Let the rows of a part kill the engine so many times."""
        self._allowed[part] = deaths

    def forget(self, part: int) -> None:
        """Drop the account of a part that is done."""
        self._accounts.close(part)
        self._allowed.pop(part, None)

    async def ready(self, part: int) -> None:
        """Have the engine up, on account of this part if it is not yet. Raises EngineStartFailed, TooManyDeaths."""
        await self._normal_service(part)

    async def generate(self, part: int, request: GenerationRequest) -> Outcome:
        """Answer a request of a part, or quarantine it.

        Raises EngineStartFailed when the engine does not come up, EngineAway when it is no use any more, TooManyDeaths when
        the part exceeds its bound.
        """
        self._asked += 1
        try:
            return await self._answer(part, request)
        finally:
            self._asked -= 1
            self._convict_the_last()

    async def _answer(self, part: int, request: GenerationRequest) -> Outcome:
        async with self._slots:
            try:
                return await self._attempt(part, request, self._normal_service)
            except EngineDead as error:
                self._hear(error)
                suspect = _Suspect(part, request, error)
                self._suspects.append(suspect)
                if self._isolation is None:
                    self._calm.clear()
                    self._isolation = asyncio.create_task(self._isolate())
        return await suspect.answer

    async def close(self) -> None:
        """Take the engine down."""
        if self._isolation:
            self._isolation.cancel()
        self._outage.close()
        await self._engine_down()

    # --- one request ---------------------------------------------------------------------------------------------

    async def _attempt(
        self, part: int, request: GenerationRequest, ready: Callable[[int], Awaitable[None]]
    ) -> Outcome:
        """Answer a request, trying again what may pass by itself. Raises EngineDead."""
        failures: Counter[str] = Counter()
        while True:
            await ready(part)
            began = asyncio.get_running_loop().time()
            try:
                with self._accounts.flight(part):
                    result = await self._in_time(request)
            except EngineDead:
                raise
            except EngineError as error:
                failed = error
            else:
                self._outage.note_answered(request)
                self._engine_is_sound()
                return result
            if not (self._is_silent(failed, began) and await self._waited_out(request, failed)):
                pause = pause_before_retry(failed, failures[failed.reason])
                if pause is None:
                    return Quarantined(failed.reason, str(failed))
                failures[failed.reason] += 1
                await asyncio.sleep(pause)
            self._accounts.of(part).retries += 1

    def _is_silent(self, error: EngineError, began: float) -> bool:
        return isinstance(error, UNWELL) and self._pulse.is_silent_since(began)

    async def _waited_out(self, request: GenerationRequest, error: EngineError) -> bool:
        """Wait until the engine answers; return whether it was away and this was no fault of the request. Raises EngineAway."""
        try:
            return await self._outage.wait(request, error)
        except EngineAway as end:
            self._end = end
            raise

    async def _in_time(self, request: GenerationRequest) -> GenerationResult:
        return await self._pulse.within_limit(self.engine.generate(request))

    async def _normal_service(self, part: int) -> None:
        """Wait until the engine is up and no search for a killer is on: strangers would spoil its result.

        Raises TooManyDeaths when the part has been given up meanwhile.
        """
        while True:
            await self._calm.wait()
            await self._engine_up(part)
            if self._calm.is_set():
                break
        if self._kills_too_often(part):
            raise TooManyDeaths(part, self._accounts.of(part).deaths, self.last_words)

    def _kills_too_often(self, part: int) -> bool:
        return self._accounts.of(part).deaths > self._allowed.get(part, self._max_deaths)

    async def _engine_up(self, part: int) -> None:
        """Start the engine unless it is up, on account of this part. Raises what made it useless once and for all."""
        async with self._changing:
            if self._end is not None:
                raise self._end
            if self._is_up:
                return
            try:
                async with self.engine.turn():  # others' starts are no part of its own time
                    began = time.monotonic()
                    async with asyncio.timeout(self._start_seconds):
                        await self.engine.start()
            except EngineStartFailed as error:
                self._end = error
                raise
            except TimeoutError:
                self._end = EngineStartFailed(
                    f"the engine did not start within placement.start_timeout_seconds = {self._start_seconds:g} s (it said last: "
                    f"{self.engine.last_lines or 'nothing'}): mend what keeps it, or give it more time."
                )
                raise self._end from None
            self._is_up, self._has_spoken = True, False
            self._accounts.of(part).start_seconds += time.monotonic() - began

    async def _engine_down(self) -> None:
        async with self._changing:
            await self.engine.stop()
            self._is_up = False

    # --- after a death -------------------------------------------------------------------------------------------

    async def _isolate(self) -> None:
        """Find the requests that kill the engine among those in flight at its death; answer all the others."""
        try:
            while self._suspects:
                while self._accounts.running:  # the rest of them has yet to notice
                    await asyncio.sleep(0.005)
                suspects, self._suspects = self._suspects, []
                await self._search(suspects)
        finally:
            self._isolation = None
            self._calm.set()
            self._convict_the_last()

    async def _search(self, suspects: list[_Suspect]) -> None:
        try:
            await self._bury(suspects)
            groups = [sorted(suspects, key=lambda suspect: suspect.part)]
            while groups:
                groups.extend(await self._narrow(groups.pop()))
        # Whatever ends the search early (the engine does not start again, a bug here) must reach every request that
        # waits for it; with them it reaches their parts and the job.
        except BaseException as error:
            waiting = [each.answer for each in [*suspects, *self._accused] if not each.answer.done()]
            self._accused.clear()
            for answer in dict.fromkeys(waiting):
                if isinstance(error, Exception):
                    answer.set_exception(error)
                else:
                    answer.cancel()
            if not waiting or not isinstance(error, Exception):
                raise

    async def _narrow(self, group: list[_Suspect]) -> list[list[_Suspect]]:
        """Try a group that holds a killer, if it was not chance; return the smaller groups that still may hold one."""
        if any(self._kills_too_often(suspect.part) for suspect in group):
            self._convict()
        for suspect in group:
            if not suspect.answer.done() and self._kills_too_often(suspect.part):
                deaths = self._accounts.of(suspect.part).deaths
                suspect.answer.set_exception(TooManyDeaths(suspect.part, deaths, self.last_words))
        group = [suspect for suspect in group if not suspect.answer.done()]
        if len(group) <= 1:
            guilty = await self._unanswered(group)
            self._accused.extend(guilty)
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
            suspect.error = error
            return False
        if not suspect.answer.done():  # its part may have been given up meanwhile
            suspect.answer.set_result(outcome)
        return True

    def _hear(self, error: EngineDead) -> None:
        """Note why the engine died: the first to notice knows best, the others find it dead."""
        if not self._has_spoken:
            self.last_words, self._has_spoken = str(error), True

    def _engine_is_sound(self) -> None:
        """Take note of an answer: who was found alone with a dead engine has killed it."""
        self._fruitless = 0
        self._convict()

    def _convict_the_last(self) -> None:
        """Blame those found alone with a dead engine also when nobody is left whose answer could show that it is sound."""
        self._accused[:] = [suspect for suspect in self._accused if not suspect.answer.done()]
        if self._isolation is None and self._asked == len(self._accused):
            self._convict()

    def _convict(self) -> None:
        for suspect in self._accused:
            if not suspect.answer.done():
                said = f"the engine died with no other request in it: {suspect.error}"
                suspect.answer.set_result(Quarantined(suspect.error.reason, said))
        self._accused.clear()

    async def _bury(self, suspects: list[_Suspect]) -> None:
        """Take down what is left of the engine, and charge a part whose rows alone were in it. Raises EngineAway."""
        await self._engine_down()
        self._fruitless += 1
        parts = {suspect.part for suspect in suspects}
        usage = self._accounts.of(min(parts))
        if len(parts) > 1:
            usage.shared_deaths += 1
        else:
            usage.deaths += 1
        if self._fruitless >= FRUITLESS_DEATHS:
            await self._prove_sound(suspects[0])

    async def _prove_sound(self, suspect: _Suspect) -> None:
        """Have an engine that only dies answer something harmless. Raises EngineAway when it dies at that, too."""
        request = suspect.request
        harmless = replace(
            request,
            request_id=f"harmless-{request.request_id}",
            prompt_token_ids=request.prompt_token_ids[:PROBE_TOKENS],
            max_output_tokens=1,
        )
        await self._engine_up(suspect.part)
        try:
            await self._in_time(harmless)
        except EngineDead as error:
            await self._engine_down()
            self._end = EngineAway(
                f"the engine has died {self._fruitless} times, answered nobody in between and dies at a harmless prompt, too "
                f"({error}): this is not its rows' doing, and none was blamed; mend it, then run the job again."
            )
            raise self._end from None
        except EngineError:
            pass  # it is up and says no
        self._engine_is_sound()
