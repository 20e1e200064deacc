"""What every engine must do, asked of every engine: the fake, a server over HTTP, vLLM itself, vLLM's own server."""

import asyncio
import itertools
import os
import socket
import subprocess
import sys

import psutil
import pytest

from synth.config import EngineConfig, RephrasePlacement
from synth.engines import http as engine_http
from synth.engines.factory import open_engine
from synth.engines.protocol import EngineDead, GenerationRequest, RequestTooLong
from synth.model_source import find_model
from synth.recipe import Sampling
from tests.assets.completions_server import CompletionsServer

WINDOW = 384
PLACEMENT = RephrasePlacement(kv_cache_gib=0.25, max_num_seqs=16)
numbers = itertools.count()


class Bench:
    """One engine that is up, on an event loop of its own, and the ways to hurt it.

    Every kind has its own `kill()`, which takes away whatever generates, as the kernel would.
    """

    def __init__(self, model, **fields):
        self.config = EngineConfig.model_validate(
            {"model": str(model), "max_model_len": WINDOW, "dtype": "float32"} | fields
        )
        self.runner = asyncio.Runner()
        self.engine = open_engine(self.config, PLACEMENT, find_model("unused", self.config))
        self.tokenizer_before_start = self.engine.tokenizer.encode_data(["harbour"])[0]
        self.version_before_start = self.engine.version
        self.run(self.engine.start())

    def run(self, awaitable):
        return self.runner.run(awaitable)

    def request(self, number, sampling=None, seed=None, max_output_tokens=None, ids=None):
        sampling = sampling or Sampling(temperature=1.0, max_output_tokens=24)
        text = f"Number {number}: the harbour is small and the boats are many. " * (1 + number % 3)
        return GenerationRequest(
            f"r{next(numbers)}",
            tuple(ids if ids is not None else self.engine.tokenizer.encode_data([text])[0]),
            sampling,
            max_output_tokens or sampling.max_output_tokens,
            seed=number * 7919 + 1 if seed is None else seed,
        )

    async def everything(self, requests, width=1000):
        gate = asyncio.Semaphore(width)

        async def one(request):
            async with gate:
                return await self.engine.generate(request)

        return await asyncio.gather(*map(one, requests), return_exceptions=True)

    def texts(self, requests, width=1000):
        return [result.text for result in self.run(self.everything(requests, width))]

    def revive(self):
        """Bring back what is not the engine's own to bring back."""

    def close(self):
        self.run(self.engine.stop())
        self.runner.close()


class FakeBench(Bench):
    def __init__(self, model):
        super().__init__(
            "fake", kind="fake", engine_arguments={"latency_seconds": 0.02, "truncation_fraction": 0.5}
        )

    def kill(self):
        self.runner.get_loop().call_soon_threadsafe(self.engine._death.set)


class VllmBench(Bench):
    def __init__(self, model):
        super().__init__(model, kind="vllm")

    def kill(self):
        engines = [p for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name()]
        assert engines
        for process in engines:
            process.kill()


class HttpBench(Bench):
    def __init__(self, model):
        self.server = CompletionsServer(model, latency_seconds=0.02, window=WINDOW).start()
        super().__init__(model, kind="http", endpoint=self.server.endpoint)

    def kill(self):
        self.server.kill()

    def revive(self):
        self.server.start()

    def close(self):
        super().close()
        self.server.kill()


class VllmServerBench(Bench):
    def __init__(self, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.process = str(model), None
        self.revive()
        super().__init__(model, kind="http", endpoint=f"http://127.0.0.1:{self.port}/v1", served_model="tiny")

    def revive(self):
        options = {
            "model": self.model, "served-model-name": "tiny", "host": "127.0.0.1", "port": self.port, "dtype": "float32",
            "max-model-len": WINDOW, "max-num-seqs": 16, "max-num-batched-tokens": 4096,
            "kv-cache-memory-bytes": 2**28, "distributed-executor-backend": "uni",
        }  # fmt: skip
        flags = [f"--{name}={value}" for name, value in options.items()]
        environment = os.environ | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING", "OMP_NUM_THREADS": "2",
        }  # fmt: skip
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager",
                   "--no-enable-chunked-prefill", "--enable-prompt-tokens-details", *flags]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self):
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for child in children:
            if child.is_running():
                child.kill()

    def close(self):
        super().close()
        self.kill()


STOPS = tuple("aei ")
"""Four: the most an OpenAI-compatible server takes."""

ENGINES = {"fake": FakeBench, "http": HttpBench, "vllm": VllmBench, "vllm_server": VllmServerBench}


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        "http",
        pytest.param("vllm", marks=pytest.mark.slow),
        pytest.param("vllm_server", marks=pytest.mark.drill),
    ],
)
def bench(request):
    model = request.getfixturevalue("tiny_model" if request.param.startswith("vllm") else "tiny_tokenizer")
    bench = ENGINES[request.param](model)
    try:
        yield bench
    finally:
        bench.close()


