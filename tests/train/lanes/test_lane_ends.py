"""How lanes end, on a Ray with room for one: lost with what is waiting for them, or closed."""

import time

import pytest
import ray

from synth.progress import Progress
from tests.assets import faulty_training
from tests.assets.faulty_training import LOSES_DISK
from tests.assets.packed_set import run_on, write_packed_set
from train.lanes.job import Lanes
from train.lanes.queue import LanesLost
from train.placement import TrainPlacement
from train.record import read_record

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

SOON = 300.0


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def packed(tmp_path):
    return write_packed_set(tmp_path)


def wait_for_the_cpu():
    deadline = time.monotonic() + SOON
    while ray.available_resources().get("CPU", 0) < 1:
        assert time.monotonic() < deadline, "the CPU of a lane that has ended is not free"
        time.sleep(0.1)


def test_everyone_who_waits_hears_that_no_lane_is_left_and_why(cluster, tmp_path, packed):
    root, placement = str(tmp_path), TrainPlacement(max_restarts=0)
    with Lanes(root, placement, trainer=faulty_training.train_run) as lanes:
        waiting = [lanes.submit(run_on(packed, seed=seed)) for seed in (LOSES_DISK, 31, 32)]
        for reference in waiting:
            with pytest.raises(LanesLost, match="no space left on device"):
                ray.get(reference, timeout=SOON)
        with pytest.raises(LanesLost, match="no space left"):
            lanes.run_all([run_on(packed, seed=33)], Progress("test", 1, "tokens"))
    assert read_record(root, run_on(packed, seed=LOSES_DISK).run_id) is None
    wait_for_the_cpu()


def test_closing_ends_idle_lanes_and_gives_their_cpus_back(cluster, tmp_path, packed, monkeypatch):
    monkeypatch.setattr(
        "train.lanes.job.CLOSE_SECONDS", SOON
    )  # a loaded machine takes longer than a user would wait
    with Lanes(str(tmp_path), TrainPlacement()) as lanes:
        ray.get(lanes.submit(run_on(packed, seed=41)), timeout=SOON)
    assert not any(thread.is_alive() for thread in lanes._threads)
    wait_for_the_cpu()
