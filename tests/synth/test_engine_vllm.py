"""vLLM's own side of things: the arguments it gets, what it says when it does not start, and that it goes with its parent.

What it has in common with the other engines is in test_engine_conformance.py.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from synth.config import EngineConfig, RephraseConfig, RephrasePlacement
from synth.engines.protocol import EngineStartFailed
from synth.engines.supervisor import Supervisor
from synth.engines.vllm import VllmEngine, alone_on_its_gpu
from synth.ledger import open_synthetic
from synth.model_source import find_model
from synth.rephrase import finish_work, open_work
from synth.worker import RephraseWorker

REPOSITORY = Path(__file__).parents[2]
PLACEMENT = RephrasePlacement(kv_cache_gib=0.25, max_num_seqs=32)


def engine_for(directory, placement=PLACEMENT, **fields):
    config = EngineConfig.model_validate(
        {"model": str(directory), "max_model_len": 256, "dtype": "float32"} | fields
    )
    return VllmEngine(config, placement, find_model("unused", config))


def test_a_cpu_engine_gets_what_keeps_it_alive_and_can_be_overruled(tiny_tokenizer):
    arguments = engine_for(tiny_tokenizer).arguments()
    assert arguments["enable_chunked_prefill"] is False, "with seeds it kills a CPU engine"
    assert arguments["max_num_batched_tokens"] >= 256
    assert arguments["kv_cache_memory_bytes"] == 2**28
    assert arguments["distributed_executor_backend"] == "uni"
    assert arguments["trust_remote_code"] is False
    assert "gpu_memory_utilization" not in arguments
    overruled = engine_for(tiny_tokenizer, engine_arguments={"enforce_eager": False}).arguments()
    assert overruled["enforce_eager"] is False
    json.dumps(arguments)


def test_a_gpu_engine_is_spread_and_speculates_as_configured(tiny_tokenizer):
    placement = RephrasePlacement(
        gpus_per_engine=4,
        tensor_parallel=2,
        pipeline_parallel=2,
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.85,
    )
    speculative = {"method": "ngram", "num_speculative_tokens": 4}
    arguments = engine_for(tiny_tokenizer, placement, speculative=speculative).arguments()
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 2)
    assert (arguments["max_num_batched_tokens"], arguments["gpu_memory_utilization"]) == (8192, 0.85)
    assert arguments["max_num_seqs"] == 256
    assert arguments["speculative_config"] == speculative
    assert not {"enable_chunked_prefill", "enforce_eager", "kv_cache_memory_bytes"} & arguments.keys(), (
        "vLLM's own choice"
    )


@pytest.mark.parametrize(
    ("gpus", "of_its_part", "of_the_gpu"),
    [(0.5, None, 0.45), (0.25, 0.8, 0.2), (1, None, None), (1, 0.8, 0.8)],
)
def test_engines_that_share_a_gpu_have_room_for_each_other(tiny_tokenizer, gpus, of_its_part, of_the_gpu):
    placement = RephrasePlacement(gpus_per_engine=gpus, gpu_memory_utilization=of_its_part)
    assert engine_for(tiny_tokenizer, placement).arguments().get("gpu_memory_utilization") == of_the_gpu


def test_an_engine_on_a_gpu_spawns_its_processes_which_then_cannot_keep_the_guard_waiting(tiny_tokenizer):
    engine = engine_for(tiny_tokenizer, RephrasePlacement(gpus_per_engine=1))
    assert engine.environment()["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


@pytest.mark.parametrize(("gpus", "most_at_once"), [(0.5, 1), (1, 3), (0, 3)])
def test_engines_that_share_a_gpu_start_one_after_the_other(monkeypatch, tmp_path, gpus, most_at_once):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    placement, starting, seen = RephrasePlacement(gpus_per_engine=gpus), [], []

    async def start(name):
        async with alone_on_its_gpu(placement):
            starting.append(name)
            seen.append(len(starting))
            await asyncio.sleep(0.1)
            starting.remove(name)

    async def start_three_and_give_one_up():
        async with asyncio.TaskGroup() as group:
            group.create_task(start("first"))
            await asyncio.sleep(0)
            given_up = group.create_task(start("given up"))
            group.create_task(start("third"))
            await asyncio.sleep(0.05)
            given_up.cancel()

    asyncio.run(start_three_and_give_one_up())
    asyncio.run(start("later"))
    assert max(seen) == most_at_once
    assert len(seen) == (4 if most_at_once > 1 else 3), "who waits no longer does not start"


def test_a_shared_gpu_is_free_again_when_the_process_that_starts_an_engine_is_killed(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    placement = RephrasePlacement(gpus_per_engine=0.5)
    program = (
        "import asyncio\nfrom synth.config import RephrasePlacement\nfrom synth.engines.vllm import alone_on_its_gpu\n"
        "async def hold():\n async with alone_on_its_gpu(RephrasePlacement(gpus_per_engine=0.5)):\n"
        "  print('held', flush=True)\n  await asyncio.sleep(600)\nasyncio.run(hold())"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=REPOSITORY, env=os.environ | {"TMPDIR": str(tmp_path)}
    )  # fmt: skip

    async def start(seconds):
        async with asyncio.timeout(seconds), alone_on_its_gpu(placement):
            pass

    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError):
            asyncio.run(start(0.5))
    finally:
        holder.kill()
        holder.wait()
    asyncio.run(start(30))


def test_an_engine_across_nodes_has_vllms_ray_workers_and_one_on_a_node_has_its_choice(tiny_tokenizer):
    placement = RephrasePlacement(
        gpus_per_engine=16, cpus_per_engine=32, tensor_parallel=8, pipeline_parallel=2
    )
    assert "distributed_executor_backend" not in engine_for(tiny_tokenizer, placement).arguments()
    across = placement.model_copy(update={"across_nodes": True})
    arguments = engine_for(tiny_tokenizer, across).arguments()
    assert arguments["distributed_executor_backend"] == "ray"
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (8, 2)
    assert (across.devices_per_engine, across.device_bundle) == (16, {"CPU": 2.0, "GPU": 1.0})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"min_engines": 3, "engines": 2}, "min_engines = 3 is more than engines = 2"),
        ({"across_nodes": True, "gpus_per_engine": 1}, "give tensor_parallel or pipeline_parallel above 1"),
        ({"across_nodes": True, "tensor_parallel": 2}, "and gpus_per_engine"),
        (
            {
                "across_nodes": True,
                "tensor_parallel": 2,
                "gpus_per_engine": 2,
                "engines": 2,
                "min_engines": 1,
            },
            "leave min_engines out",
        ),
        ({"tensor_parallel": 4, "gpus_per_engine": 1}, "needs gpus_per_engine = 4, not 1"),
        (
            {"gpus_per_engine": 4},
            "= 1 needs gpus_per_engine = 1, not 4: an engine uses so many GPUs, and is paid for",
        ),
        ({"tensor_parallel": 2, "gpus_per_engine": 0.5}, "needs gpus_per_engine = 2, not 0.5"),
        (
            {"gpus_per_engine": 0.6},
            "0.6 leaves the rest of a GPU unused, where no second engine fits: give 1, or 0.5",
        ),
    ],
)
def test_a_placement_that_does_not_fit_together_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        RephrasePlacement(**fields)


def test_what_fits_together_is_taken():
    for gpus, spread in [(0, 4), (0.5, 1), (1, 1), (4, 4)]:
        assert RephrasePlacement(gpus_per_engine=gpus, tensor_parallel=spread).gpus_per_engine == gpus


def test_the_last_words_are_several_lines_each_once_without_prefixes_and_since_the_last_start(tiny_tokenizer):
    engine = engine_for(tiny_tokenizer)
    assert engine.last_lines == ""
    log = "RuntimeError: of an earlier start\n"
    engine._log_begins = len(log)
    log += "".join(
        f"(Worker pid={pid}) ERROR 01-02 03:04:05 [core.py:1] loading shard {pid}\n\n" for pid in range(7)
    )
    log += "(EngineCore pid=1) ERROR 01-02 03:04:05 [core.py:2] ValueError: shard 6 is short\n" * 3
    log += "RuntimeError: Engine core initialization failed. See root cause above.\n"
    engine._log.write_text(log)
    try:
        assert engine.last_lines == (
            "loading shard 4 | loading shard 5 | loading shard 6 | ValueError: shard 6 is short | "
            "RuntimeError: Engine core initialization failed. See root cause above."
        )
        assert engine._last_words(RuntimeError("x")) == "ValueError: shard 6 is short"
    finally:
        engine._log.unlink()


def test_a_start_that_hangs_leaves_the_event_loop_free_and_what_it_started_is_killed(
    tiny_tokenizer, monkeypatch
):
    """Without vLLM: what blocks is any function in the thread of the start, with a process of its own."""
    started = []

    def hang():
        started.append(subprocess.Popen(["sleep", "600"]))
        os.write(1, b"loading shard 1 of 5\n")
        started[0].wait()
        raise RuntimeError("the engine process is gone")

    engine = engine_for(tiny_tokenizer)
    monkeypatch.setattr(engine, "_load", hang)
    supervisor = Supervisor(engine, 4, 4, start_timeout_seconds=0.5)

    async def everything():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with pytest.raises(
            EngineStartFailed, match=r"start_timeout_seconds = 0.5 s \(it said last: loading shard 1 of 5\)"
        ):
            await supervisor.ready(0)
        ticking.cancel()
        await supervisor.close()
        return ticks

    assert asyncio.run(everything()) >= 5
    assert started[0].wait(10) == -9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "fields", "words"),
    [
        (
            lambda path: (path / "model.safetensors").write_bytes(b"\0" * 100),
            {},
            "vLLM did not start: .*Expecting value",
        ),
        (
            lambda path: None,
            {"engine_arguments": {"no_such_argument": 1}},
            "vLLM did not start: .*no_such_argument",
        ),
        (  # a window that is too long is found before the engine starts, unless it is vLLM's own argument
            lambda path: None,
            {"engine_arguments": {"max_model_len": 100_000}},
            "vLLM did not start: .*100000",
        ),
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


@pytest.mark.slow
def test_a_start_that_takes_too_long_is_given_up_and_leaves_no_process(tiny_model):
    supervisor = Supervisor(
        engine_for(tiny_model), 4, 4, start_timeout_seconds=4
    )  # no start of vLLM is that short
    before = set(psutil.Process().children(recursive=True))

    async def everything():
        try:
            await supervisor.ready(0)
        finally:
            await supervisor.close()

    with pytest.raises(
        EngineStartFailed, match=r"did not start within placement.start_timeout_seconds = 4 s"
    ):
        asyncio.run(everything())
    _, left = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=30)
    assert not [process for process in left if "EngineCore" in process.name()]


PARENT = """
import asyncio, sys, time
from synth.config import EngineConfig, RephrasePlacement
from synth.engines.vllm import VllmEngine, alone_on_its_gpu
from synth.model_source import find_model

