"""Warm lanes on a real Ray: the same numbers as alone, and no fault of one run reaches another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from synth.errors import UserError
from synth.progress import Progress
from tests.assets import faulty_training
from tests.assets.faulty_training import DIES_ALWAYS, DIES_ONCE, IS_PREEMPTED, RAISES
from tests.assets.packed_set import run_on, write_packed_set
from train.lanes.job import Lanes
from train.placement import TrainPlacement
from train.record import read_record, run_directory

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]

EASY = TrainPlacement(lanes=2, checkpoint_every_seconds=0.01, max_restarts=10)
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def packed(root):
    return write_packed_set(root)


@pytest.fixture(scope="module")
def lanes(cluster, root):
    with Lanes(root, EASY, trainer=faulty_training.train_run) as lanes:
        yield lanes


@pytest.fixture(scope="module")
def runs(packed):
    """Six runs that differ in everything a lane could carry from one to the next."""
    mixtures = [{"natural": 1.0}, {"natural": 0.5, "synthetic": 0.5}, {"synthetic": 1.0}]
    return [
        run_on(packed, mixture=mixture, seed=seed, precision=precision)
        for mixture in mixtures
        for seed, precision in ((0, "fp32"), (1, "bf16"))
    ]


@pytest.fixture(scope="module")
def alone(root, runs, tmp_path_factory):
    """What runs leave behind when each is trained in a fresh process of its own: run id -> numbers."""
    elsewhere = tmp_path_factory.mktemp("alone")
    (elsewhere / "packed").symlink_to(Path(root) / "packed")
    for run in (*alone_too(runs), *(run_on_seed(runs[0], seed) for seed in (DIES_ONCE, IS_PREEMPTED))):
        train_alone(elsewhere, run)
    return {path.name: numbers(str(elsewhere), path.name) for path in (elsewhere / "runs").iterdir()}


def alone_too(runs):
    """One run of each precision is enough to compare, as every run takes a process."""
    return runs[0], runs[3]


def train_alone(root, run):
    config = json.dumps(run.model_dump(mode="json"))
    command = [sys.executable, "-m", "tests.assets.train_alone", str(root)]
    subprocess.run(
        command, input=config, text=True, cwd=REPOSITORY, check=True, timeout=800, capture_output=True
    )


def run_on_seed(run, seed):
    return run.model_copy(update={"seed": seed})


def numbers(root, run_id):
    """Everything a run computed, provenance and clocks aside."""
    record = read_record(root, run_id)
    clocks = {
        "wall_seconds",
        "device_seconds",
        "tokens_per_second",
        "provenance",
        "placement",
        "attempts",
        "device",
    }
    lines = (run_directory(root, run_id) / "metrics.jsonl").read_text().splitlines()
    steps = [
        {
            name: value
            for name, value in json.loads(line).items()
            if name not in ("tokens_per_second", "wall_seconds", "memory_bytes")
        }
        for line in lines
    ]
    return record.model_dump(exclude=clocks), steps


def test_runs_in_warm_lanes_are_bit_for_bit_the_runs_of_a_fresh_process(lanes, root, runs, alone):
    progress = Progress("test", sum(run.train_tokens for run in runs), "tokens")
    records = lanes.run_all(runs, progress)
    assert [record.config for record in records] == runs
    assert {record.status for record in records} == {"complete"}
    assert progress.done == progress.total
    for run in alone_too(runs):
        assert numbers(root, run.run_id) == alone[run.run_id]


def test_a_run_that_has_a_record_is_not_trained_again(lanes, root, packed, runs):
    path = run_directory(root, runs[0].run_id) / "record.json"
    before = path.stat().st_mtime_ns
    record = ray.get(lanes.submit(runs[0]))
    assert record == read_record(root, runs[0].run_id)
    assert path.stat().st_mtime_ns == before


def test_a_run_that_raises_is_recorded_with_its_reason_and_the_lane_goes_on(lanes, root, runs):
    bad, good = run_on_seed(runs[0], RAISES), run_on_seed(runs[0], 11)
    failed, complete = ray.get([lanes.submit(bad), lanes.submit(good)])
    assert (failed.status, failed.reason) == ("failed", "ValueError: this run cannot be trained")
    assert failed.train_tokens == bad.train_tokens // 2
    assert failed.final is None
    assert failed == read_record(root, bad.run_id)
    assert complete.status == "complete"


def test_a_run_that_cannot_be_what_it_asks_for_is_the_callers_error_and_leaves_no_record(lanes, root, runs):
    stale = runs[0].model_copy(update={"packed_hash": "0" * 16})
    with pytest.raises(UserError, match="packed_hash"):
        lanes.run_all([stale], Progress("test", 1, "tokens"))
    assert read_record(root, stale.run_id) is None
    assert ray.get(lanes.submit(run_on_seed(runs[0], 12))).status == "complete"


def test_clients_that_take_no_cpu_get_records_while_both_lanes_hold_all_cpus(lanes, runs):
    @ray.remote(num_cpus=0)
    def trial(queue, run):
        return ray.get(queue.submit.remote(run)).final.loss_nats_per_token

    losses = ray.get(
        [trial.remote(lanes.queue, run_on_seed(runs[0], seed)) for seed in (21, 22, 22)], timeout=600
    )
    assert losses[1] == losses[2] != losses[0]


@pytest.mark.parametrize("fate", [DIES_ONCE, IS_PREEMPTED])
def test_a_run_whose_worker_is_killed_resumes_from_its_checkpoint_with_the_same_losses(
    lanes, root, runs, alone, fate
):
    run = run_on_seed(runs[0], fate)
    record = ray.get(lanes.submit(run), timeout=600)
    assert record.status == "complete"
    assert record.attempts == 2
    assert numbers(root, run.run_id) == alone[run.run_id]


def test_a_run_that_kills_its_worker_each_time_is_given_up_and_the_lane_goes_on(lanes, runs):
    killer, good = run_on_seed(runs[0], DIES_ALWAYS), run_on_seed(runs[0], 13)
    assert ray.get(lanes.submit(good), timeout=600).status == "complete"
    record = ray.get(lanes.submit(killer), timeout=600)
    assert record.status == "failed"
    assert "workers died under this run" in record.reason
    assert record.attempts >= 2
    assert ray.get(lanes.submit(run_on_seed(runs[0], 14)), timeout=600).status == "complete"
