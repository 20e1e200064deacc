"""`recommend_mixture`: the share, the loss and the costs it gives for a study whose laws are known, and its refusals."""

from __future__ import annotations

import json
import math
import shutil
import tomllib

import numpy as np
import pytest

from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from synth.identity import claim_directory, finish
from synth.percentage import percentage
from synth.storage import read_json, study_path, write_json_atomic
from tests.assets.packed_set import write_packed_set
from train.config import PretrainConfig
from train.flops import count_parameters
from train.grid import claim_plan, finish_plan, plan_directory, plan_runs
from train.placement import TrainPlacement
from train.record import DomainLoss, Evaluation, RunRecord, write_record
from train.sizes import model_of
from train.tokens import PackedInfo
from tune.answer import answer_at
from tune.at_target import combine_shares
from tune.config import LawsConfig, RecommendConfig
from tune.evidence import read_evidence
from tune.fitting import fit_laws
from tune.next_runs import next_cells
from tune.recommendation import plan_recommend, recommend_mixture
from tune.results import CellOptimum, Interval

MODELS, BUDGETS = ("12k", "25k", "49k", "98k"), (16_384, 32_768, 65_536, 131_072, 262_144)
BEST_SHARE = 0.4
TARGET_N, TARGET_D = 200_000, 1_000_000


PLACEMENT = TrainPlacement(lanes=2, cpus_per_worker=4, gpus_per_worker=0.5, rows_per_microbatch=32)


def true_loss(num_params: float, train_tokens: float, share: float, best: float = BEST_SHARE) -> float:
    """Chinchilla with a data term that is smallest at the best share, as if there were 2.5 times the tokens of 0.4 beside it."""
    gain = 2.5 ** (-0.3 * (1.0 - ((share - best) / BEST_SHARE) ** 2))
    return 2.0 + 20.0 * num_params**-0.3 + 30.0 * gain * train_tokens**-0.3


def write_study(
    root: str, shares: tuple[float, ...] = (0.0, 1 / 3, 2 / 3), best: float = BEST_SHARE, **changes: object
) -> None:
    """Write a finished study: a plan whose losses follow `true_loss` within 0.05 %, its laws, and what made its tokens."""
    write_packed_set(root, sources={"natural": 4000, "hq": 4000})
    # What made the set is written by hand: the generator read 3 and wrote 2 tokens for each training token.
    directory = study_path(root, "synthetic", "rephrased")
    identity = claim_directory(directory, "synthetic", {"engine": {"model": "root:generators/tiny"}}, {})
    num_tokens = PackedInfo.read(root, "tiny").sources["hq"].num_tokens
    counts = {
        "prompt_tokens": 3 * num_tokens,
        "completion_tokens": 2 * num_tokens,
        "accepted_tokens": num_tokens // 2,
    }
    finish(directory, identity, recipes={"hq": counts}, accepted_tokens_per_device_second=50.0, **counts)
    generator = study_path(root, "generators", "tiny")
    finish(generator, claim_directory(generator, "generator", {}, {}), num_params_total=1000)
    recipe = study_path(root, "packed", "tiny", "recipe.json")
    told = json.loads(recipe.read_text())
    told["recipe"]["sources"] = {
        "natural": {"corpus": "natural"},
        "hq": {"synthetic": "rephrased", "recipe": "hq"},
    }
    write_json_atomic(recipe, told)

    config = PretrainConfig(
        root=root, packed="tiny", synthetic=("hq",), shares=shares,
        axes=({"models": ("98k",), "train_tokens": BUDGETS}, {"models": MODELS, "train_tokens": (131_072,)}),
        run={"max_epochs": None},
    )  # fmt: skip
    packed = PackedInfo.read(root, "tiny")
    planned = plan_runs(config, packed)
    records = []
    for each in planned:
        counts_of_model = count_parameters(each.run.model, packed.vocab_size)
        tokens = each.run.num_steps * each.run.tokens_per_step
        noise = 5e-4 * np.random.default_rng(int(each.run.run_id, 16) % 2**32).normal()
        loss = true_loss(counts_of_model.non_embedding, tokens, each.share, best) * math.exp(noise)
        domain = DomainLoss(loss_nats_per_token=loss, bits_per_byte=1.0, tokens=10, bytes=40)
        final = Evaluation(
            train_tokens=tokens, domains={"web": domain}, loss_nats_per_token=loss, macro_loss_nats_per_token=loss,
            bits_per_byte=1.0,
        )  # fmt: skip
        record = RunRecord(
            run_id=each.run.run_id, config=each.run, status="complete", num_params_total=counts_of_model.total,
            num_params_non_embedding=counts_of_model.non_embedding, train_tokens=tokens, train_flops=1.0, sources={},
            train_flops_6nd=6.0 * counts_of_model.non_embedding * tokens, final=final, peak_learning_rate=1e-3,
            wall_seconds=1.0, device_seconds=1.0, tokens_per_second=10_000.0, placement=PLACEMENT, provenance={},
        )  # fmt: skip
        write_record(root, record)
        records.append(record)
    finish_plan(config, claim_plan(config, packed, planned), records)
    fit_laws(
        LawsConfig(root=root, bootstrap_samples=100, objective="mse_log", **{"law": "chinchilla", **changes})
    )


