"""A stand-in engine: deterministic text from (prompt, seed), and faults on demand.

For rehearsing a job without a model and for proving what happens when engines misbehave. One token is one Unicode
character, so every count can be checked by eye.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import pydantic
from pydantic import Field

from synth.config import Config, EngineConfig, Fraction
from synth.engines.protocol import (
    EngineBusy,
    EngineDead,
    EngineStartFailed,
    GenerationRequest,
    GenerationResult,
    RequestFailed,
    RequestTooLong,
    ServerFailed,
)
from synth.errors import UserError
from synth.prompt import plain_concatenation


class FakeBehaviour(Config):
    """How the fake engine (mis)behaves; given as `engine.engine_arguments`. Fractions go by the hash of the request."""

    latency_seconds: float = Field(default=0.0, ge=0.0)
    """Time every answer takes, seconds."""
    refusal_fraction: Fraction = 0.0
    """Part of the answers that decline the task, [0, 1]."""
    truncation_fraction: Fraction = 0.0
    """Part of the answers that run into max_output_tokens, [0, 1]."""
    failure_fraction: Fraction = 0.0
    """Part of the requests whose first attempt fails, [0, 1]."""
    hopeless_fraction: Fraction = 0.0
    """Part of the requests of which every attempt fails, [0, 1]."""
    hanging_fraction: Fraction = 0.0
    """Part of the requests that never get an answer at the first attempt, [0, 1]."""
    busy_fraction: Fraction = 0.0
    """Part of the requests the engine has no room for at the first attempt, [0, 1]."""
    poison: str | None = None
    """A prompt that holds this text kills the engine."""
    dies_every: int | None = Field(default=None, ge=1)
    """The engine dies at every so-manieth answer after a start, whatever it was."""
    last_words: str = "the fake engine died"
    """What the engine says when it dies."""
    silent_after: int | None = Field(default=None, ge=0)
    """After so many answers since its start the engine answers nobody any more, and is not dead."""
    silencing: str | None = None
    """A prompt that holds this text makes the engine answer nobody any more, itself included."""
    outage_after: int | None = Field(default=None, ge=0)
    """After so many answers in all the engine fails every request for `outage_seconds`, as a server does behind a proxy."""
    outage_seconds: float = Field(default=0.0, ge=0.0)
    """How long that lasts, from the first request that fails on, seconds."""
    unbearable: str | None = None
    """A prompt that holds this text is always failed at, as by a server's fault."""
    start_failure: str | None = None
    """The engine does not start and says this."""
    start_seconds: float = Field(default=0.0, ge=0.0)
    """Time a start takes, seconds."""


