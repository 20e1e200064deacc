"""A sweep of learning rates: extended past its edges, resumed from records, used by name."""

import json
import math

import pytest

from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from tests.assets.packed_set import write_packed_set
from train.config import PretrainConfig, RateSweepConfig
from train.grid import plan_pretrain, plan_runs
from train.lanes.queue import failed_record
from train.rate_sweep import (
    claim_sweep,
    finish_sweep,
    missing_runs,
    plan_sweep,
    read_sweep_records,
    sentences,
)
from train.rates import read_rates
from train.record import DomainLoss, Evaluation, write_record
from train.sizes import model_of
from train.tokens import PackedInfo

STEP = 8 * 32


@pytest.fixture
def packed(tmp_path) -> PackedInfo:
    return write_packed_set(tmp_path, sources={"natural": 400, "hq": 120}).info


@pytest.fixture
def config(tmp_path, packed):
    """`config(field=value, ...)`: a sweep of two sizes around 1e-3."""

    def make(**changes):
        fields = {
            "root": str(tmp_path),
            "packed": "tiny",
            "models": ("12k", "25k"),
            "train_tokens": 4 * STEP,
            "run": {"optimizer": {"peak_learning_rate": 1e-3}},
        }
        return RateSweepConfig.model_validate(fields | changes)

    return make


def record_of(run, packed, best, diverges_above=math.inf):
    """What training would leave: a parabola around `best`, divergence above a rate."""
    rate = run.optimizer.peak_learning_rate
    status = "diverged" if rate > diverges_above else "complete"
    record = failed_record(
        run, packed.vocab_size, config_placement(), "the loss is nan", tokens=run.train_tokens, seconds=1.0,
        tokens_per_second=1.0, attempts=1,
    )  # fmt: skip
    loss = 3.0 + 0.05 * math.log(rate / best) ** 2
    domain = DomainLoss(loss_nats_per_token=loss, bits_per_byte=1.0, tokens=10, bytes=10)
    final = Evaluation(
        train_tokens=run.train_tokens, domains={"web": domain}, loss_nats_per_token=loss,
        macro_loss_nats_per_token=loss, bits_per_byte=1.0,
    )  # fmt: skip
    whole = status == "complete"
    return record.model_copy(
        update={
            "status": status,
            "reason": None if whole else "the loss is nan",
            "final": final if whole else None,
        }
    )


def config_placement():
    return RateSweepConfig(models=("12k",), train_tokens=1).placement


def sweep(config, packed, best, **faults):
    """Run the sweep as the job does, with records in place of training; return what was found and runs by round."""
    rounds = []
    identity = claim_sweep(config, packed)
    while missing := missing_runs(config, packed, read_sweep_records(config, packed)):
        rounds.append(len(missing))
        for each in missing:
            write_record(config.root, record_of(each.run, packed, best[each.model], **faults))
    return finish_sweep(config, packed, identity, read_sweep_records(config, packed)), rounds


def test_every_size_gets_its_own_best_rate_and_a_law_is_drawn_through_them(config, packed):
    rates, rounds = sweep(config(), packed, {"12k": 1.2e-3, "25k": 8e-4})
    assert rounds == [10]
    assert [each.learning_rate for each in rates.sizes] == pytest.approx([1.2e-3, 8e-4], rel=1e-3)
    assert [len(each.trials) for each in rates.sizes] == [5, 5]
    assert [each.edge for each in rates.sizes] == [None, None]
    n = [each.num_params_non_embedding for each in rates.sizes]
    assert rates.law.exponent == pytest.approx(math.log(8e-4 / 1.2e-3) / math.log(n[1] / n[0]), rel=1e-2)
    assert rates == read_rates(config().root, "rates")
    assert plan_sweep(config()).finished


def test_an_optimum_at_the_edge_extends_the_grid_of_its_size_alone(config, packed):
    rates, rounds = sweep(config(), packed, {"12k": 9e-3, "25k": 1e-3})
    assert rounds == [10, 2]
    first, second = rates.sizes
    assert (len(first.trials), len(second.trials)) == (7, 5)
    assert first.learning_rate == pytest.approx(9e-3, rel=1e-3)
    assert first.edge is None


def test_a_grid_is_not_extended_for_ever_and_an_open_edge_is_said_out_loud(config, packed):
    asked = config(models=("12k",), max_rates_per_size=8)
    rates, rounds = sweep(asked, packed, {"12k": 1e-6})
    assert rounds == [5, 2, 1]
    assert rates.sizes[0].edge == "lowest"
    assert rates.law is None
    assert any("warning" in sentence and "may lie beyond" in sentence for sentence in sentences(rates))
    plan = plan_pretrain(grid(asked.root))
    assert any("the lowest of those tried" in warning for warning in plan.warnings)


def test_rates_that_diverge_bound_the_best_and_are_no_reason_to_go_higher(config, packed):
    rates, rounds = sweep(config(models=("12k",)), packed, {"12k": 8e-3}, diverges_above=3e-3)
    assert rounds == [5]
    assert rates.sizes[0].learning_rate == pytest.approx(2e-3)
    assert [trial.status for trial in rates.sizes[0].trials] == ["complete"] * 4 + ["diverged"]
    rates, rounds = sweep(config(models=("25k",), name="low"), packed, {"25k": 1e-4}, diverges_above=2e-4)
    assert rounds == [5, 2]
    assert rates.sizes[0].learning_rate == pytest.approx(1.25e-4)