def test_tokenizer_and_version_are_there_before_the_engine_is(bench):
    assert bench.tokenizer_before_start == bench.engine.tokenizer.encode_data(["harbour"])[0]
    assert bench.version_before_start
    assert bench.engine.version.startswith(bench.version_before_start)


def test_an_answer_depends_on_prompt_and_seed_and_on_nothing_else(bench):
    together = bench.texts([bench.request(number) for number in range(24)])
    assert len(set(together)) > 20, "seeds differ, so do the answers"
    assert bench.texts([bench.request(number) for number in range(24)], width=3) == together
    backwards = bench.texts([bench.request(number) for number in reversed(range(24))], width=7)
    assert backwards[::-1] == together
    assert bench.texts([bench.request(5)]) == [together[5]]
    assert bench.texts([bench.request(5, seed=999)]) != [together[5]]


def test_samples_of_one_prompt_differ_by_their_seed_alone(bench):
    first = bench.texts([bench.request(1, seed=seed) for seed in range(6)])
    assert len(set(first)) == 6
    assert bench.texts([bench.request(1, seed=seed) for seed in range(6)], width=1) == first


def test_counts_and_finish_reasons_are_true(bench):
    results = bench.run(bench.everything([bench.request(number) for number in range(24)]))
    for number, result in enumerate(results):
        assert result.finish_reason in ("stop", "length")
        assert 0 < result.completion_tokens <= 24
        assert (result.completion_tokens == 24) or result.finish_reason == "stop"
        assert result.prompt_tokens == len(bench.request(number).prompt_token_ids)
        assert 0 <= result.cached_prompt_tokens <= result.prompt_tokens
        assert 0 < result.seconds < 60
    assert any(result.finish_reason == "length" and result.completion_tokens == 24 for result in results)


def test_an_answer_ends_at_a_stop_string_and_leaves_it_out(bench):
    sampling = Sampling(
        temperature=1.0, max_output_tokens=48, stop=tuple("aei ")
    )  # four: the most an OpenAI-compatible server takes
    for result in bench.run(bench.everything([bench.request(number, sampling) for number in range(4)])):
        assert result.finish_reason == "stop"
        assert result.stop_reason in STOPS
        assert not set(result.text) & set(STOPS)


def test_what_does_not_fit_is_refused_by_kind_and_the_engine_lives(bench):
    long, fits = bench.run(bench.everything([bench.request(1, ids=[70] * (WINDOW - 8)), bench.request(2)]))
    assert isinstance(long, RequestTooLong)
    assert str(WINDOW) in str(long)
    assert fits.text


def test_a_request_taken_back_leaves_the_engine_fit(bench):
    async def impatient():
        running = [asyncio.create_task(bench.engine.generate(bench.request(number))) for number in range(12)]
        await asyncio.sleep(0.005)
        for task in running[::2]:
            task.cancel()
        return await asyncio.gather(*running, return_exceptions=True)

    undisturbed = bench.texts([bench.request(number) for number in range(12)])
    results = bench.run(impatient())
    assert [result.text for result in results[1::2]] == undisturbed[1::2]
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert bench.texts([bench.request(number) for number in range(12)]) == undisturbed


def test_a_death_reaches_everyone_in_flight_and_a_new_start_gives_the_same_text(bench, monkeypatch):
    monkeypatch.setattr(engine_http, "POLL_SECONDS", 0.1)
    before = bench.texts([bench.request(number) for number in range(12)])

    async def shot_in_flight():
        running = [asyncio.create_task(bench.engine.generate(bench.request(number))) for number in range(200)]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(bench.kill)
        return await asyncio.gather(*running, return_exceptions=True)

    outcomes = bench.run(shot_in_flight())
    dead = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert dead
    assert all(isinstance(outcome, EngineDead) for outcome in dead), {type(outcome) for outcome in dead}
    assert all(o.text == before[at] for at, o in enumerate(outcomes[:12]) if not isinstance(o, Exception))
    (after,) = bench.run(bench.everything([bench.request(0)]))
    assert isinstance(after, EngineDead), "dead is dead until it is started again"
    bench.run(bench.engine.stop())
    bench.run(bench.engine.stop())
    bench.revive()
    bench.run(bench.engine.start())
    assert bench.texts([bench.request(number) for number in range(12)]) == before


def test_an_engine_that_was_stopped_answers_nobody(bench):
    assert bench.texts([bench.request(0)])
    bench.run(bench.engine.stop())
    (outcome,) = bench.run(bench.everything([bench.request(0)]))
    assert isinstance(outcome, EngineDead)