class CharacterTokenizer:
    """One token a character; special are only the marks `<|role|>` it renders itself."""

    prompt_format = "plain"

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the messages joined by blank lines."""
        return plain_concatenation(messages)

    def encode_markup(self, text: str) -> list[int]:
        """Return the code points."""
        return [ord(character) for character in text]

    def encode_data(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the code points of each text."""
        return [[ord(character) for character in text] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the characters."""
        return "".join(map(chr, ids))


class FakeEngine:
    """The engine of `kind = "fake"`."""

    version = "fake 1"

    def __init__(self, behaviour: FakeBehaviour, max_model_len: int) -> None:
        self.behaviour, self._max_model_len = behaviour, max_model_len
        self.tokenizer = CharacterTokenizer()
        self.starts = 0
        self._answered_in_all, self._back_at = 0, float("-inf")
        self._death: asyncio.Event | None = None
        self._answered = 0
        self._failed_once: set[tuple[str, int]] = set()

    @classmethod
    def from_config(cls, config: EngineConfig) -> FakeEngine:
        """Return the engine of a configuration. Raises UserError when engine_arguments make no sense to it."""
        try:
            behaviour = FakeBehaviour.model_validate(config.engine_arguments)
        except pydantic.ValidationError as error:
            detail = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in detail["loc"])
            raise UserError(
                f"engine.engine_arguments.{field} does not suit the fake engine: {detail['msg']}."
            ) from None
        return cls(behaviour, config.max_model_len)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Need no turn: it shares no device."""
        return nullcontext()

    async def start(self) -> None:
        """Come up, or fail to as told."""
        await asyncio.sleep(self.behaviour.start_seconds)
        if self.behaviour.start_failure:
            raise EngineStartFailed(f"the fake engine did not start: {self.behaviour.start_failure}")
        self.starts += 1
        self._death, self._answered, self._is_silent = asyncio.Event(), 0, False

    @property
    def last_lines(self) -> str:
        """What it was told to say."""
        return self.behaviour.last_words

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not stopped since."""
        return self._death is not None

    async def stop(self) -> None:
        """Go down; what is in flight fails."""
        if self._death:
            self._death.set()
        self._death = None

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Draw one answer, or fail as told."""
        began, death = time.monotonic(), self._death
        if death is None or death.is_set():
            raise EngineDead("the fake engine is dead")
        if len(request.prompt_token_ids) + request.max_output_tokens > self._max_model_len:
            raise RequestTooLong(
                f"{len(request.prompt_token_ids)} + {request.max_output_tokens} tokens do not fit {self._max_model_len}"
            )
        prompt = self.tokenizer.decode(request.prompt_token_ids)
        fate = random.Random(
            f"fate {request.seed} {hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()}"
        )
        await self._wait(death)
        await self._stay_silent(prompt, death)
        self._fail_as_a_server(prompt)
        self._answered += 1
        self._answered_in_all += 1
        if (
            self.behaviour.poison and self.behaviour.poison in prompt
        ) or self._answered == self.behaviour.dies_every:
            death.set()
        if death.is_set():
            raise EngineDead(self.behaviour.last_words)
        await self._maybe_fail(request.seed, fate, death)
        text, finish_reason = self._answer(prompt, fate, request.max_output_tokens)
        text, finish_reason, stop = _stopped(text, finish_reason, request.sampling.stop)
        return GenerationResult(
            text=text, finish_reason=finish_reason, stop_reason=stop, prompt_tokens=len(prompt),
            cached_prompt_tokens=0, completion_tokens=len(text) + len(stop or ""), seconds=time.monotonic() - began,
        )  # fmt: skip

    async def _wait(self, death: asyncio.Event) -> None:
        try:
            await asyncio.wait_for(death.wait(), self.behaviour.latency_seconds)
        except TimeoutError:
            return

    async def _stay_silent(self, prompt: str, death: asyncio.Event) -> None:
        behaviour = self.behaviour
        self._is_silent |= self._answered == behaviour.silent_after
        self._is_silent |= behaviour.silencing is not None and behaviour.silencing in prompt
        if self._is_silent:
            await death.wait()

    def _fail_as_a_server(self, prompt: str) -> None:
        behaviour, now = self.behaviour, time.monotonic()
        if behaviour.unbearable and behaviour.unbearable in prompt:
            raise ServerFailed("HTTP 500: the fake engine cannot bear this one")
        if self._answered_in_all == behaviour.outage_after:
            self._back_at = now + behaviour.outage_seconds
            self._answered_in_all += 1
        if now < self._back_at:
            raise ServerFailed("HTTP 502: the fake engine is away")

    async def _maybe_fail(self, seed: int, fate: random.Random, death: asyncio.Event) -> None:
        behaviour = self.behaviour
        if fate.random() < behaviour.hopeless_fraction:
            raise RequestFailed("the fake engine always fails this one")
        if fate.random() < behaviour.failure_fraction and self._first_time("fails", seed):
            raise RequestFailed("the fake engine failed once")
        luck = random.Random(f"luck {seed}")  # apart from the fate, so that the text stays the same
        if luck.random() < behaviour.busy_fraction and self._first_time("busy", seed):
            raise EngineBusy("the fake engine has no room")
        if luck.random() < behaviour.hanging_fraction and self._first_time("hangs", seed):
            await death.wait()
            raise EngineDead(self.behaviour.last_words)

    def _first_time(self, what: str, seed: int) -> bool:
        first = (what, seed) not in self._failed_once
        self._failed_once.add((what, seed))
        return first

    def _answer(self, prompt: str, fate: random.Random, max_output_tokens: int) -> tuple[str, str]:
        draw = fate.random()
        if draw < self.behaviour.refusal_fraction:
            text = "I'm sorry, but I cannot help with that."
        else:
            words = prompt.split() or ["nothing"]
            sentences = [
                " ".join(fate.choices(words, k=12)).capitalize() + "." for _ in range(fate.randint(2, 5))
            ]
            text = " ".join(sentences)
            if draw > 1 - self.behaviour.truncation_fraction:
                text = (text + " ") * (max_output_tokens // len(text) + 1)
        return (text, "stop") if len(text) < max_output_tokens else (text[:max_output_tokens], "length")


def _stopped(text: str, finish_reason: str, stops: Sequence[str]) -> tuple[str, str, str | None]:
    """Return the text up to the first stop string in it, and that string."""
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return text, finish_reason, None
    at, stop = min(found)
    return text[:at], "stop", stop