def write_search(
    root: str, name: str, best: Interval, num_params: int, train_tokens: int, synthetic: str = "hq"
) -> None:
    directory = study_path(root, "searches", name)
    identity = claim_directory(directory, "search", {}, {})
    optimum = CellOptimum(
        search=name, natural="natural", synthetic=synthetic, model="98k", num_params=num_params, train_tokens=train_tokens,
        trials=(), best_share=best, best_loss=Interval(value=3.0), natural_only_loss=None, curve=(), noise_nats=None, method="",
    )  # fmt: skip
    write_json_atomic(directory / "cell" / "best.json", optimum.model_dump(mode="json"))
    finish(directory, identity, cells=["cell"])


def asked(root: str, **changes: object) -> RecommendConfig:
    return RecommendConfig.model_validate(
        {
            "root": root,
            "target_num_params": TARGET_N,
            "target_train_tokens": TARGET_D,
            "next_cells": 0,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("study"))
    write_study(root)
    return root


def test_finds_the_share_the_loss_and_the_speed_up_of_the_truth(study):
    found = recommend_mixture(asked(study, name="truth"))
    assert found.synthetic == "hq"
    assert found.best_group == "hq 33 %"
    assert found.best_share.low <= BEST_SHARE <= found.best_share.high
    assert found.best_share.value == pytest.approx(BEST_SHARE, abs=0.12)
    assert found.predicted_loss.value == pytest.approx(true_loss(TARGET_N, TARGET_D, BEST_SHARE), rel=0.01)
    assert found.natural_only_loss.value == pytest.approx(true_loss(TARGET_N, TARGET_D, 0.0), rel=0.01)
    assert found.headline.startswith("Mix in ")
    assert not any("no gain was measured" in each for each in found.warnings)
    speed_ups = {each.group: each.speed_up for each in found.equal_loss}
    assert speed_ups["hq 33 %"].value == pytest.approx(2.5 ** (1 - (1 / 6) ** 2), rel=0.15)
    assert speed_ups["hq 33 %"].low < 2.5 < 1.3 * speed_ups["hq 33 %"].high


@pytest.fixture(scope="module")
def harmful(tmp_path_factory):
    """A study of a source that only harms: the loss rises from natural text on, steeply at the end."""
    root = str(tmp_path_factory.mktemp("harmful"))
    write_study(root, shares=(0.0, 1 / 3, 2 / 3, 1.0), best=0.0)
    return root


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """A study whose best share, 15 %, lies below half of the first that was trained."""
    root = str(tmp_path_factory.mktemp("early"))
    write_study(root, shares=(0.0, 1 / 3, 2 / 3, 1.0), best=0.15)
    return root


def test_a_source_that_only_harms_is_not_recommended_between_two_trained_shares(harmful):
    found = recommend_mixture(asked(harmful, name="harmful"))
    assert found.best_share.value == 0.0
    assert found.headline.startswith("Use natural text alone")
    assert found.gain.low <= found.gain.value == 0.0
    assert (found.pays, found.equal_loss_at_best_share, found.synthetic_tokens) == ("no", None, 0.0)


@pytest.mark.parametrize("name", ["study", "harmful", "early"])
def test_both_losses_and_the_gain_are_read_off_one_curve(name, request):
    root = request.getfixturevalue(name)
    found = recommend_mixture(asked(root, name="one-curve"))
    evidence = read_evidence(asked(root))
    curve = answer_at(evidence.target, evidence).curve
    assert found.natural_only_loss == curve.at(0.0)
    assert found.predicted_loss == curve.at(found.best_share.value)
    assert found.gain.value == found.natural_only_loss.value - found.predicted_loss.value
    best = {"study": BEST_SHARE, "harmful": 0.0, "early": 0.15}[name]
    truth = [true_loss(TARGET_N, TARGET_D, share, best) for share in (0.0, found.best_share.value)]
    assert found.gain.low - 1e-9 <= truth[0] - truth[1] <= found.gain.high + 1e-9


def test_a_gain_that_may_be_nothing_is_said_first(early):
    found = recommend_mixture(asked(early, name="early"))
    assert 0.0 < found.best_share.value < 1 / 6  # nearer to natural text than to the first share trained
    assert found.best_share.low <= 0.15 <= found.best_share.high
    assert found.gain.low <= 0.0 < found.gain.high
    assert found.headline.startswith("Natural text alone is not shown to be worse: 0 % to ")
    assert any("no gain was measured: the law of hq 33 %" in each for each in found.warnings)


def test_a_share_far_from_every_trained_one_is_said_to_be_the_curves(study, early):
    def says(found):
        return any("is the curve's reading between shares" in each for each in found.warnings)

    sure = Interval(value=0.5, low=0.49, high=0.51, standard_error=1e-4)
    for name, root, share in (("half", study, 0.5), ("third", study, 1 / 3), ("tenth", early, 0.1)):
        write_search(root, name, sure.model_copy(update={"value": share}), TARGET_N, TARGET_D)
    half = recommend_mixture(asked(study, name="half", searches=("half",)))
    assert "50 % of hq lies between 33 % and 67 %" in " ".join(half.warnings)
    assert not says(recommend_mixture(asked(study, name="third", searches=("third",))))
    tenth = recommend_mixture(asked(early, name="tenth", searches=("tenth",)))
    assert "10 % of hq lies between 0 % and 33 %" in " ".join(tenth.warnings)


def test_what_pays_is_the_recommended_share_and_not_the_mixture_nearest_to_it(early):
    found = recommend_mixture(asked(early, name="pays"))
    assert found.best_group == "natural"
    assert found.pays_reason.startswith("a share of ")
    ratio = found.natural_cost_ratio
    assert f"interval {ratio.low:.3g} times as much to {ratio.high:.3g} times as much" in found.pays_reason
    assert ratio.low < 1.0 < ratio.high
    assert found.pays == "unclear"
    # Natural text would need as many times more tokens as the truth says, within the interval of what is known of it.
    gain = true_loss(TARGET_N, TARGET_D, 0.0, 0.15) - true_loss(
        TARGET_N, TARGET_D, found.best_share.value, 0.15
    )
    data_term = true_loss(TARGET_N, TARGET_D, 0.0, 0.15) - true_loss(TARGET_N, 1e30, 0.0, 0.15)
    assert ratio.low < (1.0 - gain / data_term) ** (-1 / 0.3) < ratio.high
    by_what = {each.what: each for each in found.sensitivity}
    cheap, dear = (by_what[f"generation cost {factor} times as much"] for factor in ("0.25", "4"))
    assert cheap.natural_cost_ratio.value > ratio.value > dear.natural_cost_ratio.value
    assert (
        by_what["D were 2 times as large"].natural_cost_ratio
        != by_what["N were 2 times as large"].natural_cost_ratio
    )
    ruinous = recommend_mixture(asked(early, name="ruinous", prices={"generator_num_params": 10**9}))
    assert ruinous.pays == "no"
    assert ruinous.natural_cost_ratio.high < 1.0


def test_the_speed_up_is_that_of_the_recommended_share(study):
    found = recommend_mixture(asked(study, name="speed-up"))
    truth = 2.5 ** (1.0 - ((found.best_share.value - BEST_SHARE) / BEST_SHARE) ** 2)
    speed_up = found.equal_loss_at_best_share.speed_up
    assert speed_up.value == pytest.approx(truth, rel=0.15)
    assert speed_up.low < truth < speed_up.high
    assert found.equal_loss_at_best_share.tokens.value == pytest.approx(TARGET_D / speed_up.value)


def test_counts_what_it_costs(study):
    prices = {"generation_per_device_hour": 2.0, "training_per_device_hour": 3.0}
    found = recommend_mixture(asked(study, name="costs", prices=prices))
    synthetic = found.best_share.value * TARGET_D
    assert found.synthetic_tokens == synthetic
    assert found.training_flops == 6.0 * TARGET_N * TARGET_D
    assert found.generation_flops == pytest.approx(
        2.0 * 1000 * 5 * synthetic
    )  # 2 N, five tokens for each one trained on
    assert found.generation_device_hours == pytest.approx(
        synthetic / 2 / 50.0 / 3600, rel=1e-4
    )  # half of them accepted
    largest = 6.0 * 98_000 * 10_000  # FLOP/s of the runs of the largest model, about
    assert found.training_device_hours == pytest.approx(found.training_flops / largest / 3600, rel=0.05)
    assert found.cost == pytest.approx(
        2.0 * found.generation_device_hours + 3.0 * found.training_device_hours
    )


def test_pays_while_generation_is_cheap_and_not_when_it_is_dear(study):
    assert recommend_mixture(asked(study, name="cheap")).pays == "yes"
    dear = recommend_mixture(asked(study, name="dear", prices={"generator_num_params": 1_000_000_000}))
    assert dear.pays == "no"
    assert "times as much" in dear.pays_reason
    free_flops = {
        "generation_per_device_hour": 0.0,
        "training_per_device_hour": 1.0,
        "generator_num_params": 1_000_000_000,
    }
    assert (
        recommend_mixture(asked(study, name="free", prices=free_flops)).pays == "yes"
    )  # money counts where it is known


def test_says_how_far_the_target_lies_outside_the_data(study):
    warnings = recommend_mixture(asked(study, name="far", target_train_tokens=104_857_600)).warnings
    assert any(
        "target D = 104,857,600 is 400 times beyond the largest trained (262,144)" in each
        for each in warnings
    )
    assert any(
        "target N = 200,000 is 2.05 times beyond" in each and "far outside" not in each for each in warnings
    )
    assert any("rehearses the method" in each for each in warnings)


def test_gives_the_same_bytes_again_and_refuses_another_recipe_under_the_name(study):
    recommend_mixture(asked(study, name="again"))
    path = study_path(study, "recommendations", "again.json")
    before = path.read_bytes()
    assert plan_recommend(asked(study, name="again")).finished
    recommend_mixture(asked(study, name="again"))
    assert path.read_bytes() == before
    with pytest.raises(IdentityMismatch, match="target_num_params: there 200000, asked for 300000"):
        plan_recommend(asked(study, name="again", target_num_params=300_000))


def test_a_search_moves_the_share_and_one_of_another_source_does_not(study):
    alone = recommend_mixture(asked(study, name="alone")).best_share
    write_search(
        study, "near", Interval(value=0.1, low=0.08, high=0.12, standard_error=0.01), TARGET_N, TARGET_D
    )
    near = recommend_mixture(asked(study, name="with-near", searches=("near",)))
    assert near.best_share.value == pytest.approx(0.1, abs=0.03)
    assert near.best_share.high - near.best_share.low < alone.high - alone.low
    assert any("searches/near found 10 %" in each for each in near.warnings)
    write_search(study, "other", Interval(value=0.9, standard_error=0.01), TARGET_N, TARGET_D, synthetic="qa")
    other = recommend_mixture(asked(study, name="with-other", searches=("other",)))
    assert other.best_share == alone
    assert any("qa was searched but has no laws" in each for each in other.warnings)


def test_a_cell_counts_less_the_farther_it_is_and_several_show_the_drift():
    laws = Interval(value=0.5, standard_error=0.1)

    def cell(num_params: int, train_tokens: int, best: float) -> CellOptimum:
        return CellOptimum(
            search="s", natural="natural", synthetic="hq", model="98k", num_params=num_params, train_tokens=train_tokens,
            trials=(), best_share=Interval(value=best, standard_error=0.02), best_loss=Interval(value=3.0),
            natural_only_loss=None, curve=(), noise_nats=None, method="",
        )  # fmt: skip

    here, far = (
        combine_shares(laws, [cell(10**6 // k, 10**8 // k, 0.3)], 10**6, 10**8, 0.95) for k in (1, 1000)
    )
    assert here.value == pytest.approx(0.3, abs=0.02)
    assert far.value > 0.4
    assert here.standard_error < far.standard_error < laws.standard_error
    falling = [cell(10**6, 10**d, best) for d, best in ((5, 0.6), (6, 0.5), (7, 0.4))]
    assert combine_shares(
        Interval(value=0.5, standard_error=0.5), falling, 10**6, 10**8, 0.95
    ).value == pytest.approx(0.3, abs=0.04)
    assert combine_shares(laws, [], 10**6, 10**8, 0.95) is laws


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"laws": "missing"}, IncompleteArtefact, "run fit_laws first"),
        ({"searches": ["missing"]}, IncompleteArtefact, "run search_mixture first"),
    ],
)
def test_refuses_what_is_not_there(study, changes, error, says):
    with pytest.raises(error, match=says):
        plan_recommend(asked(study, name="refused", **changes))


