"""The schedule: exact values at its corners, and no step wasted at a rate of zero."""

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.errors import UserError
from train.run import OptimizerConfig, RunConfig
from train.schedule import check_schedule, learning_rate, peak_learning_rate, rate_factor, trunk_steps
from train.sizes import SIZES

WSD = OptimizerConfig(schedule="wsd", warmup_fraction=0.1, decay_fraction=0.2)
COSINE = OptimizerConfig(schedule="cosine", warmup_fraction=0.1)


@pytest.mark.parametrize(
    ("tokens", "factor"), [(0, 0.0), (50, 0.5), (100, 1.0), (799, 1.0), (800, 1.0), (900, 0.5), (1000, 0.0)]
)
def test_wsd_corners(tokens, factor):
    assert rate_factor(WSD, tokens, 1000) == pytest.approx(factor)


@pytest.mark.parametrize(("tokens", "factor"), [(0, 0.0), (100, 1.0), (550, 0.55), (1000, 0.1)])
def test_cosine_corners(tokens, factor):
    assert rate_factor(COSINE, tokens, 1000) == pytest.approx(factor)


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_without_warmup_or_decay_a_run_starts_at_the_peak(schedule):
    optimizer = OptimizerConfig(schedule=schedule, warmup_fraction=0.0, decay_fraction=0.0)
    assert rate_factor(optimizer, 0, 1000) == 1.0
    assert rate_factor(optimizer, 1000, 1000) == (1.0 if schedule == "wsd" else pytest.approx(0.1))


@given(
    schedule=st.sampled_from(["wsd", "cosine"]),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    num_steps=st.integers(1, 400),
)
def test_every_step_of_every_run_has_a_positive_rate_up_to_the_peak(schedule, warmup, decay, num_steps):
    run = RunConfig(
        packed="p",
        packed_hash="0",
        model=SIZES["12k"],
        mixture={"natural": 1.0},
        train_tokens=num_steps * 16,
        rows_per_step=2,
        sequence_length=8,
        optimizer=OptimizerConfig(schedule=schedule, warmup_fraction=warmup, decay_fraction=decay),
    )
    rates = [learning_rate(run, 3e-3, step) for step in range(num_steps)]
    assert all(0 < rate <= 3e-3 * (1 + 1e-12) for rate in rates)


def test_peak_rate_follows_the_rule_of_scale():
    optimizer = OptimizerConfig(
        peak_learning_rate=4e-3, reference_num_params=10_000, learning_rate_exponent=-0.5
    )
    assert peak_learning_rate(optimizer, 10_000) == pytest.approx(4e-3)
    assert peak_learning_rate(optimizer, 40_000) == pytest.approx(2e-3)


def test_peak_rate_without_a_reference_is_the_configured_one():
    assert peak_learning_rate(OptimizerConfig(peak_learning_rate=4e-3), 40_000) == 4e-3


def run_with(num_steps=100, **optimizer):
    return RunConfig(
        packed="p",
        packed_hash="0",
        model=SIZES["12k"],
        mixture={"natural": 1.0},
        train_tokens=num_steps * 16,
        rows_per_step=2,
        sequence_length=8,
        optimizer=OptimizerConfig(**optimizer),
    )


def test_warmup_and_decay_longer_than_the_run_are_refused():
    with pytest.raises(
        UserError, match=r"optimizer\.warmup_fraction = 0\.6 and optimizer\.decay_fraction = 0\.5"
    ):
        check_schedule(run_with(warmup_fraction=0.6, decay_fraction=0.5))
    check_schedule(run_with(warmup_fraction=0.8, decay_fraction=0.2))
    check_schedule(run_with(schedule="cosine", warmup_fraction=0.9, decay_fraction=0.9))


def test_a_warmup_in_tokens_is_the_same_for_every_budget_and_must_fit():
    short, long = (run_with(steps, warmup_tokens=80, decay_fraction=0.2) for steps in (10, 1000))
    assert [learning_rate(short, 1.0, step) for step in range(6)] == [
        learning_rate(long, 1.0, step) for step in range(6)
    ]
    with pytest.raises(
        UserError, match=r"warmup_tokens = 80 and optimizer\.decay_fraction = 0\.6 .* 160 tokens"
    ):
        check_schedule(run_with(10, warmup_tokens=80, decay_fraction=0.6))


@given(decay=st.floats(0, 1), num_steps=st.integers(1, 3000))
def test_before_a_branch_leaves_its_trunk_the_rate_does_not_depend_on_the_budget(decay, num_steps):
    run = run_with(num_steps, warmup_tokens=40, decay_fraction=decay)
    endless = run_with(10**6, warmup_tokens=40, decay_fraction=0.0)
    steps = trunk_steps(run)
    assert 0 <= steps < num_steps
    assert num_steps * (1 - decay) - steps < 2
    for step in {0, 1, steps // 2, steps - 1} & set(range(steps)):
        assert learning_rate(run, 3e-3, step) == learning_rate(endless, 3e-3, step)


@pytest.mark.parametrize("beta", ["beta1", "beta2"])
def test_a_mean_that_never_moves_is_refused_before_a_run_fails_by_it(beta):
    assert getattr(OptimizerConfig(**{beta: 0.0}), beta) == 0.0
    with pytest.raises(pydantic.ValidationError, match="less than 1"):
        OptimizerConfig(**{beta: 1.0})
