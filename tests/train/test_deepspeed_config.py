"""The engine's configuration: rows are shared exactly, or one sentence says why they cannot be."""

import pytest

from synth.errors import UserError
from train.deepspeed_config import deepspeed_config, rows_per_microbatch
from train.placement import TrainPlacement
from train.run import RunConfig
from train.sizes import SIZES


def run_of(rows_per_step, precision="fp32"):
    return RunConfig(
        packed="p",
        packed_hash="0",
        model=SIZES["12k"],
        mixture={"natural": 1.0},
        train_tokens=10_000,
        rows_per_step=rows_per_step,
        sequence_length=8,
        precision=precision,
    )


@pytest.mark.parametrize(
    ("rows_per_step", "asked", "workers", "microbatch", "accumulation"),
    [(8, 8, 1, 8, 1), (8, 2, 1, 2, 4), (8, 8, 2, 4, 1), (12, 3, 2, 3, 2), (4, 64, 4, 1, 1)],
)
def test_rows_of_a_step_are_microbatches_of_workers(rows_per_step, asked, workers, microbatch, accumulation):
    config = deepspeed_config(run_of(rows_per_step), TrainPlacement(rows_per_microbatch=asked), workers, 1000)
    assert config["train_batch_size"] == rows_per_step
    assert config["train_micro_batch_size_per_gpu"] == microbatch
    assert config["gradient_accumulation_steps"] == accumulation


def test_workers_that_do_not_divide_a_step_are_refused():
    with pytest.raises(UserError, match="rows_per_step = 8 cannot be shared evenly by workers_per_lane = 3"):
        rows_per_microbatch(run_of(8), TrainPlacement(), 3)


def test_groups_change_in_size_only_so_that_every_size_can_share_a_step():
    assert TrainPlacement(workers_per_lane=(2, 12)).group_sizes == (2, 3, 4, 6, 12)
    assert TrainPlacement(workers_per_lane=(3, 8)).group_sizes == (4, 8)
    assert TrainPlacement(workers_per_lane=3).group_sizes == (3,)
    with pytest.raises(
        UserError, match=r"by 3 workers \(workers_per_lane = \[1, 3\]\): make it a multiple of the most"
    ):
        rows_per_microbatch(run_of(8), TrainPlacement(workers_per_lane=(1, 3)), 3)


@pytest.mark.parametrize("workers", [0, (2, 2), (3, 1), (0, 2), (1, 2, 3), "many", 1.5, ()])
def test_a_number_of_workers_is_one_or_a_least_and_a_most(workers):
    with pytest.raises(ValueError, match=r"give a number of workers from 1, or \[least, most\]"):
        TrainPlacement(workers_per_lane=workers)


@pytest.mark.parametrize(("given", "least", "most"), [(2, 2, 2), ([1, 4], 1, 4), ([3], 3, 3), ("2", 2, 2)])
def test_numbers_of_workers_are_taken_from_files_and_flags(given, least, most):
    placement = TrainPlacement(workers_per_lane=given)
    assert (placement.min_workers, placement.max_workers) == (least, most)
    assert placement.elastic == (least < most)
    assert TrainPlacement.model_validate(placement.model_dump(mode="json")) == placement


def test_a_microbatch_that_does_not_divide_a_share_is_refused():
    with pytest.raises(
        UserError, match=r"rows_per_microbatch = 3 does not divide the 8 rows .* choose a divisor of 8"
    ):
        rows_per_microbatch(run_of(16), TrainPlacement(rows_per_microbatch=3), 2)


def test_gradients_are_never_added_up_in_bfloat16():
    with pytest.raises(UserError, match=r"zero_stage = 0 .* 4 microbatches in bfloat16"):
        deepspeed_config(run_of(8, "bf16"), TrainPlacement(zero_stage=0, rows_per_microbatch=2), 1, 1000)
    for stage in (1, 2, 3):
        placement = TrainPlacement(zero_stage=stage, rows_per_microbatch=2)
        config = deepspeed_config(run_of(8, "bf16"), placement, 1, 1000)
        assert config["data_types"] == {"grad_accum_dtype": "fp32"}


def test_buffers_are_not_larger_than_the_model():
    config = deepspeed_config(run_of(8), TrainPlacement(zero_stage=2), 1, 1000)
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