def test_refuses_laws_that_cannot_answer(tmp_path):
    root = str(tmp_path)
    write_study(root, shares=(0.0, 1 / 3), law="data")
    with pytest.raises(UserError, match="no law of natural text answers at N = 200000"):
        plan_recommend(asked(root))
    on_axis = {"target_num_params": count_parameters_of("98k"), "target_train_tokens": TARGET_D}
    with pytest.raises(UserError, match=r"for 2 shares of hq .* needs 3"):
        recommend_mixture(asked(root, **on_axis))


def count_parameters_of(size: str) -> int:
    return count_parameters(model_of(size), 64).non_embedding


def test_what_is_not_known_stays_null(tmp_path):
    root = str(tmp_path)
    write_study(root)
    made = study_path(root, "synthetic", "rephrased", "manifest.json")
    told = json.loads(made.read_text())
    told["recipe"]["engine"]["model"] = "someone/instruct-8b"
    told["accepted_tokens_per_device_second"] = None
    write_json_atomic(made, told)
    found = recommend_mixture(asked(root))
    assert (found.generation_flops, found.generation_device_hours, found.cost, found.pays) == (
        None,
        None,
        None,
        "unclear",
    )
    assert any(
        "give prices.generator_num_params, or in a study assumptions.rephrase.rephrased.generator_num_params"
        in each
        for each in found.warnings
    )
    assert any("give prices.generation_tokens_per_device_second" in each for each in found.warnings)


