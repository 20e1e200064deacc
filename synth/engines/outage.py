"""An engine that is there and fails every request, as a server behind a proxy that has lost it: waited out, not blamed on rows."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

from synth.engines.protocol import (
    EngineAway,
    EngineBusy,
    EngineDead,
    EngineError,
    GenerationRequest,
    GenerationResult,
    RequestTimedOut,
    ServerFailed,
)

UNWELL = (ServerFailed, EngineBusy, RequestTimedOut)
"""Failures that may be the server's as well as the request's."""

PROBE_SECONDS = (0.1, 1.0, 3.0, 10.0, 30.0, 60.0)
"""Pauses before an engine that fails requests is asked again, the last one over and over; each is drawn from half to one
and a half of this, so that the engines of a job do not ask together."""


class Outage:
    """Lets all requests wait together while one asks the engine now and then whether it is back.

    It is asked again what it answered last, one token of it, so that a request the server cannot bear is told from a server
    that is away. Before it has answered anything the waiting requests take turns.
    """

    def __init__(
        self, ask: Callable[[GenerationRequest], Awaitable[GenerationResult]], limit_seconds: float
    ) -> None:
        self._ask, self._limit = ask, limit_seconds
        self._known_good: GenerationRequest | None = None
        self._waiting: deque[GenerationRequest] = deque()
        self._asking: asyncio.Task[bool] | None = None

    def note_answered(self, request: GenerationRequest) -> None:
        """Remember a request the engine can answer."""
        self._known_good = request

    async def wait(self, request: GenerationRequest, error: EngineError) -> bool:
        """Wait until the engine answers; return whether it had been away: if not, the request failed by itself.

        Raises EngineAway when it answers nobody for the limit, EngineDead when it dies meanwhile.
        """
        self._waiting.append(request)
        if self._asking is None:
            self._asking = asyncio.create_task(self._until_answered(error))
        return await asyncio.shield(self._asking)

    def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()

    async def _until_answered(self, error: EngineError) -> bool:
        began, away = asyncio.get_running_loop().time(), False
        pauses = itertools.chain(PROBE_SECONDS, itertools.repeat(PROBE_SECONDS[-1]))
        try:
            for number, pause in enumerate(pauses):
                least = error.retry_after_seconds if isinstance(error, EngineBusy) else 0.0
                await asyncio.sleep(max(least, pause * random.uniform(0.5, 1.5)))
                try:
                    await self._ask(self._probe(number))
                    return away
                except UNWELL as again:
                    error, away = again, True
                except EngineDead:
                    raise
                except EngineError:  # it works, if not for this one
                    return away
                if asyncio.get_running_loop().time() - began > self._limit:
                    raise EngineAway(
                        f"the engine has answered nobody for placement.outage_seconds = {self._limit:g} s ({error}): bring it back, "
                        "then run the job again; what is done stays done."
                    )
            raise AssertionError("the pauses never end")
        finally:
            self._asking = None
            self._waiting.clear()

    def _probe(self, number: int) -> GenerationRequest:
        request = self._known_good or self._waiting[number % len(self._waiting)]
        return replace(request, request_id=f"probe-{number}-{request.request_id}", max_output_tokens=1)