def test_a_size_without_one_trained_rate_is_an_error_with_reasons(config, packed):
    with pytest.raises(UserError, match=r"no learning rate of 12k .*the loss is nan"):
        sweep(config(models=("12k",), max_rates_per_size=7), packed, {"12k": 1e-3}, diverges_above=0.0)


def test_a_sweep_asks_again_for_what_has_no_record_and_for_nothing_else(config, packed):
    asked = config()
    claim_sweep(asked, packed)
    first = missing_runs(asked, packed, {})
    for each in first[:7]:
        write_record(asked.root, record_of(each.run, packed, 1e-3))
    again = missing_runs(asked, packed, read_sweep_records(asked, packed))
    assert [each.run.run_id for each in again] == [each.run.run_id for each in first[7:]]
    plan = plan_sweep(asked)
    assert (plan.facts["runs missing"], plan.facts["tokens missing"]) == (3, 3 * 4 * STEP)
    assert plan.facts["first rates of 12k"] == "0.00025, 0.0005, 0.001, 0.002, 0.004"
    assert not plan.finished


def test_another_sweep_under_the_same_name_is_refused(config, packed):
    claim_sweep(config(), packed)
    with pytest.raises(IdentityMismatch, match="rate_ratio"):
        plan_sweep(config(rate_ratio=3.0))
    plan_sweep(config(placement={"lanes": 5}))


def grid(root, models=("12k",), **run):
    optimizer = {"learning_rates": "rates"} | run.pop("optimizer", {})
    return PretrainConfig(
        root=root,
        packed="tiny",
        shares=(0.0,),
        axes=({"models": models, "train_tokens": (8 * STEP,)},),
        run={"optimizer": optimizer} | run,
    )


def test_a_plan_takes_the_swept_rate_of_each_size_and_the_law_for_others(config, packed, tmp_path):
    sweep(config(), packed, {"12k": 1.2e-3, "25k": 8e-4})
    asked = grid(str(tmp_path), models=("12k", "25k", "49k"))
    rates = {each.model: each.run.optimizer.peak_learning_rate for each in plan_runs(asked, packed)}
    found = read_rates(str(tmp_path), "rates")
    assert rates["12k"] == found.sizes[0].learning_rate
    assert rates["25k"] == found.sizes[1].learning_rate
    assert rates["49k"] == pytest.approx(found.law.coefficient * 49_000**found.law.exponent, rel=0.01)
    plan = plan_pretrain(asked)
    assert plan.facts["learning rate of 12k"].startswith("0.0012 [")
    assert any("49k is not in learning_rates/rates" in warning for warning in plan.warnings)


def test_a_plan_is_told_where_it_is_not_what_was_swept(config, packed, tmp_path):
    sweep(config(), packed, {"12k": 1e-3, "25k": 1e-3})
    other = grid(str(tmp_path), rows_per_step=4, optimizer={"beta2": 0.99})
    warnings = " ".join(plan_pretrain(other).warnings)
    assert "run.rows_per_step = 8, and this plan has 4" in warnings
    assert "run.optimizer.beta2 = 0.95, and this plan has 0.99" in warnings
    assert "best rates fall with the budget" not in warnings
    long = other.model_copy(
        update={"axes": (other.axes[0].model_copy(update={"train_tokens": (50 * STEP,)}),)}
    )
    assert "best rates fall with the budget" in " ".join(plan_pretrain(long).warnings)


def test_the_sweep_is_a_parent_of_the_plans_that_use_it(config, packed, tmp_path):
    from train.grid import claim_plan

    with pytest.raises(IncompleteArtefact, match="sweep_learning_rates"):
        plan_pretrain(grid(str(tmp_path)))
    found, _ = sweep(config(), packed, {"12k": 1e-3, "25k": 1e-3})
    asked = grid(str(tmp_path))
    claim_plan(asked, packed, plan_runs(asked, packed))
    recipe = json.loads((tmp_path / "plans" / "grid" / "recipe.json").read_text())
    assert recipe["parents"] == {"packed": packed.hash, "learning_rates": found.hash}


def test_a_size_without_rate_or_law_is_refused(config, packed, tmp_path):
    sweep(config(models=("12k",)), packed, {"12k": 1e-3})
    with pytest.raises(UserError, match=r"learning_rates/rates has rates for 12k, not for the size of 25,"):
        plan_pretrain(grid(str(tmp_path), models=("25k",)))
    assert read_rates(str(tmp_path), "rates").found(model_of("25k")) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ("13k",)}, "'13k'"),
        ({"mixture": {"web": 1.0}}, "'web'"),
        ({"train_tokens": STEP - 1}, "less than one step"),
        ({"train_tokens": 100 * STEP}, "max_epochs"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_starts(config, changes, words):
    with pytest.raises(UserError, match=words):
        plan_sweep(config(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rates_per_size": 4}, "odd number"),
        ({"max_rates_per_size": 3}, "max_rates_per_size = 3"),
        ({"run": {"optimizer": {"learning_rates": "x"}}}, "names a sweep, and this is one"),
    ],
)
def test_a_sweep_that_contradicts_itself_is_refused_when_it_is_written_down(config, changes, words):
    with pytest.raises(ValueError, match=words):
        config(**changes)
