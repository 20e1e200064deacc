"""How many workers a group that may change in size takes of what the cluster has."""

import pytest
import ray.train

from train.lanes.job import _GroupSizes
from train.placement import TrainPlacement


@pytest.mark.parametrize(
    ("workers_per_lane", "cpus_by_node", "size"),
    [
        ((2, 8), (16, 16), 8),
        ((2, 8), (3, 4), 4),
        ((2, 8), (3,), 2),
        ((2, 8), (1,), 0),
        ((3, 8), (3,), 0),
        ((1, 6), (2, 3), 3),
    ],
)
def test_a_group_takes_the_largest_size_that_shares_a_step_evenly(workers_per_lane, cpus_by_node, size):
    placement = TrainPlacement(workers_per_lane=workers_per_lane)
    scaling = ray.train.ScalingConfig(num_workers=workers_per_lane, resources_per_worker={"CPU": 1})
    nodes = {f"node {number}": {"CPU": float(cpus)} for number, cpus in enumerate(cpus_by_node)}
    assert _GroupSizes(scaling, placement)._count_possible_workers(nodes) == size
