"""When a run counts as diverged."""

import math

import pytest

from tests.assets.packed_set import run_on, write_packed_set
from train.divergence import PATIENCE_STEPS, LossWatch
from train.placement import TrainPlacement
from train.record import read_record, run_directory
from train.run import OptimizerConfig

LIMIT = math.log(64) + 1


def test_healthy_losses_and_passing_spikes_are_fine():
    watch = LossWatch(64)
    assert watch.see([4.2, 3.0, 60.0, 2.9], 1) is None
    assert watch.see([LIMIT + 1] * (PATIENCE_STEPS - 1), 5) is None
    assert watch.see([LIMIT - 0.1], 54) is None
    assert LossWatch(64).see([LIMIT + 1] * (PATIENCE_STEPS - 1), 1) is None


def test_a_loss_that_is_no_number_ends_the_run_at_its_step():
    assert LossWatch(64).see([3.0, math.nan, 3.0], 17) == "the training loss of step 18 is nan"
    assert LossWatch(64).see([math.inf], 3) == "the training loss of step 3 is inf"


@pytest.mark.slow
def test_a_last_step_that_ruins_the_weights_is_seen_on_held_out_text(tmp_path):
    """The training loss of a step is that of the weights before it, so no such loss tells."""
    from train.loop import train_run

    packed = write_packed_set(tmp_path)
    optimizer = OptimizerConfig(peak_learning_rate=1e15, warmup_fraction=0.0)
    run = run_on(packed, train_tokens=8 * packed.sequence_length, optimizer=optimizer, evaluations=1)
    record = train_run(run, packed, TrainPlacement(), run_directory(str(tmp_path), run.run_id))
    assert (record.status, record.reason) == ("diverged", "the held-out loss after step 1 is nan")
    assert (record.final, record.evaluations) == (None, ())
    assert record == read_record(str(tmp_path), run.run_id)


def test_a_loss_worse_than_knowing_nothing_ends_the_run_after_a_stated_number_of_steps():
    watch = LossWatch(64)
    assert watch.see([LIMIT + 0.01] * 30, 1) is None
    resumed = LossWatch(64, watch.state)
    reason = resumed.see([LIMIT + 0.01] * 30, 31)
    assert reason == (
        "the training loss was above 5.16 nats per token (ln of the vocabulary + 1) for 50 steps in a row, up to step 50"
    )


def test_a_run_that_loses_what_it_had_learnt_ends_although_it_is_no_worse_than_guessing():
    watch = LossWatch(64)
    assert watch.see([3.5] * 50 + [2.5] * 50 + [2.0] * 25, 1) is None
    resumed = LossWatch(64, watch.state)
    assert resumed.see([3.9] * 24, 126) is None  # the block's mean is not known yet
    assert resumed.see([3.9], 150) is None  # 2.95: less than a nat above 2.5
    reason = resumed.see([3.9] * 50, 151)
    assert reason == (
        "the training loss was 3.90 nats per token over the 50 steps up to step 200, after 2.50 before: the run lost what "
        "it had learnt"
    )


def test_a_run_that_stands_still_is_not_diverged():
    assert LossWatch(64).see([math.log(64)] * 1000, 1) is None


def test_a_spike_a_run_comes_back_from_is_not_the_end():
    losses = [2.5] * 50 + [20.0] * 2 + [2.6] * 48 + [2.4] * 50
    assert LossWatch(64).see(losses, 1) is None
