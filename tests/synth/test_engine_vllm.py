"""Real vLLM on a CPU: what the rest of synth relies on, and what it says when it cannot start."""

import asyncio
import json
import os
import signal

import psutil
import pytest

from synth.config import EngineConfig, RephrasePlacement
from synth.engine import EngineDead, EngineStartFailed, GenerationRequest, RequestTooLong
from synth.engine_vllm import VllmEngine
from synth.model_source import find_model
from synth.recipe import Sampling

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]

SAMPLING = Sampling(temperature=1.0, top_p=0.95, max_output_tokens=48)
PLACEMENT = RephrasePlacement(kv_cache_gib=0.25, max_num_seqs=32)


def engine_for(directory, **fields):
    config = EngineConfig.model_validate({"model": str(directory), "max_model_len": 256} | fields)
    return VllmEngine(config, PLACEMENT, find_model("unused", config))


def request(engine, number, sampling=SAMPLING):
    text = f"Number {number}: the harbour is small, the boats are many. " * (1 + number % 4)
    ids = engine.tokenizer.encode_data([text])[0][:180]
    return GenerationRequest(
        f"{number}-{id(object())}", tuple(ids), sampling, sampling.max_output_tokens, seed=number * 7919
    )


async def _everything(engine):
    """Use one engine for all questions, because a start takes half a minute."""
    seen = {}
    await engine.start()
    requests = [request(engine, number) for number in range(40)]
    together = await asyncio.gather(*map(engine.generate, requests))
    seen["together"] = together
    seen["again"] = await asyncio.gather(*(engine.generate(request(engine, number)) for number in range(40)))
    seen["alone"] = [await engine.generate(request(engine, number)) for number in range(5)]
    gate = asyncio.Semaphore(3)

    async def in_turn(number):
        async with gate:
            return await engine.generate(request(engine, number))

    seen["in turn"] = list(reversed(await asyncio.gather(*map(in_turn, reversed(range(40))))))
    stopping = Sampling(temperature=1.0, max_output_tokens=48, stop=tuple("aeiou "))
    seen["stopped"] = await engine.generate(request(engine, 1, stopping))
    too_long = GenerationRequest("long", (5,) * 230, SAMPLING, 48, 1)
    with pytest.raises(RequestTooLong, match="need 278 tokens, max_model_len is 256"):
        await engine.generate(too_long)
    running = [asyncio.create_task(engine.generate(request(engine, number))) for number in range(40)]
    await asyncio.sleep(0.05)
    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline()):
            child.send_signal(signal.SIGKILL)
    seen["killed"] = await asyncio.gather(*running, return_exceptions=True)
    with pytest.raises(EngineDead):
        await engine.generate(request(engine, 0))
    await engine.stop()
    await engine.start()
    seen["restarted"] = await asyncio.gather(
        *(engine.generate(request(engine, number)) for number in range(40))
    )
    await engine.stop()
    return seen


@pytest.fixture(scope="module")
def seen(tiny_model):
    engine = engine_for(tiny_model)
    try:
        return asyncio.run(_everything(engine))
    finally:
        asyncio.run(engine.stop())


def texts(results):
    return [result.text for result in results]


def test_seeds_repeat_the_text_whatever_else_is_in_the_batch(seen):
    assert len(set(texts(seen["together"]))) == 40
    assert texts(seen["again"]) == texts(seen["together"])
    assert texts(seen["alone"]) == texts(seen["together"])[:5]
    assert texts(seen["in turn"]) == texts(seen["together"])


def test_counts_and_finish_reasons_are_vllms_own(seen):
    for result in seen["together"]:
        assert result.finish_reason in ("stop", "length")
        assert result.completion_tokens == 48 or result.finish_reason == "stop"
        assert 0 < result.completion_tokens <= 48
        assert result.seconds > 0
    assert seen["stopped"].finish_reason == "stop"
    assert seen["stopped"].stop_reason in tuple("aeiou ")
    assert not set(seen["stopped"].text) & set("aeiou ")


def test_a_killed_engine_is_known_to_be_dead_and_can_be_started_again(seen):
    assert any(isinstance(result, EngineDead) for result in seen["killed"])
    assert all(
        isinstance(result, EngineDead) or result.text == texts(seen["together"])[at]
        for at, result in enumerate(seen["killed"])
    )
    assert texts(seen["restarted"]) == texts(seen["together"])


@pytest.mark.parametrize(
    ("damage", "fields", "words"),
    [
        (
            lambda path: (path / "model.safetensors").write_bytes(b"\0" * 100),
            {},
            "vLLM did not start: .*[Ss]afetensor",
        ),
        (
            lambda path: None,
            {"engine_arguments": {"no_such_argument": 1}},
            "vLLM did not start: .*no_such_argument",
        ),
        (lambda path: None, {"max_model_len": 100_000}, "vLLM did not start: .*100000"),
    ],
)
def test_a_start_that_fails_says_why_in_the_engines_words(tiny_model, tmp_path, damage, fields, words):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    engine = engine_for(tmp_path, **fields)
    with pytest.raises(EngineStartFailed, match=words) as caught:
        asyncio.run(engine.start())
    assert "\n" not in str(caught.value)
    asyncio.run(engine.stop())


def test_the_arguments_keep_a_seeded_cpu_engine_alive_and_can_be_overruled(tiny_model):
    arguments = engine_for(tiny_model).arguments()
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["max_num_batched_tokens"] >= 256
    assert arguments["kv_cache_memory_bytes"] == 2**28
    assert (
        engine_for(tiny_model, engine_arguments={"enforce_eager": False}).arguments()["enforce_eager"]
        is False
    )
    json.dumps(arguments)
    assert os.environ.get("VLLM_NO_USAGE_STATS") in (None, "1")