def test_a_generators_size_is_given_or_its_own_or_assumed(study, tmp_path):
    root = str(tmp_path / "study")
    shutil.copytree(study, root)
    made = study_path(root, "synthetic", "rephrased", "manifest.json")

    def flops_per_token(model: str, name: str, **prices: object) -> tuple[float, str]:
        told = json.loads(made.read_text())
        told["recipe"]["engine"]["model"] = model
        write_json_atomic(made, told)
        found = recommend_mixture(asked(root, name=name, prices=prices))
        says = next(each for each in found.evidence if each.startswith("parameters of "))
        return (
            found.generation_flops / found.synthetic_tokens / 5 / 2,
            says,
        )  # five tokens for each one trained on

    assumed = {"assumed_generator_num_params": {"rephrased": 7_000_000}}
    num_params, says = flops_per_token("someone/instruct-8b", "assumed", **assumed)
    assert num_params == pytest.approx(7_000_000)
    assert says.endswith("7,000,000, assumed")
    model = model_of("98k")
    shape = {"hidden_size": model.hidden_size, "intermediate_size": model.intermediate_size}
    heads = {"num_attention_heads": model.num_heads, "num_key_value_heads": model.num_kv_heads}
    own = {"model_type": "llama", "vocab_size": 64, "num_hidden_layers": model.num_layers, **shape, **heads}
    own["tie_word_embeddings"] = model.tie_embeddings
    (tmp_path / "instruct").mkdir()
    write_json_atomic(study_path(str(tmp_path), "instruct", "config.json"), own)
    num_params, says = flops_per_token(str(tmp_path / "instruct"), "own", **assumed)
    assert num_params == pytest.approx(count_parameters(model, 64).total)
    assert says.endswith("of its own configuration")
    num_params, _ = flops_per_token(str(tmp_path / "instruct"), "given", generator_num_params=9, **assumed)
    assert num_params == pytest.approx(9)


