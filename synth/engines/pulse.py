"""When an engine last gave an answer: tells a slow request from an engine that has stopped working without dying."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from synth.engines.protocol import (
    EngineHung,
    GenerationResult,
    RequestFailed,
    RequestRefused,
    RequestTimedOut,
    RequestTooLong,
    ServerFailed,
)


class Pulse:
    """Bounds the time of each request, and the time without any answer.

    A request without an answer for the limit has timed out if others were answered meanwhile. If nobody was, the engine
    hangs, and every request in flight is told so at that moment.
    """

    def __init__(self, limit_seconds: float | None) -> None:
        self._limit = limit_seconds
        self._answered = self._sign = float("-inf")
        self._waiting: set[asyncio.Timeout] = set()
        self._watch: asyncio.TimerHandle | None = None

    def is_silent_since(self, moment: float) -> bool:
        """Return whether nobody was answered since a moment of the event loop's clock."""
        return self._answered < moment

    async def within_limit(self, answer: Awaitable[GenerationResult]) -> GenerationResult:
        """Return the answer. Raises RequestTimedOut or EngineHung when it does not come in time, else what it raises."""
        loop = asyncio.get_running_loop()
        if self._limit is not None and not self._waiting:
            self._sign = loop.time()  # until now it had nothing to do
            self._watch = self._watch or loop.call_later(self._limit, self._look)
        limit = asyncio.timeout(self._limit)
        try:
            async with limit:
                self._waiting.add(limit)
                result = await answer
        except TimeoutError:
            said = f"no answer within {self._limit:g} s"
            if self._limit is not None and loop.time() - self._sign >= self._limit:
                raise EngineHung(f"{said}, to any request") from None
            raise RequestTimedOut(said) from None
        except (RequestFailed, RequestRefused, RequestTooLong) as error:
            self._sign = loop.time()
            if not isinstance(error, ServerFailed):
                self._answered = self._sign
            raise
        finally:
            self._waiting.discard(limit)
        self._answered = self._sign = loop.time()
        return result

    def _look(self) -> None:
        """End the wait of all when nobody was answered for the limit, else look again when that can be so."""
        assert self._limit is not None
        loop = asyncio.get_running_loop()
        self._watch = None
        if not self._waiting:
            return
        if (left := self._sign + self._limit - loop.time()) > 0:
            self._watch = loop.call_later(left, self._look)
            return
        for limit in self._waiting:
            if not limit.expired():
                limit.reschedule(loop.time())
