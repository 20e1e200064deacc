"""`rephrase_corpus` on a real Ray: kills of the driver and of actors, failures told in one sentence, and real vLLM."""

import asyncio
import os
import random
import re
import threading
import time

import psutil
import pytest

from synth.config import RephraseConfig
from synth.job import RephrasePart
from synth.ledger import missing_parts, open_synthetic, read_entries
from synth.rephrase import open_work
from tests.assets.processes import RAYS_AGENTS
from tests.assets.rephrase_job import RephraseJob
from tests.synth.conftest import text_of

pytestmark = pytest.mark.timeout(1800)

KILLS = int(os.environ.get("SYNTHSCALE_TEST_KILLS", "4"))


@pytest.fixture
def start(tmp_path):
    jobs = []

    def start(config):
        jobs.append(RephraseJob(config, tmp_path / f"job{len(jobs)}.log"))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def finished(job):
    assert job.wait() == 0, job.said()[-6000:]


def parts_of(config):
    parts, _ = open_synthetic(config.root, config.name)
    return {part.name: part.read_bytes() for part in parts}


LONGEST_SECONDS, PARTS_A_KILL = 0.8, 4
"""A part of four documents takes 0.6 s of SLOW_FAKE (8 answers of 0.3 s, four at a time): within the longest wait after the
first new one come two more at most."""

SLOW_FAKE = {"latency_seconds": 0.3, "refusal_fraction": 0.1, "failure_fraction": 0.05}


@pytest.mark.drill
def test_a_driver_killed_at_random_moments_leaves_the_same_bytes_in_the_end(
    start, fake_config, make_corpus, tmp_path
):
    """A kill costs two parts at most, and so it is KILLS kills whatever KILLS is."""
    root = str(tmp_path / "long")
    make_corpus(root, [text_of(number) for number in range(4 * (2 + PARTS_A_KILL * KILLS))])
    undisturbed = fake_config(SLOW_FAKE, root=root, name="undisturbed")
    finished(start(undisturbed))
    config = fake_config(
        SLOW_FAKE, root=root, name="killed", placement={"max_num_seqs": 2, "parts_in_flight": 2}
    )
    work, moments, done_before = open_work(config), random.Random(0), {}
    for _ in range(KILLS):
        job = start(config)
        left = len(missing_parts(work.directory, work.num_parts))
        while job.process.poll() is None and len(missing_parts(work.directory, work.num_parts)) == left:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, LONGEST_SECONDS))
        assert job.process.poll() is None, "it finished before it could be killed: give it more to do"
        job.kill()
        for path in work.directory.glob("ledger/*.json"):
            done_before.setdefault(path, path.stat().st_mtime_ns)
    finished(start(config))
    assert parts_of(config) == parts_of(undisturbed)
    assert done_before
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before, (
        "finished parts were made again"
    )


def actors(job):
    return [
        p
        for p in psutil.Process(job.process.pid).children(recursive=True)
        if "MapWorker" in "".join(p.cmdline())
    ]


@pytest.mark.slow
def test_a_killed_actor_is_replaced_and_its_parts_are_made_again(start, fake_config):
    undisturbed = fake_config(SLOW_FAKE, name="undisturbed")
    finished(start(undisturbed))
    config = fake_config(SLOW_FAKE, name="killed", placement={"max_num_seqs": 2, "parts_in_flight": 2})
    work = open_work(config)
    job = start(config)
    while len(missing_parts(work.directory, work.num_parts)) == work.num_parts:
        assert job.process.poll() is None, job.said()[-4000:]
        time.sleep(0.02)
    victims = actors(job)
    assert len(victims) == 1, job.said()[-4000:]
    victims[0].kill()
    finished(job)
    assert parts_of(config) == parts_of(undisturbed)


@pytest.mark.slow
def test_poison_and_death_in_an_actor_leave_an_accounted_set(start, fake_config, make_corpus, tmp_path):
    root = str(tmp_path / "poisoned")
    texts = [
        f"Buoy number {n} marks the channel. It is red and lit. {'☠' if n % 33 == 5 else ''}"
        for n in range(100)
    ]
    make_corpus(root, texts, documents_per_part=20)
    config = fake_config({"poison": "☠", "dies_every": 50}, root=root, recipes=("hq",))
    finished(start(config))
    _, manifest = open_synthetic(root, config.name)
    assert (manifest["rows"], manifest["quarantined"]) == (100, 3)
    assert manifest["rows"] == manifest["kept"] + manifest["rejected"] + manifest["quarantined"]


@pytest.mark.drill
def test_several_engines_side_by_side_make_the_same_bytes(start, fake_config):
    one, three = (
        fake_config(name="one"),
        fake_config(name="three", placement={"engines": 3, "min_engines": 1, "cpus_per_engine": 0.25}),
    )
    finished(start(one))
    finished(start(three))
    assert parts_of(one) == parts_of(three)


@pytest.mark.slow
def test_every_engine_has_work_when_one_could_take_all_parts(start, fake_config):
    config = fake_config(
        {"start_seconds": 1.0, "latency_seconds": 0.2},
        placement={"engines": 2, "cpus_per_engine": 0.25, "parts_in_flight": 100},
    )
    finished(start(config))
    work = open_work(config)
    starts = [entry.engine_start_seconds for entry in read_entries(work.directory, work.num_parts)]
    assert sum(seconds > 0 for seconds in starts) == 2 < len(starts)


