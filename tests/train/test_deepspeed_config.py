"""The engine's configuration: rows are shared exactly, or one sentence says why they cannot be."""

import pytest

from synth.errors import UserError
from train.config import RunConfig, TrainPlacement
from train.deepspeed_config import deepspeed_config, rows_per_microbatch
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
