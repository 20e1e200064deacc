"""Engines that die: who is found guilty, who gets an answer, how many deaths it takes."""

import asyncio
import math
import re
from contextlib import asynccontextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from synth.engines import outage, retries
from synth.engines.fake import FakeBehaviour, FakeEngine
from synth.engines.protocol import EngineAway, EngineStartFailed, GenerationRequest, GenerationResult
from synth.engines.supervisor import Quarantined, Supervisor, TooManyDeaths
from synth.recipe import Sampling

POISON = "☠"
SAMPLING = Sampling(max_output_tokens=400)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(retries, "RETRY_SECONDS", (0.0, 0.0, 0.0))


def request(number, text=None):
    prompt = text or f"Say something about number {number} in a few words."
    return GenerationRequest(f"r{number}", tuple(map(ord, prompt)), SAMPLING, 400, seed=number)


def run(requests, behaviour, *, parts=1, max_in_flight=64, max_deaths=100, timeout_seconds=None, **limits):
    """Send requests all at once, the n-th on behalf of part n % parts; return (outcomes, supervisor)."""
    engine = FakeEngine(FakeBehaviour(**behaviour), max_model_len=2000)
    supervisor = Supervisor(engine, max_in_flight, max_deaths, timeout_seconds, **limits)

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
@example(
    poisoned={0, 1, 2, 3}, max_in_flight=1
)  # so many deaths in a row that a harmless prompt is asked for
def test_any_set_of_killers_is_found_exactly(poisoned, max_in_flight):
    requests = [request(n, f"poison {POISON} {n}") if n in poisoned else request(n) for n in range(64)]
    outcomes, supervisor = run(requests, {"poison": POISON}, max_in_flight=max_in_flight, max_deaths=1000)
    assert {n for n, outcome in enumerate(outcomes) if isinstance(outcome, Quarantined)} == poisoned
    assert all(outcomes[n].reason == "killed_engine" for n in poisoned)
    assert answers_of(outcomes) == [None if n in poisoned else UNDISTURBED[n] for n in range(64)]
    assert supervisor.usage(0).deaths <= len(poisoned) * (math.log2(64) + 2)


def test_waiting_for_others_to_start_is_no_part_of_an_engines_own_start():
    class Patient(FakeEngine):
        @asynccontextmanager
        async def turn(self):
            await asyncio.sleep(0.5)
            yield

    supervisor = Supervisor(
        Patient(FakeBehaviour(start_seconds=0.1), 2000), 4, 100, None, start_timeout_seconds=0.4
    )

    async def one():
        outcome = await supervisor.generate(0, request(0))
        await supervisor.close()
        return outcome

    assert answers_of([asyncio.run(one())]) == UNDISTURBED[:1]
    assert 0.1 <= supervisor.usage(0).start_seconds < 0.4


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
    monkeypatch.setattr(retries, "RETRY_SECONDS", (0.003, 0.003, 0.003))
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
    monkeypatch.setattr(retries, "TIMED_OUT_RETRY_SECONDS", (0.0, 0.0))
    outcomes, supervisor = run(
        [request(number) for number in range(64)], {"hanging_fraction": 0.2}, timeout_seconds=0.2
    )
    assert answers_of(outcomes) == UNDISTURBED
    assert 4 <= supervisor.usage(0).retries <= 24
    assert supervisor.usage(0).deaths == 0


def test_a_row_that_is_slow_while_others_are_answered_has_timed_out_and_the_engine_goes_on(monkeypatch):
    monkeypatch.setattr(retries, "TIMED_OUT_RETRY_SECONDS", (0.0, 0.0))

    class SlowAtOne(FakeEngine):
        async def generate(self, asked):
            await asyncio.sleep(30 if asked.seed == 3 else 0.01)
            return await super().generate(asked)

    supervisor = Supervisor(SlowAtOne(FakeBehaviour(), 2000), 2, 100, 0.1)

    async def everything():
        outcomes = await asyncio.gather(*(supervisor.generate(0, request(n)) for n in range(64)))
        await supervisor.close()
        return outcomes

    outcomes = asyncio.run(everything())
    assert outcomes[3] == Quarantined("timed_out", "no answer within 0.1 s")
    assert answers_of(outcomes) == [*UNDISTURBED[:3], None, *UNDISTURBED[4:]]
    usage = supervisor.usage(0)
    assert (usage.retries, usage.deaths, usage.lost_attempts, supervisor.engine.starts) == (2, 0, 3, 1)
    assert 0.1 <= usage.lost_device_seconds < usage.device_seconds


# --- engines that are up and do nothing ---------------------------------------------------------------------------


def test_an_engine_that_stops_answering_is_started_again_and_no_row_is_blamed():
    behaviour = {"silent_after": 40, "latency_seconds": 0.002}
    outcomes, supervisor = run(
        [request(n) for n in range(64)], behaviour, max_in_flight=8, timeout_seconds=1.0
    )
    assert answers_of(outcomes) == UNDISTURBED
    usage = supervisor.usage(0)
    assert (usage.deaths, supervisor.engine.starts) == (1, 2)
    assert usage.retries <= 8, (
        "those sent just before the last answer time out a moment before the silence is as long"
    )
    assert 8 <= usage.lost_attempts <= 8 + usage.retries, (
        "all that were in flight, and of those that had timed out the ones that were sent again by then"
    )
    assert supervisor.last_words == "no answer within 1 s, to any request"


def test_a_row_that_silences_the_engine_is_found_and_all_others_are_answered():
    requests = [request(n, f"hush {POISON}") if n == 11 else request(n) for n in range(64)]
    behaviour = {"silencing": POISON, "latency_seconds": 0.002}
    outcomes, supervisor = run(requests, behaviour, max_in_flight=16, timeout_seconds=0.75)
    assert (outcomes[11].reason, answers_of(outcomes)) == (
        "hung_engine",
        [*UNDISTURBED[:11], None, *UNDISTURBED[12:]],
    )
    assert 2 <= supervisor.usage(0).deaths <= math.log2(16) + 2


