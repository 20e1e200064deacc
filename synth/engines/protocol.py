"""The seam between rephrasing and the thing that generates: one request in, one result out, and the ways to fail.

`synth.engines.vllm` runs vLLM in the process, `synth.engines.http` asks a server, `synth.engines.fake` is a deterministic
stand-in that can be told to misbehave; `synth.engines.factory` picks one. Everything above this line sees only what is
declared here, and one suite of tests holds all of them to it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from synth.errors import UserError
from synth.prompt import ReadableTokenizer
from synth.recipe import Sampling


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to draw."""

    request_id: str
    """Unique among the requests an engine has at hand."""
    prompt_token_ids: tuple[int, ...]
    """The whole prompt, tokens of the engine's tokenizer."""
    sampling: Sampling
    max_output_tokens: int
    """Longest answer, tokens; at most the sampling's own cap, less where the window is short."""
    seed: int
    """Seed of this answer, [0, 2**63)."""


@dataclass(frozen=True)
class GenerationResult:
    """One answer and what it took."""

    text: str
    finish_reason: str | None
    """`stop` (the model ended or met a stop string) or `length` (cut off at max_output_tokens); None where the engine
    does not tell."""
    stop_reason: str | None
    """The stop string or token id that ended it; None for the model's own end of text."""
    prompt_tokens: int
    cached_prompt_tokens: int | None
    """Prompt tokens whose state the engine had already; depends on what ran before. None where the engine does not tell."""
    completion_tokens: int
    seconds: float
    """From submission to the last token, waiting included."""


class EngineError(Exception):
    """Base of the ways a request can fail."""

    reason = "request_failed"
    """Why a row is quarantined when trying again has not helped: a fixed vocabulary."""


class EngineDead(EngineError):
    """The engine is gone and takes every request in flight with it; start another."""

    reason = "killed_engine"


class EngineHung(EngineDead):
    """The engine is there and has answered nobody for as long as a request may take: as good as dead."""

    reason = "hung_engine"


class RequestTooLong(EngineError):
    """The prompt does not fit the engine's window. Trying again is pointless."""

    reason = "too_long"


class RequestRefused(EngineError):
    """The engine will not have this request as it is. Trying again is pointless."""

    reason = "request_refused"


class RequestTimedOut(EngineError):
    """No answer came in time, and the request was taken back. Trying again may help."""

    reason = "timed_out"


class RequestFailed(EngineError):
    """This request failed and the engine lives. Trying again may help."""


class ServerFailed(RequestFailed):
    """A server failed at this request by a fault of its own or of the request's: what others get meanwhile tells."""


class EngineBusy(EngineError):
    """The engine has no room at the moment. Trying again will help, after `retry_after_seconds` at the earliest."""

    reason = "engine_busy"

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineStartFailed(UserError):
    """The engine did not come up; says why in the engine's own last lines."""


class EngineAway(UserError):
    """The engine is there and has answered nobody for too long, or dies as often as it is started."""


PASSING_REASONS = frozenset({RequestFailed.reason, RequestTimedOut.reason, EngineBusy.reason})
"""Reasons of rows that may well be answered another time: `retry_quarantined` asks for them again."""

FATAL_REASONS = frozenset({EngineDead.reason, EngineHung.reason})
"""Reasons of rows that take the engine with them: noted at once, so that no later attempt sends them again."""


class Engine(Protocol):
    """A text generator. `start` before `generate`; after EngineDead call `stop`, then `start` again."""

    @property
    def tokenizer(self) -> ReadableTokenizer:
        """The model's tokenizer; usable before `start`."""

    @property
    def version(self) -> str:
        """Name and version of the engine, such as `vllm 0.29.0`."""

    @property
    def last_lines(self) -> str:
        """What the engine has said last, in one line; "" if it has said nothing."""

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for the engine's turn to start, and keep it inside: engines that share a device start one after the other."""

    async def start(self) -> None:
        """Bring the engine up, however long it takes; cancelled, give up and leave nothing behind. Raises EngineStartFailed."""

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Draw one answer. Raises one of EngineError's kinds; a cancelled call takes the request back."""

    async def stop(self) -> None:
        """Take the engine down, dead or alive; harmless when it is down."""
