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
from synth.engines.vllm import VllmEngine
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
    ("fields", "sentence"),
    [
        ({"min_engines": 3, "engines": 2}, "min_engines = 3 is more than engines = 2"),
        ({"tensor_parallel": 4, "gpus_per_engine": 1}, "needs gpus_per_engine = 4, not 1"),
    ],
)
def test_a_placement_that_does_not_fit_together_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        RephrasePlacement(**fields)


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


PARENT = """
import asyncio, sys, time
from synth.config import EngineConfig, RephrasePlacement
from synth.engines.vllm import VllmEngine
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
