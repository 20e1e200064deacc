"""Engines that die: who is found guilty, who gets an answer, how many deaths it takes."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.engines import supervisor as supervisor_module
from synth.engines.fake import FakeBehaviour, FakeEngine
from synth.engines.protocol import EngineStartFailed, GenerationRequest, GenerationResult
from synth.engines.supervisor import Quarantined, Supervisor, TooManyDeaths
from synth.recipe import Sampling

POISON = "☠"
SAMPLING = Sampling(max_output_tokens=400)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(supervisor_module, "RETRY_SECONDS", (0.0, 0.0, 0.0))


def request(number, text=None):
    prompt = text or f"Say something about number {number} in a few words."
    return GenerationRequest(f"r{number}", tuple(map(ord, prompt)), SAMPLING, 400, seed=number)


def run(requests, behaviour, *, parts=1, max_in_flight=64, max_deaths=100, timeout_seconds=None):
    """Send requests all at once, the n-th on behalf of part n % parts; return (outcomes, supervisor)."""
    engine = FakeEngine(FakeBehaviour(**behaviour), max_model_len=2000)
    supervisor = Supervisor(engine, max_in_flight, max_deaths, timeout_seconds)

    async def everything():
        tasks = [supervisor.generate(at % parts, each) for at, each in enumerate(requests)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await supervisor.close()
        return outcomes

    return asyncio.run(everything()), supervisor


def answers_of(outcomes):
    return [outcome.text if isinstance(outcome, GenerationResult) else None for outcome in outcomes]


UNDISTURBED = answers_of(run([request(number) for number in range(64)], {})[0])


def test_the_one_row_that_kills_the_engine_is_found_and_all_others_are_answered():
    requests = [request(number) for number in range(64)]
    requests[41] = request(41, f"poison {POISON}")
    outcomes, supervisor = run(requests, {"poison": POISON, "latency_seconds": 0.002})
    assert outcomes[41] == Quarantined(
        "killed_engine", "the engine died with no other request in it: the fake engine died"
    )
    assert answers_of(outcomes) == [*UNDISTURBED[:41], None, *UNDISTURBED[42:]]
    assert 2 <= supervisor.usage(0).deaths <= math.log2(64) + 2
    assert supervisor.engine.starts <= supervisor.usage(0).deaths + 1


@settings(max_examples=25, deadline=None)
@given(poisoned=st.sets(st.integers(0, 63), max_size=6), max_in_flight=st.sampled_from([1, 3, 16, 64]))
def test_any_set_of_killers_is_found_exactly(poisoned, max_in_flight):
    requests = [request(n, f"poison {POISON} {n}") if n in poisoned else request(n) for n in range(64)]
    outcomes, supervisor = run(requests, {"poison": POISON}, max_in_flight=max_in_flight, max_deaths=1000)
    assert {n for n, outcome in enumerate(outcomes) if isinstance(outcome, Quarantined)} == poisoned
    assert all(outcomes[n].reason == "killed_engine" for n in poisoned)
    assert answers_of(outcomes) == [None if n in poisoned else UNDISTURBED[n] for n in range(64)]
    assert supervisor.usage(0).deaths <= len(poisoned) * (math.log2(64) + 2)


def test_an_engine_that_dies_now_and_then_loses_nobody():
    outcomes, supervisor = run([request(number) for number in range(64)], {"dies_every": 40})
    assert answers_of(outcomes) == UNDISTURBED
    assert 1 <= supervisor.usage(0).deaths <= 3


def test_deaths_are_bounded_per_part_and_other_parts_go_on():
    requests = [request(n, f"poison {POISON} {n}") if n % 2 else request(n) for n in range(32)]
    outcomes, _ = run(requests, {"poison": POISON}, parts=2, max_in_flight=4, max_deaths=5)
    assert answers_of(outcomes[::2]) == UNDISTURBED[:32:2], "part 0 sent nothing bad"
    failures = [outcome for outcome in outcomes[1::2] if isinstance(outcome, TooManyDeaths)]
    assert {(failure.part, failure.deaths) for failure in failures} == {(1, 6)}
    guilty = [outcome for outcome in outcomes[1::2] if isinstance(outcome, Quarantined)]
    assert len(guilty) + len(failures) == 16
    assert 1 <= len(guilty) <= 5, "those found before the bound was reached are known"


def test_what_fails_once_is_tried_again_and_what_always_fails_is_quarantined():
    outcomes, supervisor = run(
        [request(number) for number in range(64)], {"failure_fraction": 0.3, "hopeless_fraction": 0.1}
    )
    hopeless = [outcome for outcome in outcomes if isinstance(outcome, Quarantined)]
    assert {outcome.reason for outcome in hopeless} == {"request_failed"}
    assert 1 <= len(hopeless) <= 20
    assert supervisor.usage(0).retries >= 3 * len(hopeless) + 1
    assert supervisor.usage(0).deaths == 0


def test_a_request_that_is_too_long_is_not_tried_again():
    outcomes, supervisor = run([request(0, "x" * 1700), request(1)], {})
    assert outcomes[0].reason == "too_long"
    assert answers_of(outcomes)[1] == UNDISTURBED[1]
    assert supervisor.usage(0).retries == 0


def test_an_engine_that_does_not_start_tells_every_request_why():
    outcomes, _ = run([request(number) for number in range(5)], {"start_failure": "no weights"})
    assert all(
        isinstance(outcome, EngineStartFailed) and "no weights" in str(outcome) for outcome in outcomes
    )


def test_an_engine_that_does_not_come_back_tells_every_request_why():
    engine = FakeEngine(FakeBehaviour(poison=POISON), max_model_len=2000)
    supervisor = Supervisor(engine, 64, 100)

    async def everything():
        await supervisor.generate(0, request(0))
        engine.behaviour = FakeBehaviour(poison=POISON, start_failure="the device is lost")
        return await asyncio.gather(
            *(supervisor.generate(0, each) for each in [request(1, POISON), *map(request, range(2, 8))]),
            return_exceptions=True,
        )

    outcomes = asyncio.run(everything())
    lost = [outcome for outcome in outcomes if not isinstance(outcome, GenerationResult)]
    assert lost
    assert all("the device is lost" in str(outcome) for outcome in lost)


def test_retries_of_a_failed_request_keep_out_of_a_search_for_a_killer(monkeypatch):
    monkeypatch.setattr(supervisor_module, "RETRY_SECONDS", (0.003, 0.003, 0.003))
    requests = [request(number) for number in range(64)]
    requests[10] = request(10, f"poison {POISON}")
    behaviour = {"poison": POISON, "failure_fraction": 0.5, "latency_seconds": 0.002}
    for _ in range(5):
        outcomes, _ = run(requests, behaviour)
        assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Quarantined)] == [10]


def test_device_time_is_shared_by_requests_in_flight_and_adds_up():
    outcomes, supervisor = run(
        [request(number) for number in range(64)], {"latency_seconds": 0.2}, parts=2, max_in_flight=64
    )
    assert len(answers_of(outcomes)) == 64
    first, second = supervisor.usage(0).device_seconds, supervisor.usage(1).device_seconds
    assert first == pytest.approx(second, rel=0.2)
    assert 0.19 < first + second < 2.0


def test_a_request_that_never_comes_back_is_taken_back_and_tried_again(monkeypatch):
    monkeypatch.setattr(supervisor_module, "TIMED_OUT_RETRY_SECONDS", (0.0, 0.0))
    outcomes, supervisor = run(
        [request(number) for number in range(64)], {"hanging_fraction": 0.2}, timeout_seconds=0.2
    )
    assert answers_of(outcomes) == UNDISTURBED
    assert 4 <= supervisor.usage(0).retries <= 24
    assert supervisor.usage(0).deaths == 0


def test_a_request_that_is_always_too_slow_is_quarantined_after_three_attempts(monkeypatch):
    monkeypatch.setattr(supervisor_module, "TIMED_OUT_RETRY_SECONDS", (0.0, 0.0))
    outcomes, supervisor = run([request(0)], {"latency_seconds": 5.0}, timeout_seconds=0.02)
    assert outcomes == [Quarantined("timed_out", "no answer within 0.02 s")]
    assert supervisor.usage(0).retries == 2


def test_an_engine_without_room_is_asked_again_and_loses_nobody(monkeypatch):
    monkeypatch.setattr(supervisor_module, "BUSY_RETRY_SECONDS", (0.01,) * 5)
    outcomes, supervisor = run([request(number) for number in range(64)], {"busy_fraction": 0.5})
    assert answers_of(outcomes) == UNDISTURBED
    assert 16 <= supervisor.usage(0).retries <= 48
