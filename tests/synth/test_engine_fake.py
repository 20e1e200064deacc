import asyncio

import pytest

from synth.config import EngineConfig
from synth.engines.fake import FakeBehaviour, FakeEngine
from synth.engines.protocol import (
    EngineDead,
    EngineStartFailed,
    GenerationRequest,
    RequestFailed,
    RequestTooLong,
)
from synth.errors import UserError
from synth.recipe import Sampling

SAMPLING = Sampling(max_output_tokens=500)


def request(number, text="The harbour is small and the boats are many.", max_output_tokens=500):
    return GenerationRequest(f"r{number}", tuple(map(ord, text)), SAMPLING, max_output_tokens, seed=number)


def answers(behaviour, requests):
    async def everything():
        engine = FakeEngine(FakeBehaviour(**behaviour), 1000)
        await engine.start()
        try:
            return await asyncio.gather(*map(engine.generate, requests), return_exceptions=True)
        finally:
            await engine.stop()

    return asyncio.run(everything())


def test_text_depends_on_prompt_and_seed_only():
    first = answers({}, [request(n) for n in range(20)])
    again = answers({"latency_seconds": 0.001}, [request(n) for n in reversed(range(20))])
    assert [result.text for result in first] == [result.text for result in reversed(again)]
    assert len({result.text for result in first}) == 20
    assert first[0].text != answers({}, [request(0, "Another prompt with other words in it.")])[0].text


def test_counts_are_exact():
    (result,) = answers({}, [request(0)])
    assert (result.prompt_tokens, result.completion_tokens) == (
        len("The harbour is small and the boats are many."),
        len(result.text),
    )
    assert result.finish_reason == "stop"


def test_faults_come_in_the_proportion_asked_for():
    results = answers(
        {"refusal_fraction": 0.3, "truncation_fraction": 0.3, "hopeless_fraction": 0.1},
        [request(n) for n in range(400)],
    )
    failed = [result for result in results if isinstance(result, RequestFailed)]
    rest = [result for result in results if not isinstance(result, Exception)]
    refused = [result for result in rest if "sorry" in result.text]
    cut = [result for result in rest if result.finish_reason == "length"]
    assert len(failed) == pytest.approx(40, abs=20)
    assert len(refused) / len(rest) == pytest.approx(0.3, abs=0.07)
    assert len(cut) / len(rest) == pytest.approx(0.3, abs=0.07)
    assert all(result.completion_tokens == 500 for result in cut)


def test_a_poisoned_prompt_takes_everything_in_flight_with_it():
    results = answers({"poison": "☠", "latency_seconds": 0.01}, [request(0), request(1, "☠"), request(2)])
    assert all(isinstance(result, EngineDead) for result in results[1:])
    assert isinstance(answers({"poison": "☠"}, [request(0)])[0].text, str)


def test_a_dead_engine_stays_dead_until_started():
    async def everything():
        engine = FakeEngine(FakeBehaviour(dies_every=2), 1000)
        with pytest.raises(EngineDead):
            await engine.generate(request(0))
        await engine.start()
        await engine.generate(request(0))
        for _ in range(2):
            with pytest.raises(EngineDead):
                await engine.generate(request(1))
        await engine.stop()
        await engine.start()
        return await engine.generate(request(1))

    assert asyncio.run(everything()).text


def test_what_does_not_fit_the_window_is_refused_by_kind():
    assert isinstance(answers({}, [request(0, "x" * 501)])[0], RequestTooLong)
    assert not isinstance(answers({}, [request(0, "x" * 500)])[0], Exception)


def test_start_failures_and_unknown_behaviour_are_said():
    with pytest.raises(EngineStartFailed, match="did not start: no weights"):
        answers({"start_failure": "no weights"}, [])
    config = EngineConfig(kind="fake", model="m", engine_arguments={"latencyseconds": 1})
    with pytest.raises(
        UserError, match=r"engine.engine_arguments.latencyseconds does not suit the fake engine"
    ):
        FakeEngine.from_config(config)