@pytest.mark.slow
def test_a_pool_grows_from_min_engines_to_engines_as_parts_wait(start, fake_config):
    config = fake_config(
        {"start_seconds": 0.5, "latency_seconds": 1.5},
        placement={
            "engines": 2, "min_engines": 1, "cpus_per_engine": 0.25, "parts_in_flight": 1, "max_num_seqs": 2
        },
    )  # fmt: skip
    finished(start(config))
    work = open_work(config)
    starts = [entry.engine_start_seconds for entry in read_entries(work.directory, work.num_parts)]
    assert sum(seconds > 0 for seconds in starts) == 2


@pytest.mark.drill
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"engine": {"kind": "fake", "model": "fake", "engine_arguments": {"start_failure": "no weights"}}},
         "rephrase_corpus: the fake engine did not start: no weights"),
        ({"engine": {"kind": "fake", "model": "fake", "engine_arguments": {"start_seconds": 600, "last_words": "loading"}},
          "placement": {"start_timeout_seconds": 1}},
         "rephrase_corpus: the engine did not start within placement.start_timeout_seconds = 1 s (it said last: loading)"),
        ({"engine": {"kind": "fake", "model": "fake", "engine_arguments": {"outage_after": 10, "outage_seconds": 600}},
          "placement": {"outage_seconds": 1, "max_num_seqs": 2}},
         "rephrase_corpus: the engine has answered nobody for placement.outage_seconds = 1 s (HTTP 502"),
        ({"engine": {"kind": "fake", "model": "fake", "engine_arguments": {"latency": 1}}},
         "rephrase_corpus: engine.engine_arguments.latency does not suit the fake engine"),
        ({"engine": {"kind": "fake", "model": "fake", "max_model_len": 256}},
         "rephrase_corpus: engine.max_model_len = 256 leaves"),
    ],
)  # fmt: skip
def test_a_failure_in_an_actor_is_one_sentence_and_exit_code_two(start, fake_config, change, sentence):
    job = start(fake_config(**change))
    assert job.wait() == 2, job.said()[-4000:]
    lines = [line for line in job.said().splitlines() if line.startswith("rephrase_corpus: ")]
    assert len(lines) == 1
    assert lines[0].startswith(sentence)


class Attempts:
    """The actor that counts attempts, without Ray."""

    class begin:
        @staticmethod
        async def remote(part):
            return 1


def test_an_actor_that_is_let_go_ends_its_engine(fake_config):
    """As Ray Data does it: the object is called on a loop in a thread, and dropped outside of it."""
    work, loop = open_work(fake_config()), asyncio.new_event_loop()
    work.claim()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    actor = RephrasePart(work, Attempts)
    engine = actor._worker._engine
    made = asyncio.run_coroutine_threadsafe(actor({"part": [0]}), loop).result()
    assert made["failure"] == [""]
    assert engine.is_running
    del actor
    assert not engine.is_running
    loop.call_soon_threadsafe(loop.stop)


# --- real vLLM ----------------------------------------------------------------------------------------------------


@pytest.fixture
def vllm_config(natural, tiny_model):
    """In float32, where a seed gives the same text in any batch."""

    def config(**fields):
        values = {
            "root": natural,
            "corpus": "natural",
            "recipes": ("hq", "continue"),
            "engine": {"model": str(tiny_model), "max_model_len": 1024, "dtype": "float32"},
            "recipe_overrides": {"sampling": {"max_output_tokens": 48, "temperature": 1.0}},
            "placement": {"kv_cache_gib": 0.25, "max_num_seqs": 8, "parts_in_flight": 2},
        }
        return RephraseConfig.model_validate(values | fields)

    return config


@pytest.mark.drill
def test_real_vllm_killed_with_its_driver_in_the_middle_ends_in_the_same_bytes(start, vllm_config):
    undisturbed = vllm_config(
        name="undisturbed", placement={"kv_cache_gib": 0.25, "max_num_seqs": 64, "parts_in_flight": 6}
    )
    calm = start(undisturbed)
    finished(calm)
    assert not re.search("EngineDead|unexpectedly", calm.said()), (
        "an engine that is not needed any more ends in silence"
    )
    config = vllm_config(name="killed")
    work = open_work(config)
    job = start(config)
    while len(missing_parts(work.directory, work.num_parts)) > work.num_parts - 2:
        assert job.process.poll() is None, job.said()[-4000:]
        time.sleep(0.01)
    job.kill()
    assert len(missing_parts(work.directory, work.num_parts)) > 0, "it was killed after the work was done"
    job, below = start(config), set()
    while job.process.poll() is None:
        below |= set(psutil.Process(job.process.pid).children(recursive=True))
        time.sleep(0.2)
    finished(job)
    assert below
    _, left = psutil.wait_procs(below, timeout=60)
    left = [each.name() for each in left if not each.name().startswith(RAYS_AGENTS)]
    assert not left, "nothing is left behind, an engine's process least of all"
    assert parts_of(config) == parts_of(undisturbed), "other batches, other starts: same seeds, same text"
    entries = list(read_entries(work.directory, work.num_parts))
    assert {entry.prompt_format for entry in entries} == {"plain"}
    assert sum(entry.total.completion_tokens for entry in entries) > 24 * 2 * 10


@pytest.mark.drill
def test_a_model_that_does_not_load_is_one_sentence_of_vllms_own(start, vllm_config, tiny_model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\0" * 64)
    job = start(vllm_config(engine={"model": str(broken), "max_model_len": 512}))
    assert job.wait() == 2, job.said()[-4000:]
    (line,) = [line for line in job.said().splitlines() if line.startswith("rephrase_corpus: ")]
    words = line.partition(f"engine.model = {str(broken)!r}: vLLM did not start: ")[2]
    assert "rror" in words
    assert "whole log: " in words
