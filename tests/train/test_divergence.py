"""When a run counts as diverged."""

import math

from train.divergence import PATIENCE_STEPS, LossWatch

LIMIT = math.log(64) + 1


def test_healthy_losses_and_passing_spikes_are_fine():
    watch = LossWatch(64)
    assert watch.see([4.2, 3.0, 60.0, 2.9], 1) is None
    assert watch.see([LIMIT + 1] * (PATIENCE_STEPS - 1), 5) is None
    assert watch.see([LIMIT - 0.1], 54) is None
    assert watch.see([LIMIT + 1] * (PATIENCE_STEPS - 1), 55) is None


def test_a_loss_that_is_no_number_ends_the_run_at_its_step():
    assert LossWatch(64).see([3.0, math.nan, 3.0], 17) == "the training loss of step 18 is nan"
    assert LossWatch(64).see([math.inf], 3) == "the training loss of step 3 is inf"


def test_a_loss_worse_than_knowing_nothing_ends_the_run_after_a_stated_number_of_steps():
    watch = LossWatch(64)
    assert watch.see([LIMIT + 0.01] * 30, 1) is None
    resumed = LossWatch(64, watch.steps_above_limit)
    reason = resumed.see([LIMIT + 0.01] * 30, 31)
    assert reason == (
        "the training loss was above 5.16 nats per token (ln of the vocabulary + 1) for 50 steps in a row, up to step 50"
    )
