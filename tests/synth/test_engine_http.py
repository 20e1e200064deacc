"""A server over HTTP: what its statuses mean, what is tried again, and what is said when it lets nobody in."""

import asyncio
import threading

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from synth.config import EngineConfig, RephrasePlacement
from synth.engines import http as engine_http
from synth.engines import outage, retries
from synth.engines.http import HttpEngine
from synth.engines.protocol import (
    EngineBusy,
    EngineStartFailed,
    GenerationRequest,
    GenerationResult,
    RequestFailed,
    RequestRefused,
    RequestTimedOut,
    RequestTooLong,
    ServerFailed,
)
from synth.engines.supervisor import Quarantined, Supervisor
from synth.model_source import find_model
from synth.recipe import Sampling
from tests.assets.completions_server import CompletionsServer

SAMPLING = Sampling(temperature=1.0, max_output_tokens=24)


@pytest.fixture(scope="module")
def server(tiny_tokenizer):
    server = CompletionsServer(tiny_tokenizer, window=400).start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(engine_http, "POLL_SECONDS", 0.05)
    for name in ("RETRY_SECONDS", "SERVER_RETRY_SECONDS", "BUSY_RETRY_SECONDS", "TIMED_OUT_RETRY_SECONDS"):
        monkeypatch.setattr(retries, name, (0.01, 0.01, 0.01))
    monkeypatch.setattr(outage, "PROBE_SECONDS", (0.01, 0.05))


def engine_of(directory, endpoint, **fields):
    config = EngineConfig.model_validate(
        {"kind": "http", "model": str(directory), "endpoint": endpoint, "max_model_len": 400} | fields
    )
    return HttpEngine(config, RephrasePlacement(), find_model("unused", config))


def request(engine, text, number=0):
    ids = tuple(engine.tokenizer.encode_data([text])[0])
    return GenerationRequest(f"r{number}", ids, SAMPLING, 24, seed=number)


def ask(engine, *texts):
    async def everything():
        await engine.start()
        try:
            requests = [request(engine, text, number) for number, text in enumerate(texts)]
            return await asyncio.gather(*map(engine.generate, requests), return_exceptions=True)
        finally:
            await engine.stop()

    return asyncio.run(everything())


@pytest.mark.parametrize(
    ("sign", "kind"),
    [("➊", ServerFailed), ("➋", EngineBusy), ("➌", RequestRefused), ("➍", RequestTimedOut), ("➎", EngineBusy),
     ("✂", ServerFailed), ("¿", RequestFailed)],
)  # fmt: skip
def test_a_status_is_an_error_of_its_kind_and_the_others_get_their_answer(server, tiny_tokenizer, sign, kind):
    engine = engine_of(tiny_tokenizer, server.endpoint)
    failed, fine = ask(engine, f"{sign} one", "a harbour")
    assert type(failed) is kind, failed
    assert isinstance(fine, GenerationResult)
    if kind is EngineBusy:
        assert failed.retry_after_seconds == 0.05


def test_a_server_that_never_tells_its_version_and_then_answers_nonsense_stops_nothing(
    tiny_tokenizer, monkeypatch
):
    monkeypatch.setattr(engine_http, "CONNECT_SECONDS", 0.2)
    asked = []

    async def models(request):
        asked.append(request)
        if len(asked) > 1:  # as a proxy does that has lost its server
            return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
        return web.json_response({"data": [{"id": "served"}]})

    async def never(request):
        await over.wait()

    async def breaks_off(request):
        request.transport.close()
        return web.Response()

    over = asyncio.Event()

    async def scene():
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/models", models),
                web.get("/version", never),
                web.post("/v1/completions", breaks_off),
            ]
        )
        async with TestServer(app) as server:
            engine = engine_of(tiny_tokenizer, str(server.make_url("/v1")))
            await engine.start()
            try:
                return engine.version, await asyncio.gather(
                    engine.generate(GenerationRequest("r", (1, 2, 3), SAMPLING, 24, seed=0)),
                    return_exceptions=True,
                )
            finally:
                over.set()
                await engine.stop()

    version, (failed,) = asyncio.run(scene())
    assert version == "openai completions"
    assert type(failed) is ServerFailed


def test_the_servers_own_words_are_kept(server, tiny_tokenizer):
    (failed,) = ask(engine_of(tiny_tokenizer, server.endpoint), "➌ words")
    assert str(failed) == "HTTP 400: told to answer 400"


