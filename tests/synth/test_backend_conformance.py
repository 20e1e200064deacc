"""What every backend of `rephrase_corpus` must do, asked of the whole job on a real Ray.

One set, taken up again after it has lost parts: rows, accounts, exactly once. What an engine must do request by request
is in test_engine_conformance.py; Ray Data LLM has no such seam, so this is where it is held to the same rules.
"""

import json

import pyarrow.compute as pc
import pytest

from synth.config import RephraseConfig
from synth.ledger import missing_parts, open_synthetic
from synth.rephrase import open_work
from synth.rows import REPHRASED_SCHEMA
from synth.storage import read_parquet
from tests.assets.completions_server import CompletionsServer
from tests.assets.rephrase_job import RephraseJob

pytestmark = pytest.mark.timeout(900)

WINDOW = 1024
OF_THE_ENGINE = ["finish_reason", "stop_reason", "engine_version", "keep", "verdict", "reject_reasons"]
"""Columns in which two engines may differ that serve the same model under the same seeds."""


@pytest.fixture
def run(tmp_path):
    """Run a job of a configuration to its end and return the parts' bytes and the manifest."""
    jobs = []

    def run(config):
        jobs.append(RephraseJob(config, tmp_path / f"job{len(jobs)}.log"))
        assert jobs[-1].wait() == 0, jobs[-1].said()[-6000:]
        parts, manifest = open_synthetic(config.root, config.name)
        return {part.name: part.read_bytes() for part in parts}, manifest

    yield run
    for job in jobs:
        job.end()


@pytest.fixture(params=[
    pytest.param("ray_data_llm", marks=pytest.mark.slow),
    pytest.param("vllm", marks=pytest.mark.drill),
    pytest.param("http", marks=pytest.mark.drill),
    pytest.param("fake", marks=pytest.mark.drill),
])  # fmt: skip
def config(request, natural):
    """A set of 6 parts of one backend."""
    kind, engine = request.param, {"max_model_len": WINDOW, "dtype": "float32"}
    server = None
    if kind == "fake":
        engine |= {"model": "fake"}
    elif kind == "http":
        directory = request.getfixturevalue("tiny_tokenizer")
        server = CompletionsServer(directory, latency_seconds=0.0, window=WINDOW).start()
        engine |= {"model": str(directory), "endpoint": server.endpoint}
    else:
        engine |= {"model": str(request.getfixturevalue("tiny_model"))}
    yield RephraseConfig.model_validate(
        {
            "root": natural, "corpus": "natural", "recipes": ("hq", "continue"), "engine": {"kind": kind} | engine,
            "recipe_overrides": {"sampling": {"max_output_tokens": 48, "temperature": 1.0}},
            "placement": {"kv_cache_gib": 0.25, "max_num_seqs": 16, "cpus_per_engine": 1},
        }
    )  # fmt: skip
    if server:
        server.kill()


def test_a_set_that_lost_parts_is_made_whole_with_the_same_bytes_and_nothing_else_touched(run, config):
    first, manifest = run(config)
    # The fake's tokens are characters, of which `continue` reads 256 at a time.
    chunks = 3 if config.engine.kind == "fake" else 2
    assert manifest["rows"] == 24 * chunks
    assert manifest["rows"] == manifest["kept"] + manifest["rejected"] + manifest["quarantined"]
    work = open_work(config)
    lost, names = (1, 4), sorted(first)
    tables = [read_parquet(work.directory / name) for name in names]
    assert all(table.schema.equals(REPHRASED_SCHEMA) for table in tables)
    seeds = {seed for table in tables for seed in table["seed"].to_pylist()}
    texts = {text for table in tables for text in table["text"].to_pylist() if text}
    assert len(seeds) == 24 * chunks, "every (document, chunk, recipe, sample) once"
    assert len(texts) > 24, "seeds differ, so do the answers"
    assert (
        sum(pc.sum(table["completion_tokens"]).as_py() for table in tables) == manifest["completion_tokens"]
    )
    for part in lost:
        (work.directory / names[part]).unlink()
        (work.directory / "ledger" / names[part].replace(".parquet", ".json")).unlink()
    (work.directory / "manifest.json").unlink()
    assert missing_parts(work.directory, work.num_parts) == list(lost)
    kept = {
        name: (work.directory / name).stat().st_mtime_ns for at, name in enumerate(names) if at not in lost
    }
    again, after = run(config)
    assert again == first, "other batches, another engine start: same seeds, same text"
    assert {name: (work.directory / name).stat().st_mtime_ns for name in kept} == kept
    assert [after[name] for name in ("rows", "kept", "completion_tokens")] == [manifest[name] for name in ("rows", "kept", "completion_tokens")]  # fmt: skip
    json.dumps(after, allow_nan=False)


@pytest.mark.drill
def test_rows_that_kill_an_engine_of_ray_data_llm_end_the_job_in_one_sentence(natural, tiny_model, tmp_path):
    """Seeds and chunked prefill together kill vLLM's CPU engine, every time (0.29)."""
    deadly = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64}
    config = RephraseConfig.model_validate(
        {
            "root": natural, "corpus": "natural", "recipes": ("hq",),
            "engine": {"kind": "ray_data_llm", "model": str(tiny_model), "max_model_len": WINDOW, "engine_arguments": deadly},
            "recipe_overrides": {"sampling": {"max_output_tokens": 48, "temperature": 1.0}},
            "placement": {"kv_cache_gib": 0.25, "max_num_seqs": 16},
        }
    )  # fmt: skip
    job = RephraseJob(config, tmp_path / "job.log")
    try:
        assert job.wait() == 2, job.said()[-6000:]
    finally:
        job.end()
    lines = [line for line in job.said().splitlines() if line.startswith("rephrase_corpus: ")]
    assert len(lines) == 1
    assert "engine.kind = 'ray_data_llm' did not get through" in lines[0]


@pytest.mark.drill
def test_ray_data_llm_and_our_worker_draw_the_same_text_from_the_same_model(run, natural, tiny_model):
    def made(kind):
        config = RephraseConfig.model_validate(
            {
                "root": natural, "name": kind, "corpus": "natural", "recipes": ("hq", "continue"),
                "engine": {"kind": kind, "model": str(tiny_model), "max_model_len": WINDOW, "dtype": "float32"},
                "recipe_overrides": {"sampling": {"max_output_tokens": 48, "temperature": 1.0}},
                "placement": {"kv_cache_gib": 0.25, "max_num_seqs": 16},
            }
        )  # fmt: skip
        run(config)
        parts, _ = open_synthetic(config.root, config.name)
        return [read_parquet(part).drop_columns(OF_THE_ENGINE).to_pylist() for part in parts]

    assert made("ray_data_llm") == made("vllm")
