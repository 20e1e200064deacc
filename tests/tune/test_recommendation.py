"""`recommend_mixture`: the share, the loss and the costs it gives for a study whose laws are known, and its refusals."""

from __future__ import annotations

import pytest

from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from synth.storage import study_path
from tests.assets.known_truth import (
    BEST_SHARE,
    TARGET_D,
    TARGET_N,
    asked,
    true_loss,
    write_search,
    write_study,
)
from train.flops import count_parameters
from train.sizes import model_of
from tune.answer import answer_at
from tune.at_target import combine_shares
from tune.config import RecommendConfig
from tune.evidence import read_evidence
from tune.recommendation import plan_recommend, recommend_mixture
from tune.results import CellOptimum, Interval
from tune.share_at_target import percent


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


def test_the_speed_up_is_that_of_the_recommended_share(study):
    found = recommend_mixture(asked(study, name="speed-up"))
    truth = 2.5 ** (1.0 - ((found.best_share.value - BEST_SHARE) / BEST_SHARE) ** 2)
    speed_up = found.equal_loss_at_best_share.speed_up
    assert speed_up.value == pytest.approx(truth, rel=0.15)
    assert speed_up.low < truth < speed_up.high
    assert found.equal_loss_at_best_share.tokens.value == pytest.approx(TARGET_D / speed_up.value)


@pytest.mark.parametrize("law", ["data", "over_training"])
def test_the_tokens_are_those_of_the_law_as_it_was_fitted_whatever_order_its_file_has(tmp_path, law):
    write_study(str(tmp_path), law=law)
    num_params = count_parameters(model_of("98k"), 64).non_embedding
    found = recommend_mixture(asked(str(tmp_path), target_num_params=num_params))
    (each,) = (each for each in found.equal_loss if each.group == "hq 33 %")
    assert each.speed_up.value == pytest.approx(2.5 ** (1 - (1 / 6) ** 2), rel=0.2)
    assert each.speed_up.low < each.speed_up.value < each.speed_up.high
    assert each.tokens.low < each.tokens.value < each.tokens.high
    best = found.equal_loss_at_best_share.speed_up
    assert best.low < best.value < best.high


def test_a_target_as_large_as_the_largest_model_is_not_called_beyond_it(study):
    num_params = count_parameters(model_of("98k"), 64).non_embedding
    warnings = recommend_mixture(
        asked(study, name="near", target_num_params=round(1.004 * num_params))
    ).warnings
    assert not any("target N" in each for each in warnings)


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


# --- budgets, supply, what if -------------------------------------------------------------------------


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
    least = 0.25 * enough.best_share.value
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
    flat = f"flat optimum: shares of hq from {percent(least)} to {percent(highest)} "
    assert any(each.startswith(flat) for each in short.warnings)


def test_says_what_would_change_the_answer(study):
    found = recommend_mixture(asked(study, name="what-if"))
    by_what = {each.what: each for each in found.sensitivity}
    assert len(by_what) == 6
    larger = by_what["D were 2 times as large"]
    truth = true_loss(TARGET_N, 2 * TARGET_D, 0.0) - true_loss(TARGET_N, 2 * TARGET_D, BEST_SHARE)
    assert larger.gain.value == pytest.approx(truth, abs=0.05)
    assert larger.predicted_loss.value < found.predicted_loss.value
