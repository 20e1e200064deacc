"""Several synthetic sources at once, seeds repeated where noise decides, what cells learn from one another, budgets."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from pydantic import ValidationError

from synth.errors import UserError
from tests.assets.packed_set import write_packed_set
from tests.tune.test_search import SMALL, ask, files_of, optimum_of, record_of, search_all, settings, train
from train.record import write_record
from train.tokens import PackedInfo
from tune.cells import Choice, mixture_of, order_cells, share_caps, trial_run
from tune.mixture_space import MixtureSpace, distance, neighbours, with_natural
from tune.report.tables import split_notes
from tune.rounds import Question, first_choices, propose
from tune.sampler import REPLICATE, SurfaceSampler, search_space
from tune.search import ShareSearch
from tune.search_plan import check_search, plan_search
from tune.surface import Losses, fit_surface
from tune.transfer import Donor, fit_transfer

BOTH = {
    "synthetic": ["hq", "qa"],
    "trials_per_cell": 12,
    "trials_per_round": 3,
    "steps": 12,
    "cells": [SMALL],
}
BEST = {"hq": 0.25, "qa": 0.25}


@pytest.fixture
def root(tmp_path):
    write_packed_set(tmp_path, sources={"natural": 200, "hq": 120, "qa": 60})
    return str(tmp_path)


def train_both(run, **ignored):
    """A run whose loss is lowest at a quarter of each source."""
    gaps = [run.mixture.get(name, 0.0) - best for name, best in BEST.items()]
    noise = 0.001 * np.random.default_rng(int(run.run_id, 16) % 2**32).standard_normal()
    return record_of(run, 3.0 + 0.5 * gaps[0] ** 2 + 0.5 * gaps[1] ** 2 + 0.3 * gaps[0] * gaps[1] + noise)


# --- the simplex -----------------------------------------------------------------------------------------------


def test_finds_the_best_mixture_of_two_sources(root):
    config = settings(root, **BOTH)
    search, trained = search_all(config, train=train_both)
    found = optimum_of(config, "12k-4096")
    assert len(trained) == len(found.trials) == 12
    assert found.synthetic == "hq+qa"
    for name, best in BEST.items():
        assert found.best_shares[name].low <= best <= found.best_shares[name].high
        assert found.best_shares[name].high - found.best_shares[name].low <= 0.34
    assert found.best_share.low <= 0.5 <= found.best_share.high
    assert (0.25, 0.25) in found.region
    (note,) = split_notes([found])
    assert "hq+qa, 12k" in note
    assert ": best at hq 2" in note
    assert len(found.region) < len(search.cells["12k-4096"].space.points) / 2
    assert found.natural_only_loss == found.trials[0].loss_nats_per_token
    assert (
        found.gain.low <= 0.081 <= found.gain.high
    )  # what the truth loses more at (0, 0), and below at (0.325, 0)
    assert 0.0 < found.one_source.excess.low <= 0.028 <= found.one_source.excess.high
    assert found.one_source.share == pytest.approx(0.325, abs=0.1)
    assert [point[0] for point in found.curve] == pytest.approx([step / 12 for step in range(13)])
    for trial in found.trials:
        assert trial.share == pytest.approx(sum(trial.shares.values()))


def test_a_killed_search_of_two_sources_ends_the_same(root, tmp_path):
    config = settings(root, **BOTH)
    _, before = search_all(config, order=1, kill_after=8, train=train_both)
    _, after = search_all(config, order=2, train=train_both)
    assert not set(before) & set(after)
    quiet = tmp_path / "quiet"
    write_packed_set(quiet, sources={"natural": 200, "hq": 120, "qa": 60})
    undisturbed = settings(quiet, **BOTH)
    search_all(undisturbed, train=train_both)
    assert files_of(config) == files_of(undisturbed)


def test_it_starts_with_the_corners_and_the_centre(root):
    search = ShareSearch(settings(root, **BOTH), PackedInfo.read(root, "tiny"), ask=None)
    first = [trial.choice.shares for trial in search.cells["12k-4096"].trials]
    assert first == [(0, 0), (0, 1), (1, 0), (4 / 12, 4 / 12)]


def found_among(space, losses, config):
    """Return the place of the mixture a search takes for the best of these losses, by mixture, and what it tried."""
    tried = [space.index(choice.shares) for choice in first_choices(config, space)]
    while len(tried) < config.trials_per_cell:
        known = Losses(np.array(tried), losses[tried], np.zeros(len(tried), dtype=int), np.zeros(len(tried)))
        chosen = ask(config, Question(space, known, ()), (), config.trials_per_round)
        tried += [space.index(choice.shares) for choice in chosen]
    known = Losses(np.array(tried), losses[tried], np.zeros(len(tried), dtype=int), np.zeros(len(tried)))
    return fit_surface(space.points, known).best_index, tried


def test_the_best_of_two_sources_is_found_through_the_noise_of_runs(root):
    """Eight runs of 21 mixtures, with the noise small runs have, against the lowest loss of an even lattice and of all."""
    config = settings(root, **BOTH | {"steps": 5, "trials_per_cell": 8, "trials_per_round": 2})
    space = MixtureSpace(caps=(1.0, 1.0), steps=5)
    even = [space.index(shares) for shares in space.lattice(2)]
    found, of_the_lattice, of_the_grid = [], [], []
    for seed in range(10):
        random = np.random.default_rng(seed)
        laws = np.exp(-random.uniform(2.0, 5.0, 3) * with_natural(space.points))
        worth = 4.0 + 0.5 * laws @ random.dirichlet([2.0, 2.0, 2.0])
        losses = worth * (1.0 + 0.003 * random.standard_normal(len(worth)))
        best, tried = found_among(space, losses, config)
        assert len(set(tried)) == 8
        found.append(worth[best] / worth.min() - 1.0)
        of_the_lattice.append(worth[even[losses[even].argmin()]] / worth.min() - 1.0)
        of_the_grid.append(worth[losses.argmin()] / worth.min() - 1.0)
    # Near ties fall this way or that with the last bits of a processor's arithmetic, and with them what is tried next.
    assert sum(each <= 0.005 for each in found) >= 9
    assert max(found) <= 0.0075
    assert np.mean(found) < 0.5 * np.mean(of_the_lattice)
    assert np.mean(found) < np.mean(of_the_grid)
    assert found_among(space, losses, config) == (best, tried)  # equal losses, equal choices


def test_the_grid_method_is_the_finest_simplex_lattice_there_are_trials_for(root):
    config = settings(root, **BOTH | {"method": "grid", "trials_per_cell": 14})
    search_all(config, train=train_both)
    tried = {tuple(trial.shares.values()) for trial in optimum_of(config, "12k-4096").trials}
    assert tried == {(i / 3, j / 3) for i in range(4) for j in range(4 - i)}


def test_runs_with_one_source_are_those_of_a_plan(root):
    assert mixture_of("natural", ("hq", "qa"), (0.25, 0.0)) == {"natural": 0.75, "hq": 0.25}
    assert mixture_of("natural", ("hq", "qa"), (0.0, 0.0)) == {"natural": 1.0}
    assert mixture_of("natural", ("hq", "qa"), (0.25, 0.75)) == {"hq": 0.25, "qa": 0.75}
    assert mixture_of("natural", ("hq", "qa"), (0.25, 0.5)) == {"natural": 0.25, "hq": 0.25, "qa": 0.5}


def test_no_source_is_asked_for_more_than_it_can_supply(root):
    """128 rows a run at one pass: 120 of hq, 60 of qa, enough natural ones."""
    config = settings(root, **BOTH | {"run": {"max_epochs": 1.0}})
    packed = PackedInfo.read(root, "tiny")
    caps = share_caps(config, packed, config.cells[0])
    assert caps == {"natural": 1.0, "hq": 118 / 128, "qa": 58 / 128}
    search_all(config, train=train_both)
    found = optimum_of(config, "12k-4096")
    assert found.share_caps == {"hq": 118 / 128, "qa": 58 / 128}
    assert max(trial.shares["qa"] for trial in found.trials) == 58 / 128
    said = plan_search(settings(root, **BOTH | {"run": {"max_epochs": 1.0}, "name": "other"})).warnings
    assert any("source qa has tokens for a share of at most 0.453 in 1 passes" in line for line in said)


def test_a_source_with_passes_of_its_own_is_held_to_them(root):
    run = {"max_epochs": None, "max_epochs_by_source": {"qa": 2.0}}
    config = settings(root, **BOTH | {"run": run})
    caps = share_caps(config, PackedInfo.read(root, "tiny"), config.cells[0])
    assert caps == {"natural": 1.0, "hq": 1.0, "qa": 118 / 128}
    assert any("0.922 in 2 passes" in line for line in plan_search(config).warnings)


def test_the_supply_counts_for_the_rows_that_a_rule_for_batches_gives(root):
    cell = {"model": "12k", "train_tokens": 4096 + 5 * 32}
    run = {"max_epochs": 1.0, "batch_rule": "step_law"}
    config = settings(root, **BOTH | {"run": run, "cells": [cell]})
    packed = PackedInfo.read(root, "tiny")
    caps = share_caps(config, packed, config.cells[0])
    most = trial_run(config, packed, config.cells[0], Choice((caps["hq"], 0.0)))
    rows = most.num_steps * most.rows_per_step
    assert rows > 128  # steps of fewer than 8 rows: less of the budget is rounded away
    assert caps["hq"] == 118 / rows
    check_search(config, packed)


def test_a_best_share_that_tokens_limit_says_so(root):
    def more_is_better(run, **ignored):
        return record_of(run, 4.0 - run.mixture.get("hq", 0.0))

    config = settings(
        root, synthetic="hq", cells=[{"model": "12k", "train_tokens": 6144}], run={"max_epochs": 1.0}
    )
    search_all(config, train=more_is_better)
    found = optimum_of(config, "12k-6144")
    assert found.best_share.value == 119 / 192
    assert any(
        "the best share of hq is all its tokens allow, 0.62: generate more" in line for line in found.warnings
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"synthetic": ["hq", "hq"]}, "names a source twice"),
        ({"synthetic": list("abcdef")}, "names 6 sources, and a search takes 5 at most"),
        ({"synthetic": []}, "at least 1 item"),
    ],
)
def test_sources_that_cannot_be_searched_together_are_refused(root, changes, says):
    with pytest.raises(ValidationError, match=says):
        settings(root, **changes)


def test_too_few_trials_to_begin_with_are_refused(root):
    with pytest.raises(
        UserError, match="trials_per_cell = 3 is less than the 4 trials a search of 2 sources starts with"
    ):
        plan_search(settings(root, **BOTH | {"trials_per_cell": 3}))


def test_a_grid_with_fewer_trials_than_corners_is_refused(tmp_path):
    write_packed_set(tmp_path, sources={"natural": 200, "a": 200, "b": 200, "c": 200})
    asked = settings(tmp_path, synthetic=["a", "b", "c"], method="grid", trials_per_cell=3, cells=[SMALL])
    with pytest.raises(UserError, match="less than the 4 trials a search of 3 sources starts with"):
        plan_search(asked)


def test_one_name_is_a_list_of_one(root):
    assert settings(root, synthetic="hq").synthetic == ("hq",)
    assert settings(root, synthetic="hq").identity() == settings(root, synthetic=["hq"]).identity()


def test_the_points_of_a_space():
    space = MixtureSpace((0.1, 0.6), (0.5, 1.0), 4)
    assert {tuple(point) for point in space.points} == {
        (0.0, 0.25), (0.0, 0.5), (0.25, 0.0), (0.25, 0.25), (0.5, 0.0), (0.0, 0.6)
    }  # fmt: skip
    assert len(MixtureSpace(caps=(1.0, 1.0)).points) == 25 * 26 // 2
    assert len(MixtureSpace(caps=(1.0,) * 5).points) == 462
    points = MixtureSpace(caps=(1.0, 1.0), steps=3).points
    beside = {tuple(points[i]) for i in neighbours(points)[4]}
    assert tuple(points[4]) == (1 / 3, 0)
    assert beside == {(1 / 3, 0), (0, 0), (2 / 3, 0), (1 / 3, 1 / 3), (0, 1 / 3)}
    assert distance(np.array([[0.0, 0.0], [0.5, 0.25]]), np.array([0.25, 0.5])).tolist() == [0.75, 0.25]


# --- seeds -----------------------------------------------------------------------------------------------------


def test_shares_that_noise_alone_tells_apart_are_repeated_with_the_same_seeds(root):
    config = settings(root, synthetic="hq", trials_per_cell=14, max_seeds=3, cells=[SMALL], seed=7)

    def flat(run):
        return train(run, best=0.4, depth=0.02, noise=0.004, of_the_seed=0.05)

    search_all(config, train=flat)
    trials = optimum_of(config, "12k-4096").trials
    by_seed = {k: {trial.share for trial in trials if trial.replicate == k} for k in range(3)}
    assert len(trials) == 14
    assert len(by_seed[1]) >= 3
    assert by_seed[1] <= by_seed[0]
    assert by_seed[2] <= by_seed[0]


def test_without_further_seeds_no_share_is_repeated(root):
    config = settings(root, synthetic="hq", trials_per_cell=12, cells=[SMALL])
    search_all(config, best=0.4)
    trials = optimum_of(config, "12k-4096").trials
    assert {trial.replicate for trial in trials} == {0}
    assert len({trial.share for trial in trials}) == 12


def test_a_seeds_offset_falls_out_of_the_comparison():
    """Five shares with two seeds, of which the second is 0.03 nats worse for all: as if there were no such offset."""
    shares = np.array([0.0, 0.25, 0.5, 0.75, 1.0] * 2)
    points = MixtureSpace().points
    at = np.array([np.abs(points[:, 0] - share).argmin() for share in shares])
    noise = 0.003 * np.random.default_rng(5).standard_normal(10)
    seeds = np.repeat([0, 1], 5)
    bare = 3.0 + 0.2 * (shares - 0.4) ** 2 + noise

    def spread(losses, seeds):
        return fit_surface(points, Losses(at, losses, seeds, np.zeros(10))).minima.std()

    offset = 0.03 * seeds
    assert spread(bare + offset, seeds) < 1.5 * spread(bare, seeds)
    assert spread(bare + offset, seeds) < 0.5 * spread(bare + offset, 0 * seeds)


# --- what cells learn from one another -------------------------------------------------------------------------


def cell_at(log_budget, best, shares=(0.0, 1 / 3, 2 / 3, 1.0, 0.25, 0.5), level=3.0):
    shares = np.array(shares)
    losses = (level - 0.1 * log_budget) * np.exp(0.1 * (shares - best) ** 2)
    return Donor(0.0, log_budget, shares[:, None], np.zeros(len(shares)), losses)


def test_a_drift_of_the_best_share_is_carried_on():
    points = MixtureSpace().points
    donors = [cell_at(-1.0, 0.4), cell_at(-2.0, 0.5)]
    transfer = fit_transfer(points, donors)
    assert points[transfer.best_index, 0] == pytest.approx(0.3, abs=0.05)
    alone = fit_transfer(points, donors[:1])
    assert points[alone.best_index, 0] == pytest.approx(0.4, abs=0.03)


def test_too_few_losses_say_nothing_of_another_cell():
    assert fit_transfer(MixtureSpace().points, [cell_at(-1.0, 0.4, shares=(0.0, 0.5, 1.0))]) is None


def test_a_prior_that_is_right_narrows_and_one_that_is_wrong_is_overruled():
    points = MixtureSpace().points
    shares = np.array([0.0, 1 / 3, 2 / 3, 1.0])
    at = np.array([np.abs(points[:, 0] - share).argmin() for share in shares])
    losses = Losses(at, 3.0 + 0.3 * (shares - 0.4) ** 2, np.zeros(4, dtype=int), np.zeros(4))
    right, wrong = (fit_transfer(points, [cell_at(-1.0, best)]).prior(losses) for best in (0.4, 0.9))
    bare, helped, misled = (fit_surface(points, losses, prior) for prior in (None, right, wrong))
    assert helped.minima.std() < 0.8 * bare.minima.std()
    assert misled.points[misled.best_index, 0] == pytest.approx(0.4, abs=0.05)


# --- budgets ---------------------------------------------------------------------------------------------------


def test_the_tokens_of_a_search_are_limited(root):
    config = settings(root, synthetic="hq", max_tokens=4 * (4096 + 8192) + 2 * 4096 + 8192)
    search, trained = search_all(config)
    assert {name: len(cell.trials) for name, cell in search.cells.items()} == {"12k-4096": 6, "25k-8192": 5}
    assert len(trained) == 11
    assert plan_search(config).facts["tokens at most"] == 0
    fresh = plan_search(settings(root, synthetic="hq", name="fresh", max_tokens=66_000)).facts
    assert fresh["tokens at most"] <= 66_000
    assert fresh["trials at most by cell"] == "12k-4096 6, 25k-8192 5"


def test_records_of_any_origin_count(root):
    config = settings(root, **BOTH)
    packed = PackedInfo.read(root, "tiny")
    cell = order_cells(config, packed)[0]
    run = ShareSearch(config, packed, ask=None)._trial(cell, Choice((4 / 12, 4 / 12))).run
    write_record(root, train_both(run))
    _, trained = search_all(config, train=train_both)
    assert run.run_id not in trained
    assert len(trained) == 11


# --- the sampler -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_sources", [1, 2])
def test_optuna_samples_what_is_proposed_and_leaves_the_seed_alone(num_sources):
    sources = ("hq", "qa")[:num_sources]
    space = MixtureSpace(caps=(1.0,) * num_sources, steps=12)
    at = np.array([space.index(shares) for shares in space.lattice(3)], dtype=np.intp)
    values = 3.0 + 0.3 * ((space.points[at] - 0.3) ** 2).sum(axis=1)
    known = Question(space, Losses(at, values, np.zeros(len(at), dtype=int), np.zeros(len(at))), ())
    study = optuna.create_study(sampler=SurfaceSampler(sources, 3, known))
    trials = [study.ask(search_space(sources, 3)) for _ in range(2)]  # both in training at once
    places = [space.index([trial.params[name] for name in sources]) for trial in trials]
    assert places == [propose(known, []), propose(known, places[:1])]
    assert [trial.params[REPLICATE] for trial in trials] == [0, 0]
