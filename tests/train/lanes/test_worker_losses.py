"""A lane that keeps losing its worker: the bound is on losses in a row, not on those of its whole life."""

import pytest
import ray

from synth.progress import Progress
from tests.assets import faulty_training
from tests.assets.faulty_training import DIES_ONCE
from tests.assets.packed_set import run_on, write_packed_set
from train.lanes.job import Lanes
from train.placement import TrainPlacement

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]


def test_more_losses_than_the_bound_are_outlived_when_runs_end_in_between(tmp_path):
    packed = write_packed_set(tmp_path)
    shares = (0.25, 0.5, 0.75)
    runs = [
        run_on(packed, mixture={"natural": 1 - share, "synthetic": share}, seed=DIES_ONCE) for share in shares
    ]
    placement = TrainPlacement(checkpoint_every_seconds=0.01, max_restarts=1)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with Lanes(str(tmp_path), placement, trainer=faulty_training.train_run) as lanes:
            records = lanes.run_all(runs, Progress("test", sum(run.train_tokens for run in runs), "tokens"))
    finally:
        ray.shutdown()
    assert [(record.status, record.attempts) for record in records] == [("complete", 2)] * 3