def test_an_engine_with_nothing_to_do_is_not_taken_for_one_that_hangs():
    supervisor = Supervisor(FakeEngine(FakeBehaviour(latency_seconds=0.05), 2000), 4, 10, 0.6)

    async def everything():
        first = await supervisor.generate(0, request(0))
        await asyncio.sleep(0.8)
        second = await supervisor.generate(0, request(1))
        await supervisor.close()
        return [first, second]

    assert answers_of(asyncio.run(everything())) == UNDISTURBED[:2]
    assert supervisor.engine.starts == 1


@pytest.mark.parametrize("behaviour", [{"dies_every": 1}, {"silent_after": 0}])
def test_an_engine_that_is_dead_whatever_it_is_sent_ends_the_job_and_blames_no_row(behaviour):
    outcomes, supervisor = run(
        [request(n) for n in range(64)], behaviour, max_in_flight=16, timeout_seconds=0.02
    )
    assert {type(outcome) for outcome in outcomes} == {EngineAway}
    assert "answered nobody in between and dies at a harmless prompt, too" in str(outcomes[0])
    assert supervisor.engine.starts < 12


def test_killers_that_come_one_after_the_other_are_found_and_not_taken_for_a_dead_engine():
    """As the longest rows of a part do, which go first, where what kills is their length."""
    requests = [request(n, f"Say something of {n} {POISON}") if n < 24 else request(n) for n in range(64)]
    outcomes, _ = run(requests, {"poison": POISON}, max_in_flight=8, max_deaths=1000)
    assert {outcome.reason for outcome in outcomes[:24]} == {"killed_engine"}
    assert answers_of(outcomes[24:]) == UNDISTURBED[24:]


# --- servers that fail --------------------------------------------------------------------------------------------


def test_an_outage_is_waited_out_and_no_row_is_blamed(monkeypatch):
    monkeypatch.setattr(outage, "PROBE_SECONDS", (0.02,))
    behaviour = {"outage_after": 20, "outage_seconds": 0.3, "latency_seconds": 0.002}
    outcomes, supervisor = run([request(n) for n in range(64)], behaviour, max_in_flight=8)
    assert answers_of(outcomes) == UNDISTURBED
    usage = supervisor.usage(0)
    assert usage.lost_attempts <= 16, "one asked for all of them"
    assert usage.deaths == 0


def test_an_outage_before_the_first_answer_is_one_too(monkeypatch):
    monkeypatch.setattr(outage, "PROBE_SECONDS", (0.02,))
    behaviour = {"outage_after": 0, "outage_seconds": 0.2, "unbearable": POISON}
    requests = [request(0, f"bad {POISON}"), *map(request, range(1, 8))]
    monkeypatch.setattr(retries, "SERVER_RETRY_SECONDS", (0.0,))
    outcomes, _ = run(requests, behaviour)
    assert answers_of(outcomes) == [None, *UNDISTURBED[1:8]]
    assert outcomes[0] == Quarantined("request_failed", "HTTP 500: the fake engine cannot bear this one")


def test_an_outage_that_does_not_end_is_one_sentence_and_no_row_is_quarantined(monkeypatch):
    monkeypatch.setattr(outage, "PROBE_SECONDS", (0.02,))
    behaviour = {"outage_after": 20, "outage_seconds": 60.0, "latency_seconds": 0.002}
    outcomes, _ = run([request(n) for n in range(64)], behaviour, max_in_flight=8, outage_seconds=0.15)
    assert answers_of(outcomes)[:8] == UNDISTURBED[:8]
    away = [outcome for outcome in outcomes if isinstance(outcome, EngineAway)]
    assert len(away) == sum(not isinstance(outcome, GenerationResult) for outcome in outcomes) > 30
    assert re.match(
        r"the engine has answered nobody for placement.outage_seconds = 0.15 s \(HTTP 502: the fake engine is away\): bring",
        str(away[0]),
    )


def test_a_row_that_a_server_cannot_bear_is_quarantined_also_when_it_is_the_last_one_left(monkeypatch):
    monkeypatch.setattr(outage, "PROBE_SECONDS", (0.01,))
    monkeypatch.setattr(retries, "SERVER_RETRY_SECONDS", (0.01, 0.01))
    requests = [request(n, f"bad {POISON}") if n in (5, 63) else request(n) for n in range(64)]
    outcomes, supervisor = run(requests, {"unbearable": POISON, "latency_seconds": 0.002}, max_in_flight=4)
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Quarantined)] == [5, 63]
    assert supervisor.usage(0).retries == 4


# --- engines that do not start ------------------------------------------------------------------------------------


def test_an_engine_that_never_comes_up_is_given_up_in_its_own_words():
    behaviour = {"start_seconds": 30.0, "last_words": "loading shard 3 of 5"}
    outcomes, _ = run([request(n) for n in range(5)], behaviour, start_timeout_seconds=0.1)
    assert {type(outcome) for outcome in outcomes} == {EngineStartFailed}
    assert "within placement.start_timeout_seconds = 0.1 s (it said last: loading shard 3 of 5)" in str(
        outcomes[0]
    )


def test_an_engine_without_room_is_asked_again_and_loses_nobody(monkeypatch):
    monkeypatch.setattr(retries, "BUSY_RETRY_SECONDS", (0.01,) * 5)
    outcomes, supervisor = run([request(number) for number in range(64)], {"busy_fraction": 0.5})
    assert answers_of(outcomes) == UNDISTURBED
    assert 16 <= supervisor.usage(0).retries <= 48
