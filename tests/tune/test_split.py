"""Several sources together: their shares at the target, what they lose less, and what the recommendation says of it."""

from __future__ import annotations

import pytest

from tests.assets.known_truth import TARGET_D, TARGET_N, asked, write_search
from tune.recommendation import recommend_mixture
from tune.results import CellOptimum, Interval, OneSource
from tune.split import split_warnings, splits_at


def about(value, error=0.02):
    return Interval(value=value, low=value - 2 * error, high=value + 2 * error, standard_error=error)


def cell(hq, qa, num_params=100_000, train_tokens=1_000_000, excess=0.01, gain=0.05, **changes):
    one = OneSource(synthetic="hq", share=1 / 3, excess=about(excess, 0.002))
    return CellOptimum.model_validate(
        {
            "search": "both", "natural": "natural", "synthetic": "hq+qa", "model": "98k", "num_params": num_params,
            "train_tokens": train_tokens, "trials": (), "best_share": about(hq + qa), "best_loss": Interval(value=3.0),
            "best_shares": {"hq": about(hq), "qa": about(qa)}, "gain": about(gain, 0.01), "one_source": one,
            "natural_only_loss": None, "curve": (), "noise_nats": None, "method": "", **changes,
        }
    )  # fmt: skip


def test_a_cell_at_the_target_is_the_answer_itself():
    (found,) = splits_at([cell(0.2, 0.1)], 100_000, 1_000_000, 0.95)
    assert {name: share.value for name, share in found.shares.items()} == pytest.approx(
        {"hq": 0.2, "qa": 0.1}
    )
    assert found.shares["hq"].low == pytest.approx(0.2 - 1.96 * 0.02, abs=1e-3)
    assert found.headline == (
        "20 % (16 % to 24 %) of hq and 10 % (6.1 % to 14 %) of qa are best at the target by one cell of searches/both. At 98k, "
        "1,000,000 tokens, the nearest cell searched, the best mixture loses 0.05 nats per token (0.03 to 0.07) less than natural "
        "text alone and 0.01 nats per token (0.006 to 0.014) less than the best of one source (33 % of hq)."
    )


def test_shares_move_on_as_they_moved_between_cells_and_losses_are_those_of_the_nearest_cell():
    cells = [cell(0.4, 0.1, train_tokens=10_000, gain=0.2), cell(0.3, 0.1, train_tokens=100_000, gain=0.1)]
    (found,) = splits_at(cells, 100_000, 1_000_000, 0.95)
    assert found.shares["hq"].value == pytest.approx(0.2, abs=0.03)
    assert found.shares["qa"].value == pytest.approx(0.1)
    assert found.gain.value == 0.1
    (alone,) = splits_at(cells[1:], 100_000, 1_000_000, 0.95)
    assert found.shares["qa"].standard_error < alone.shares["qa"].standard_error


def test_shares_never_come_to_more_than_all_tokens():
    cells = [cell(0.3, 0.6, train_tokens=10_000), cell(0.4, 0.6, train_tokens=100_000)]
    (found,) = splits_at(cells, 100_000, 10_000_000, 0.95)
    assert sum(share.value for share in found.shares.values()) == pytest.approx(1.0)
    assert all(share.low <= share.value <= share.high for share in found.shares.values())


def test_searches_of_one_source_are_no_split_and_each_search_of_several_is_its_own():
    alone = cell(0.2, 0.0, search="alone", best_shares={})
    other = cell(0.3, 0.3, search="other")
    found = list(splits_at([alone, cell(0.2, 0.1), other], 100_000, 1_000_000, 0.95))
    assert [each.search for each in found] == ["both", "other"]


def test_only_a_difference_beyond_its_interval_is_held_against_the_answer():
    def warned(excess):
        return list(split_warnings(list(splits_at([cell(0.2, 0.1, excess=excess)], 1e5, 1e6, 0.95))))

    assert warned(0.001) == []
    (said,) = warned(0.01)
    assert said.startswith("searches/both shows that hq and qa together lose less than either alone")


def test_a_recommendation_says_what_several_sources_do_and_stays_of_one(study):
    there = cell(0.25, 0.15).model_dump(include={"best_shares", "gain", "one_source"})
    write_search(study, "both", about(0.4), TARGET_N, TARGET_D, synthetic="hq+qa", **there)
    found = recommend_mixture(asked(study, name="split", searches=("both",)))
    without = recommend_mixture(asked(study, name="no-split"))
    assert (found.synthetic, found.best_share) == ("hq", without.best_share)
    (split,) = found.splits
    assert split.shares["hq"].value == pytest.approx(0.25)
    assert split.shares["qa"].value == pytest.approx(0.15)
    assert any("together lose less than either alone" in each for each in found.warnings)
    assert not any("has no laws" in each for each in found.warnings)
    assert any("hq+qa at N = 200,000" in each and "see splits" in each for each in found.evidence)
