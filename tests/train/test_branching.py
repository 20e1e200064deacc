"""Branches of one trunk on paper: who shares what, what it saves, in which order; and what cannot branch."""

import tomllib
from pathlib import Path

import pydantic
import pytest

from tests.assets.packed_set import write_packed_set
from train.branching import in_training_order, tokens_to_train
from train.config import PretrainConfig
from train.grid import plan_pretrain, plan_runs
from train.lanes.queue import failed_record
from train.record import write_record
from train.run import OptimizerConfig, RunConfig, RunTemplate
from train.schedule import trunk_steps
from train.sizes import model_of

STEP = 8 * 16
BRANCHING = OptimizerConfig(warmup_tokens=STEP, decay_fraction=0.15)
DEMO = Path(__file__).parents[2] / "rayjobs" / "configs" / "demo.toml"


def run_with(num_steps, **changes):
    fields = {
        "packed": "p",
        "packed_hash": "0",
        "model": model_of("12k"),
        "mixture": {"natural": 1.0},
        "train_tokens": num_steps * STEP,
        "sequence_length": 16,
        "optimizer": BRANCHING,
        "branching": True,
    }
    return RunConfig.model_validate(fields | changes)


def test_runs_that_differ_in_budget_and_decay_alone_share_a_trunk():
    run = run_with(100)
    assert run.trunk_id == run_with(7).trunk_id
    longer_decay = BRANCHING.model_copy(update={"decay_fraction": 0.3})
    assert run.trunk_id == run_with(100, optimizer=longer_decay, max_epochs=None).trunk_id
    assert run.run_id != run_with(100, optimizer=longer_decay).run_id
    assert run_with(100, branching=False).trunk_id is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"mixture": {"natural": 0.5, "hq": 0.5}},
        {"model": model_of("25k")},
        {"packed_hash": "1"},
        {"precision": "fp32"},
        {"rows_per_step": 4},
        {"optimizer": BRANCHING.model_copy(update={"warmup_tokens": 2 * STEP})},
        {"optimizer": BRANCHING.model_copy(update={"peak_learning_rate": 1e-3})},
    ],
)
def test_runs_that_differ_in_anything_else_do_not(change):
    assert run_with(100, **change).trunk_id != run_with(100).trunk_id


def test_a_branch_trains_from_where_the_shorter_one_left_the_trunk():
    short, long, alone = run_with(20), run_with(100), run_with(100, seed=1, branching=False)
    own = tokens_to_train([long, alone, short])
    assert own == {
        short.run_id: 20 * STEP,
        long.run_id: (100 - trunk_steps(short)) * STEP,
        alone.run_id: 100 * STEP,
    }


def test_branches_go_on_from_finished_ones_unless_those_went_further():
    short, middle, long = run_with(20), run_with(50), run_with(100)
    assert tokens_to_train([long], finished=[short, middle]) == {
        long.run_id: (100 - trunk_steps(middle)) * STEP
    }
    assert tokens_to_train([middle], finished=[long]) == {middle.run_id: 50 * STEP}


def test_the_demos_budgets_take_at_most_0_6_of_the_tokens_of_runs_apart():
    study = tomllib.loads(DEMO.read_text())
    (budgets,) = [
        axis["train_tokens"] for axis in study["pretrain"]["grid"]["axes"] if len(axis["train_tokens"]) > 1
    ]
    per_step = study["pretrain"]["grid"]["run"]["rows_per_step"] * study["pack"]["packed"]["sequence_length"]
    runs = [run_with(tokens // per_step) for tokens in budgets]
    apart = sum(run.train_tokens for run in runs)
    together = sum(tokens_to_train(runs).values())
    f = BRANCHING.decay_fraction
    assert together == pytest.approx((1 - f) * runs[-1].train_tokens + f * apart, rel=0.02)
    assert together / apart <= 0.6


def test_trunks_go_longest_first_and_their_branches_shortest_first():
    trunk = [run_with(steps) for steps in (100, 20, 50)]
    other = [run_with(steps, seed=1, model=model_of("25k")) for steps in (300, 20)]
    alone = run_with(90, seed=2, branching=False)
    order = in_training_order([*trunk, alone, *other], vocab_size=300)
    assert order[0] == trunk[1]  # the cheapest of all
    assert [run for run in order if run in other] == other[::-1]
    assert [run for run in order if run in trunk] == [trunk[1], trunk[2], trunk[0]]
    assert order[-1] == alone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"optimizer": {"schedule": "cosine", "warmup_tokens": 9}},
            ["optimizer.schedule = 'wsd'", "'cosine'"],
        ),
        ({"optimizer": {}}, ["optimizer.warmup_tokens", "twentieth of the shortest budget"]),
        ({"optimizer": {"warmup_tokens": 9}, "evaluations": 3}, ["evaluations = 3", "evaluations = 1"]),
    ],
)
def test_what_cannot_branch_is_refused_when_it_is_written_down(changes, words):
    with pytest.raises(pydantic.ValidationError) as refused:
        RunTemplate.model_validate({"branching": True} | changes)
    for word in ["branching = true", *words]:
        assert word in str(refused.value)


PLAN_STEP = 8 * 32


def three_budgets(root):
    """Return a plan of one size whose budgets are 20, 40 and 50 steps of PLAN_STEP tokens."""
    return PretrainConfig(
        root=str(root),
        packed="tiny",
        shares=(0.0,),
        axes=({"models": ("12k",), "train_tokens": (20 * PLAN_STEP, 40 * PLAN_STEP, 50 * PLAN_STEP)},),
        run=RunTemplate(branching=True, optimizer={"warmup_tokens": PLAN_STEP, "decay_fraction": 0.2}),
    )


def test_a_plan_counts_shared_tokens_once(tmp_path):
    write_packed_set(tmp_path, sources={"natural": 400})
    config = three_budgets(tmp_path)
    facts = plan_pretrain(config).facts
    # 20 steps; from step 15 to 40; from step 31 to 50
    assert facts["steps missing"] == 20 + 25 + 19
    assert facts["tokens missing"] == (20 + 25 + 19) * PLAN_STEP
    assert facts["tokens saved by branching"] == (15 + 31) * PLAN_STEP


@pytest.mark.parametrize(("status", "steps"), [("complete", 20 + 19), ("failed", 20 + 35)])
def test_only_a_run_that_got_to_its_end_has_surely_left_its_trunk(tmp_path, status, steps):
    packed = write_packed_set(tmp_path, sources={"natural": 400})
    config = three_budgets(tmp_path)
    middle = plan_runs(config, packed.info)[1].run
    record = failed_record(
        middle,
        64,
        config.placement,
        "killed",
        tokens=PLAN_STEP,
        seconds=1.0,
        tokens_per_second=0.0,
        attempts=1,
    )
    write_record(str(tmp_path), record.model_copy(update={"status": status}))
    assert plan_pretrain(config).facts["steps missing"] == steps