# --- budgets, supply, what if, what next -------------------------------------------------------------------------


def test_a_compute_budget_is_spent_as_the_law_of_natural_text_says(study):
    budget = 6.0 * TARGET_N * TARGET_D
    found = recommend_mixture(
        RecommendConfig(root=study, name="budget", target_compute_flops=budget, next_cells=0)
    )
    assert 6.0 * found.target_num_params * found.target_train_tokens == pytest.approx(budget, rel=1e-3)
    best = found.natural_only_loss.value
    for factor in (0.7, 1.4):
        sizes = {"target_num_params": round(found.target_num_params * factor)}
        other = recommend_mixture(
            RecommendConfig(
                root=study, name=f"budget-{factor}", target_compute_flops=budget, next_cells=0, **sizes
            )
        )
        assert other.natural_only_loss.value > best - 1e-9


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_num_params": 10}, "target_train_tokens is missing: give it, or target_compute_flops"),
        ({}, "target_num_params is missing"),
        ({"target_num_params": 1, "target_train_tokens": 1, "target_compute_flops": 1.0}, "leave one out"),
    ],
)
def test_a_target_that_is_not_one_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        RecommendConfig(**changes)


def test_scarce_natural_text_raises_the_share_and_says_so(study):
    scarce = recommend_mixture(asked(study, name="scarce", natural_tokens_available=100_000))
    assert scarce.best_share.value == pytest.approx(0.6)  # four passes over 100,000 are 40 % of the target
    assert scarce.natural_passes == pytest.approx(4.0)
    assert any("the share is raised to 60 %" in each for each in scarce.warnings)
    assert scarce.least_share == scarce.best_share.value
    plenty = recommend_mixture(asked(study, name="plenty", natural_tokens_available=10**9))
    assert plenty.best_share.value < 0.55
    assert plenty.least_share is None