async def main():
    config = EngineConfig(model=sys.argv[1], max_model_len=256, dtype="float32")
    engine = VllmEngine(config, RephrasePlacement(kv_cache_gib=0.25), find_model("unused", config))
    await engine.start()
    print("up", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.slow
def test_the_engine_process_goes_with_a_parent_that_is_killed(tiny_model, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tiny_model)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert parent.stdout.readline() == "up\n"
        engines = [p for p in psutil.Process(parent.pid).children(recursive=True) if "EngineCore" in p.name()]
        assert engines
    finally:
        parent.kill()
        parent.communicate()
    time.sleep(0.1)
    _, left = psutil.wait_procs(engines, timeout=10)
    for process in left:
        process.kill()
    assert not left


@pytest.mark.drill
def test_an_engine_process_killed_at_work_costs_a_start_and_changes_no_row(natural, tiny_model):
    """The driver and the worker live on; the same with the driver killed is in test_rephrase_job.py."""

    def made(name, done=lambda part: None):
        config = RephraseConfig.model_validate(
            {
                "root": natural, "name": name, "corpus": "natural", "recipes": ("hq", "continue"),
                "engine": {"model": str(tiny_model), "max_model_len": 1024, "dtype": "float32"},
                "recipe_overrides": {"sampling": {"max_output_tokens": 64, "temperature": 1.0}},
                "placement": {"kv_cache_gib": 0.25, "max_num_seqs": 4},
            }
        )  # fmt: skip
        work = open_work(config)
        work.claim()

        async def everything():
            worker, gate = RephraseWorker(work), asyncio.Semaphore(2)

            async def make(part):
                async with gate:
                    await worker.make_part(part)
                done(part)

            try:
                await asyncio.gather(*map(make, range(work.num_parts)))
            finally:
                await worker.close()

        asyncio.run(everything())
        finish_work(work)
        parts, manifest = open_synthetic(natural, name)
        return {part.name: part.read_bytes() for part in parts}, manifest

    def kill_once(part):
        if not killed:
            killed.extend(p for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name())
            for process in killed:
                process.kill()

    killed = []
    rows, manifest = made("killed", kill_once)
    assert killed
    assert manifest["engine_deaths"] >= 1
    calm, undisturbed = made("undisturbed")
    assert rows == calm
    assert undisturbed["engine_deaths"] == manifest["quarantined"] == 0
