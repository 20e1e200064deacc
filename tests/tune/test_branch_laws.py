"""The law fitted to branches of one trunk against the law fitted to runs of their own, on models that really train."""

import pytest

from tests.assets.packed_set import run_on, write_packed_set
from train.branching import tokens_to_train
from train.placement import TrainPlacement
from train.record import run_directory
from train.run import OptimizerConfig
from tune.laws import fit

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1200)]

STEP = 8 * 32
BUDGETS = [24 * 2**doubling * STEP for doubling in range(6)]
ROOM_NATS = 0.02
"""Least half-width of an interval that is compared: six nearly exact points make intervals of nearly no width."""


def losses(root, packed, runs):
    from train.loop import train_run

    placement = TrainPlacement()
    records = [
        train_run(run, packed, placement, run_directory(str(root), run.run_id)) for run in sorted(runs, key=lambda run: run.train_tokens)
    ]  # fmt: skip
    assert sum(record.own_tokens for record in records) == sum(tokens_to_train(runs).values())
    return records


def data_law(records):
    return fit(
        "data",
        {
            "train_tokens": [record.train_tokens for record in records],
            "loss": [record.final.loss_nats_per_token for record in records],
        },
    )


def test_the_law_of_branches_agrees_with_the_law_of_runs_apart(tmp_path):
    packed = write_packed_set(tmp_path, sources={"natural": 7000})
    common = {"mixture": {"natural": 1.0}, "evaluations": 1, "max_epochs": 1.0}
    apart = [
        run_on(packed, train_tokens=budget, optimizer=OptimizerConfig(decay_fraction=0.15), **common)
        for budget in BUDGETS
    ]
    branching = OptimizerConfig(decay_fraction=0.15, warmup_tokens=BUDGETS[0] // 20)
    branches = [
        run_on(packed, train_tokens=budget, optimizer=branching, branching=True, **common)
        for budget in BUDGETS
    ]
    of_runs, of_branches = (losses(tmp_path, packed, runs) for runs in (apart, branches))
    assert sum(r.own_tokens for r in of_branches) <= 0.6 * sum(r.own_tokens for r in of_runs)
    one, other = data_law(of_runs), data_law(of_branches)
    for tokens in (BUDGETS[1], BUDGETS[3], BUDGETS[5], 2 * BUDGETS[5]):
        a, b = one.predict(train_tokens=tokens), other.predict(train_tokens=tokens)
        print(
            f"D = {tokens}: apart {a.value:.4f} [{a.low:.4f}, {a.high:.4f}], branches {b.value:.4f} [{b.low:.4f}, {b.high:.4f}]"
        )
        assert min(a.low, a.value - ROOM_NATS) <= b.value <= max(a.high, a.value + ROOM_NATS)