def test_natural_text_that_does_not_suffice_is_never_the_answer(study):
    far = {"target_num_params": 10**9, "target_train_tokens": 10**11}
    enough = recommend_mixture(asked(study, name="enough", **far))
    assert enough.headline.startswith("Natural text alone is not shown to be worse")
    assert enough.natural_text_may_do
    least = 0.5 * enough.best_share.value
    supply = round((1.0 - least) * far["target_train_tokens"] / 4)
    short = recommend_mixture(asked(study, name="short", natural_tokens_available=supply, **far))
    assert short.best_share.value == enough.best_share.value
    assert short.best_share.low == pytest.approx(max(least, enough.best_share.low))
    assert short.least_share == pytest.approx(least)
    assert short.headline.startswith("Mix in ")
    assert not short.natural_text_may_do
    lowest, highest = enough.equally_good_shares
    assert lowest < least < highest
    assert short.equally_good_shares == (short.least_share, highest)
    flat = f"flat optimum: shares of hq from {percentage(least)} to {percentage(highest)} "
    assert any(each.startswith(flat) for each in short.warnings)


def test_says_what_would_change_the_answer(study):
    found = recommend_mixture(asked(study, name="what-if"))
    by_what = {each.what: each for each in found.sensitivity}
    assert len(by_what) == 6
    larger = by_what["D were 2 times as large"]
    truth = true_loss(TARGET_N, 2 * TARGET_D, 0.0) - true_loss(TARGET_N, 2 * TARGET_D, BEST_SHARE)
    assert larger.gain.value == pytest.approx(truth, abs=0.05)
    assert larger.predicted_loss.value < found.predicted_loss.value


