"""A server that speaks OpenAI's completions API and takes token ids: vLLM, SGLang and llama.cpp do.

Prompts go out as token ids, not as messages, so that a document stays data on this path too; a server that offers chat
completions alone is of no use here. The server is somebody else's: `start` waits until it answers, `stop` hangs up, and
when it dies the supervisor waits for its owner to bring it back.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import aiohttp

from synth.config import EngineConfig, RephrasePlacement
from synth.engines.protocol import (
    EngineBusy,
    EngineDead,
    EngineError,
    EngineStartFailed,
    GenerationRequest,
    GenerationResult,
    RequestFailed,
    RequestRefused,
    RequestTimedOut,
    RequestTooLong,
    ServerFailed,
)
from synth.engines.tokenizer import HuggingFaceTokenizer, load_tokenizer
from synth.errors import first_line
from synth.model_source import ModelSource

POLL_SECONDS = 0.5
CONNECT_SECONDS = 30.0

_TOO_LONG = re.compile(
    r"context length|too long|max_model_len|maximum (?:input|model)? ?length", re.IGNORECASE
)
_NO_ENTRY = (401, 403, 404)
"""What is wrong with these is wrong with every request: the job stops and says so."""


class HttpEngine:
    """The engine of `kind = "http"`."""

    def __init__(self, config: EngineConfig, placement: RephrasePlacement, model: ModelSource) -> None:
        assert config.endpoint is not None  # EngineConfig sees to it
        self._config, self._model = config, model
        self._address = config.endpoint.rstrip("/")
        self._tokenizer: HuggingFaceTokenizer | None = None
        self._session: aiohttp.ClientSession | None = None
        self._served = ""
        self.last_lines = ""
        """Why the server could not be asked, while `start` waits for it."""
        self.version = "openai completions"

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """The model's tokenizer, loaded here at first use. Raises EngineStartFailed when it cannot be."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._config, self._model)
        return self._tokenizer

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Need no turn: it shares no device."""
        return nullcontext()

    async def start(self) -> None:
        """Wait for the server, as long as its owner needs to bring it up, and see that it serves the model.

        Raises EngineStartFailed when it is the wrong one.
        """
        await self.stop()
        self._session = aiohttp.ClientSession(
            headers=self._headers(),
            connector=aiohttp.TCPConnector(limit=0),  # the supervisor bounds what is in flight
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        )
        try:
            self._choose_model(await self._models())
            self.version = await self._server_version()
        except BaseException:
            await self.stop()
            raise

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Draw one answer. Raises one of EngineError's kinds, EngineStartFailed when the server lets nobody in."""
        if self._session is None:
            raise EngineDead("there is no connection to the server")
        length = len(request.prompt_token_ids) + request.max_output_tokens
        if length > self._config.max_model_len:
            raise RequestTooLong(
                f"prompt and answer need {length} tokens, max_model_len is {self._config.max_model_len}"
            )
        began = time.monotonic()
        try:
            async with self._session.post(
                f"{self._address}/completions", json=self._body(request)
            ) as response:
                if response.status != 200:
                    raise self._failure(response, await response.text())
                answer = await response.json(content_type=None)
        except aiohttp.ClientConnectorError as error:
            raise EngineDead(f"the server does not answer: {error}") from error
        except (aiohttp.ClientError, ConnectionError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise await self._broken_off(error) from error
        return _result(answer, time.monotonic() - began)

    async def stop(self) -> None:
        """Hang up; the server goes on."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --- starting ------------------------------------------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        if self._config.api_key_file is None:
            return {}
        try:
            key = Path(self._config.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise EngineStartFailed(
                f"engine.api_key_file = {self._config.api_key_file!r} cannot be read ({type(error).__name__}): "
                "give a file that holds the key alone, on every node that runs an engine."
            ) from None
        return {"Authorization": f"Bearer {key}"}

    async def _models(self) -> list[dict[str, Any]]:
        """Return what the server serves, as soon as it answers."""
        while True:
            try:
                answer = await self._get("/models")
                return list(answer["data"])
            except EngineStartFailed:  # a ValueError like those below
                raise
            except EngineError as error:
                self.last_lines = str(error)
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                self.last_lines = f"{type(error).__name__}: {first_line(error)}"
            except (KeyError, TypeError, ValueError) as error:
                raise EngineStartFailed(
                    f"engine.endpoint = {self._config.endpoint!r} has no /models as OpenAI's API has it "
                    f"({type(error).__name__}): give the address that ends in /v1."
                ) from None
            await asyncio.sleep(POLL_SECONDS)

    async def _get(self, path: str) -> Any:
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=CONNECT_SECONDS)
        async with self._session.get(f"{self._address}{path}", timeout=timeout) as response:
            if response.status != 200:
                raise self._failure(response, await response.text())
            return await response.json(content_type=None)

    def _choose_model(self, models: list[dict[str, Any]]) -> None:
        names = [str(model.get("id")) for model in models]
        wanted = self._config.served_model or (names[0] if len(names) == 1 else None)
        if wanted not in names:
            raise EngineStartFailed(
                f"engine.served_model = {self._config.served_model!r}: {self._config.endpoint} serves {', '.join(names) or 'nothing'}: "
                "name one of them."
            )
        self._served = wanted
        window = models[names.index(wanted)].get("max_model_len")
        if isinstance(window, int) and window < self._config.max_model_len:
            raise EngineStartFailed(
                f"engine.max_model_len = {self._config.max_model_len}, but {wanted} at {self._config.endpoint} takes {window} "
                "tokens: lower it, or start the server with a longer window."
            )

    async def _server_version(self) -> str:
        """Return name and version where the server tells them as vLLM does."""
        assert self._session is not None
        root = self._address.removesuffix("/v1")
        try:
            timeout = aiohttp.ClientTimeout(total=CONNECT_SECONDS)
            async with self._session.get(f"{root}/version", timeout=timeout) as response:
                said = await response.json(content_type=None) if response.status == 200 else {}
            return f"openai completions of vllm {said['version']}"
        except (aiohttp.ClientError, ConnectionError, TimeoutError, KeyError, TypeError, ValueError):
            return "openai completions"

    # --- one request ---------------------------------------------------------------------------------------------

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._served, "prompt": list(request.prompt_token_ids), "max_tokens": request.max_output_tokens,
            "temperature": sampling.temperature, "top_p": sampling.top_p, "seed": request.seed,
        }  # fmt: skip
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        # Not OpenAI's, though most servers know them: sent only where they say something.
        if sampling.top_k > 0:
            body["top_k"] = sampling.top_k
        if sampling.repetition_penalty != 1.0:
            body["repetition_penalty"] = sampling.repetition_penalty
        return body

    def _failure(self, response: aiohttp.ClientResponse, text: str) -> Exception:
        """Return the error an HTTP status stands for."""
        status, said = response.status, f"HTTP {response.status}: {_message(text)}"
        if status in _NO_ENTRY:
            return EngineStartFailed(
                f"engine.endpoint = {self._config.endpoint!r} turns every request away ({said}): mend the address, "
                "engine.served_model or engine.api_key_file."
            )
        if status in (429, 503):
            return EngineBusy(said, _retry_after(response.headers.get("Retry-After")))
        if status in (408, 504):
            return RequestTimedOut(said)
        if 400 <= status < 500:
            return RequestTooLong(said) if _TOO_LONG.search(text) else RequestRefused(said)
        return ServerFailed(said)

    async def _broken_off(self, error: Exception) -> EngineError:
        """Return what a connection that broke off in the middle means: a look at the server tells."""
        said = f"{type(error).__name__}: {first_line(error)}"
        if self._session is None:
            return EngineDead("the connection to the server was closed")
        try:
            await self._get("/models")
        except (aiohttp.ClientError, ConnectionError, TimeoutError, RuntimeError):
            return EngineDead(f"the server broke off and does not answer ({said})")
        except EngineStartFailed:  # a ValueError like that of an answer that is no JSON
            raise
        except (EngineError, ValueError):
            pass  # it answers, if only that it is busy
        return ServerFailed(said)


def _result(answer: Any, seconds: float) -> GenerationResult:
    """Return what the server answered. Raises RequestFailed where that is not a completion."""
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        stop = choice.get("stop_reason")
        result = GenerationResult(
            text=str(choice["text"]), finish_reason=str(choice["finish_reason"]), stop_reason=None if stop is None else str(stop),
            prompt_tokens=int(usage["prompt_tokens"]), cached_prompt_tokens=None if cached is None else int(cached),
            completion_tokens=int(usage["completion_tokens"]), seconds=seconds,
        )  # fmt: skip
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RequestFailed(
            f"the server's answer is no completion ({type(error).__name__}: {first_line(error)})"
        ) from None
    if result.finish_reason not in ("stop", "length"):
        raise RequestFailed(f"the server ended the request with {result.finish_reason}")
    return result


def _retry_after(header: str | None) -> float:
    """Return the seconds a server asks to wait; dates, which no such server sends, count as 0."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


def _message(text: str) -> str:
    """Return the first line of an error body, of its `message` where it is OpenAI's JSON."""
    found = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', text)
    lines = (found.group(1) if found else text).strip().splitlines()
    return lines[0][:300] if lines else "no message"