@pytest.mark.parametrize(
    ("details", "cached"), [({}, None), ({"prompt_tokens_details": None}, None), ({"prompt_tokens_details": {"cached_tokens": 0}}, 0)]
)  # fmt: skip
def test_cached_tokens_a_server_does_not_tell_are_unknown_and_not_none_at_all(details, cached):
    choice = {"text": "Yes.", "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 2} | details
    assert engine_http._result({"choices": [choice], "usage": usage}, 0.1).cached_prompt_tokens == cached


def test_a_window_the_server_measures_otherwise_is_still_too_long(tiny_tokenizer):
    server = CompletionsServer(tiny_tokenizer, window=400).start()
    try:
        engine = engine_of(tiny_tokenizer, server.endpoint)
        engine._config = engine._config.model_copy(update={"max_model_len": 10_000})
        engine._choose_model = lambda models: None  # as if the server kept its window to itself
        (failed,) = ask(engine, "x " * 600)
    finally:
        server.kill()
    assert type(failed) is RequestTooLong
    assert "maximum context length" in str(failed)


def test_what_may_pass_is_tried_again_and_what_cannot_is_not(server, tiny_tokenizer):
    engine = engine_of(tiny_tokenizer, server.endpoint)
    texts = [f"{sign} again" for sign in "➊➋➍➎✂"] + ["➌ again", "¿ again", "plain again"]
    supervised = Supervisor(engine, 64, 10)

    async def everything():
        requests = [request(engine, text, number) for number, text in enumerate(texts)]
        try:
            return await asyncio.gather(*(supervised.generate(0, each) for each in requests))
        finally:
            await supervised.close()

    *passed, refused, nonsense, plain = asyncio.run(everything())
    assert all(isinstance(outcome, GenerationResult) for outcome in [*passed, plain])
    assert refused == Quarantined("request_refused", "HTTP 400: told to answer 400")
    assert (nonsense.reason, nonsense.detail[:39]) == (
        "request_failed",
        "the server's answer is no completion (K",
    )
    assert 3 <= supervised.usage(0).retries <= 5 + 3, (
        "what failed while nobody was answered was not the row's attempt"
    )
    assert supervised.usage(0).deaths == 0


def test_a_prompt_that_kills_the_server_is_found_while_its_owner_brings_it_back(tiny_tokenizer):
    server = CompletionsServer(tiny_tokenizer, window=400, latency_seconds=0.02).start()
    over = threading.Event()

    def bring_back():
        while not over.wait(0.02):
            if server.process.poll() is not None:
                server.start()

    owner = threading.Thread(target=bring_back)
    owner.start()
    engine = engine_of(tiny_tokenizer, server.endpoint)
    supervised = Supervisor(engine, 16, 10)

    async def everything():
        texts = [f"{'☠' if number == 5 else 'ship'} number {number}" for number in range(6)]
        try:
            return await asyncio.gather(
                *(supervised.generate(0, request(engine, t, n)) for n, t in enumerate(texts))
            )
        finally:
            await supervised.close()

    try:
        outcomes = asyncio.run(everything())
    finally:
        over.set()
        owner.join()
        server.kill()
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Quarantined)] == [5]
    assert outcomes[5].reason == "killed_engine"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"served_model": "other"}, r"engine.served_model = 'other': http://\S+ serves served: name one of them"),
        ({"max_model_len": 4096}, r"engine.max_model_len = 4096, but served at http://\S+ takes 400 tokens: lower it"),
        ({"api_key_file": "/nowhere/key"}, r"engine.api_key_file = '/nowhere/key' cannot be read \(FileNotFoundError\)"),
    ],
)  # fmt: skip
def test_a_server_that_is_not_the_one_meant_is_one_sentence(server, tiny_tokenizer, fields, sentence):
    engine = engine_of(tiny_tokenizer, server.endpoint, **fields)
    with pytest.raises(EngineStartFailed, match=sentence):
        asyncio.run(engine.start())


def test_nobody_there_and_a_wrong_path_are_one_sentence(server, tiny_tokenizer):
    nobody = Supervisor(engine_of(tiny_tokenizer, "http://127.0.0.1:9/v1"), 4, 4, start_timeout_seconds=0.3)
    with pytest.raises(
        EngineStartFailed,
        match=r"did not start within placement.start_timeout_seconds = 0.3 s \(it said last: ClientConn.*127.0.0.1:9",
    ):
        asyncio.run(nobody.ready(0))
    with pytest.raises(EngineStartFailed, match=r"turns every request away \(HTTP 404"):
        asyncio.run(engine_of(tiny_tokenizer, server.endpoint.removesuffix("/v1")).start())


def test_the_key_comes_from_a_file_and_is_nowhere_else(tiny_tokenizer, tmp_path):
    server = CompletionsServer(tiny_tokenizer, api_key="s3cret", window=400).start()
    (tmp_path / "key").write_text("s3cret\n")
    try:
        with pytest.raises(EngineStartFailed, match=r"turns every request away \(HTTP 401: who are you\?\)"):
            asyncio.run(engine_of(tiny_tokenizer, server.endpoint).start())
        engine = engine_of(tiny_tokenizer, server.endpoint, api_key_file=str(tmp_path / "key"))
        (answer,) = ask(engine, "a harbour")
    finally:
        server.kill()
    assert isinstance(answer, GenerationResult)
    assert "s3cret" not in engine._config.model_dump_json()
    assert "api_key_file" not in engine._config.identity()
    assert "endpoint" not in engine._config.identity()