def test_what_to_train_next_narrows_the_interval_and_its_plan_can_be_run(study):
    found = recommend_mixture(asked(study, name="next", next_cells=4))
    widths = [each.expected_interval_width for each in found.next_cells]
    assert len(widths) == 4
    now = found.best_share.high - found.best_share.low
    assert [now, *widths] == sorted([now, *widths], reverse=True)
    text = study_path(study, "recommendations", "next.next.toml").read_text()
    assert "--config THIS FILE --run.max_epochs null\n" in text  # which TOML cannot say
    values = {**tomllib.loads(text), "root": study}
    own = PretrainConfig.model_validate({**values, "run": {**values["run"], "max_epochs": None}})
    packed = PackedInfo.read(study, "tiny")
    records = {each["run_id"] for each in read_json(plan_directory(study, "grid") / "plan.json")["runs"]}
    planned = {each.run.run_id for each in plan_runs(own, packed)}
    assert records < planned
    assert len(planned - records) == sum(each.runs for each in found.next_cells)
    assert own.placement == PLACEMENT  # on GPUs, side by side, as the plan was
    trained = {*(("98k", d) for d in BUDGETS), *((m, 131_072) for m in MODELS)}
    assert not {(each.model, each.train_tokens) for each in found.next_cells} & trained


def test_a_new_share_where_the_curve_is_a_guess_and_a_larger_size_for_a_far_target_are_proposed(study):
    here = recommend_mixture(asked(study, name="next-here", next_cells=6)).next_cells
    new = [each.share for each in here if each.what == "share"]
    assert new
    assert all(0.0 < share < 2 / 3 and abs(share - 1 / 3) > 0.04 for share in new)
    sizes = {each.model for each in here if each.what == "cell"}
    assert sizes & {"197k", "330k"}  # at most four times the largest trained


def test_what_to_train_next_goes_by_the_interval_of_the_answer_searches_included(study):
    (alone,) = recommend_mixture(asked(study, name="next-alone", next_cells=1)).next_cells
    write_search(study, "sure", Interval(value=0.4, standard_error=0.02), TARGET_N, TARGET_D)
    found = recommend_mixture(asked(study, name="next-sure", searches=("sure",), next_cells=1))
    width = found.best_share.high - found.best_share.low
    assert found.next_cells[0].expected_interval_width <= width < alone.expected_interval_width


def test_every_seed_of_the_plan_is_counted_in_what_to_train_next(study, tmp_path):
    root = str(tmp_path / "study")
    shutil.copytree(study, root)
    evidence = read_evidence(asked(root))
    answer = answer_at(evidence.target, evidence)
    one = next_cells(root, "grid", answer, 8)
    recipe = study_path(root, "plans", "grid", "recipe.json")
    told = json.loads(recipe.read_text())
    told["recipe"]["seeds"] = [0, 1]
    write_json_atomic(recipe, told)
    two = next_cells(root, "grid", answer, 8)
    first_one, first_two = (next(each for each in some if each.what == "cell") for some in (one, two))
    per_run = 6 * first_two.num_params * first_two.train_tokens
    assert first_two.runs % 2 == 0
    assert first_two.flops == first_two.runs * per_run
    assert first_one.flops == first_one.runs * 6 * first_one.num_params * first_one.train_tokens
    assert {each.seed for each in two if each.what == "seed"} <= {2}
