"""SIGKILL at random moments, without Ray so that it takes minutes only: the rows in the end are those of an undisturbed run.

The same with Ray, its actors and vLLM is in test_rephrase_job.py.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from upath import UPath

from synth.ledger import missing_parts, open_synthetic, read_entries
from synth.rephrase import open_work
from tests.assets.object_store import object_store

pytestmark = pytest.mark.timeout(1800)

REPOSITORY = Path(__file__).parents[2]
WORKER = """
import asyncio, sys
from synth.engines import retries
from synth.config import RephraseConfig
from synth.ledger import missing_parts
from synth.rephrase import finish_work, open_work
from synth.worker import RephraseWorker

retries.RETRY_SECONDS = (0.01, 0.01, 0.01)
work = open_work(RephraseConfig.model_validate_json(sys.argv[1]))
work.claim()
print("begun", flush=True)

async def everything():
    worker = RephraseWorker(work)
    todo = asyncio.Semaphore(3)
    async def one(part):
        async with todo:
            await worker.make_part(part)
    await asyncio.gather(*map(one, missing_parts(work.directory, work.num_parts)))
    await worker.close()

asyncio.run(everything())
finish_work(work)
"""


class Worker:
    """One process that makes what is missing of a set."""

    def __init__(self, config):
        command = [sys.executable, "-c", WORKER, config.model_dump_json()]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "begun\n", self.process.stderr.read()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def wait(self):
        _, errors = self.process.communicate()
        assert self.process.returncode == 0, errors


def contents_of(config):
    parts, manifest = open_synthetic(config.root, config.name)
    return {part.name: part.read_bytes() for part in parts}, manifest


def killed_and_finished(config, kills, seed, longest_seconds):
    """Start and kill workers at random moments, then let one finish; return the moments' parts: done before -> times."""
    moments, work, done = random.Random(seed), open_work(config), {}
    for _ in range(kills):
        left = len(missing_parts(work.directory, work.num_parts))
        worker = Worker(config)
        while worker.process.poll() is None and len(missing_parts(work.directory, work.num_parts)) == left:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, longest_seconds))
        assert worker.process.poll() is None, "it finished before it could be killed: give it more to do"
        worker.kill()
        finished = set(range(work.num_parts)) - set(missing_parts(work.directory, work.num_parts))
        for entry in finished:
            path = work.directory / "ledger" / f"part-{entry:05d}-of-{work.num_parts:05d}.json"
            done.setdefault(path, path.read_bytes())
    Worker(config).wait()
    return done


@pytest.fixture
def long_config(fake_config, make_corpus):
    """A set of an engine that misbehaves in every way it can without changing what it says."""

    def config(root, name, latency_seconds):
        behaviour = {
            "latency_seconds": latency_seconds, "refusal_fraction": 0.1, "failure_fraction": 0.1, "truncation_fraction": 0.1,
            "dies_every": 150, "poison": "☠",
        }  # fmt: skip
        return fake_config(
            behaviour, root=root, name=name, placement={"max_num_seqs": 4}, max_engine_deaths_per_part=1000
        )

    return config


def texts(count):
    return [
        f"Buoy number {n} marks the channel. It is red and lit at night. {'☠' * (n % 100 == 17)}"
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("documents", "kills"),
    [pytest.param(200, 5, marks=pytest.mark.slow), pytest.param(600, 20, marks=pytest.mark.drill)],
)
def test_kills_at_random_moments_leave_the_same_bytes(long_config, make_corpus, tmp_path, documents, kills):
    root = str(tmp_path / "study")
    make_corpus(root, texts(documents), documents_per_part=5)
    config = long_config(root, "killed", 0.05)
    done = killed_and_finished(config, kills, seed=1, longest_seconds=0.15)
    undisturbed = config.model_copy(update={"name": "undisturbed"})
    Worker(undisturbed).wait()
    rows, manifest = contents_of(config)
    expected, calm = contents_of(undisturbed)
    assert rows == expected
    assert len(done) >= kills
    assert {path: path.read_bytes() for path in done} == done, "a finished part was made again"
    assert manifest["rows"] == calm["rows"] == documents * 2
    assert manifest["rows"] == manifest["kept"] + manifest["rejected"] + manifest["quarantined"]
    poisoned = documents // 100 * 2
    assert manifest["quarantined"] == manifest["reasons"]["killed_engine"] == poisoned


@pytest.mark.drill
def test_a_whole_set_on_an_object_store_survives_kills(long_config, make_corpus):
    with object_store():
        root = "s3://bucket/study"
        make_corpus(root, texts(100), documents_per_part=5)
        config = long_config(root, "killed", 0.02)
        killed_and_finished(config, 4, seed=2, longest_seconds=0.2)
        undisturbed = config.model_copy(update={"name": "undisturbed"})
        Worker(undisturbed).wait()
        rows, manifest = contents_of(config)
        assert rows == contents_of(undisturbed)[0]
        assert (manifest["rows"], manifest["quarantined"]) == (200, 2)
        assert len(list(read_entries(open_work(config).directory, 20))) == 20
        names = [path.name for path in UPath(root).glob("synthetic/killed/*.parquet")]
        assert len(names) == 20, "no half-written object, no temporary name"
