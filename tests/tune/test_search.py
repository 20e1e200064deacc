"""The search of the share: what it tries, that nothing but records decides it, and what it leaves on disk."""

from __future__ import annotations

import random

import numpy as np
import pytest

from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from synth.identity import finish, is_finished
from synth.storage import read_json
from tests.assets.packed_set import write_packed_set
from train.flops import count_parameters
from train.placement import TrainPlacement
from train.record import DomainLoss, Evaluation, RunRecord, read_record, run_directory, write_record
from train.tokens import PackedInfo
from tune.cells import Choice, cell_directory, cell_name, order_cells, search_directory
from tune.config import SearchConfig
from tune.mixture_space import MixtureSpace
from tune.results import CellOptimum
from tune.rounds import SPACING, Question, first_choices, propose
from tune.search import BEST_FILE, TRIALS_FILE, ShareSearch, claim_search
from tune.search_plan import check_search, plan_search
from tune.surface import Losses

SMALL, LARGE = {"model": "12k", "train_tokens": 4096}, {"model": "25k", "train_tokens": 8192}


def settings(root, **changes):
    return SearchConfig.model_validate(
        {
            "root": str(root),
            "packed": "tiny",
            "synthetic": "synthetic",
            "cells": [LARGE, SMALL],
            "run": {"max_epochs": None},
        }
        | changes
    )


def ask(config, question, first, count):
    """Choose the next round as the job's Optuna study does, without Optuna."""
    chosen = list(first)
    while len(chosen) < count:
        pending = [question.space.index(each.shares) for each in chosen]
        chosen.append(Choice(tuple(map(float, question.space.points[propose(question, pending)]))))
    return tuple(chosen)


def record_of(run, loss=None, status="complete"):
    counts = count_parameters(run.model, 64)
    final = None
    if status == "complete":
        domain = DomainLoss(loss_nats_per_token=loss, bits_per_byte=1.0, tokens=10, bytes=40)
        final = Evaluation(train_tokens=run.train_tokens, domains={"web": domain}, loss_nats_per_token=loss,
                           macro_loss_nats_per_token=loss, bits_per_byte=1.0)  # fmt: skip
    return RunRecord(
        run_id=run.run_id, config=run, status=status, reason=None if status == "complete" else "loss is not finite at step 7",
        num_params_non_embedding=counts.non_embedding, num_params_total=counts.total, train_tokens=run.train_tokens,
        train_flops_6nd=1.0, train_flops=1.0, sources={}, final=final, peak_learning_rate=1e-3, wall_seconds=1.0,
        device_seconds=1.0, tokens_per_second=1.0, placement=TrainPlacement(), provenance={},
    )  # fmt: skip


def train(run, best=0.3, diverges=(), noise=0.003, of_the_seed=0.0, depth=0.4):
    """Return the record of a run whose loss is smallest at `best`, with noise of its own and an offset of its seed's."""
    share = run.mixture.get("synthetic", 0.0)
    if share in diverges:
        return record_of(run, status="diverged")
    noise = noise * np.random.default_rng(int(run.run_id, 16) % 2**32).standard_normal()
    noise += of_the_seed * np.random.default_rng(run.seed).standard_normal()
    return record_of(run, 3.0 + 1e4 / run.train_tokens**1.2 + depth * (share - best) ** 2 + noise)


def search_all(config, order=None, kill_after=None, train=train, **truth):
    """Run a search to its end, up to four trials in flight that end in a shuffled order; return the search.

    `kill_after` stops it after so many trials, in the middle of everything.
    """
    packed = PackedInfo.read(config.root, config.packed)
    claim_search(config, packed)
    search = ShareSearch(config, packed, ask)
    shuffle = random.Random(order)
    in_flight, trained = [], []
    while not search.over:
        while len(in_flight) < 4 and (trial := search.take()) is not None:
            in_flight.append(trial)
        trial = in_flight.pop(shuffle.randrange(len(in_flight)) if order is not None else 0)
        write_record(config.root, train(trial.run, **truth))
        trained.append(trial.run.run_id)
        if kill_after is not None and len(trained) == kill_after:
            return search, trained
        search.settle(trial, read_record(config.root, trial.run.run_id))
    return search, trained


def files_of(config):
    return {
        (cell.name, name): (cell_directory(config, cell.name) / name).read_bytes()
        for cell in order_cells(config, PackedInfo.read(config.root, config.packed))
        for name in (TRIALS_FILE, BEST_FILE)
    }


def optimum_of(config, cell):
    return CellOptimum.model_validate(read_json(cell_directory(config, cell) / BEST_FILE))


@pytest.fixture
def root(tmp_path):
    write_packed_set(tmp_path)
    return str(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A search run to its end, one trial after the other."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_packed_set(root)
    config = settings(root)
    search_all(config)
    return config


def test_finds_the_best_share_of_each_cell(root):
    config = settings(root, trials_per_cell=8)
    search_all(config)
    for name in ("12k-4096", "25k-8192"):
        found = optimum_of(config, name)
        assert found.best_share.low <= 0.3 <= found.best_share.high
        assert found.best_share.high - found.best_share.low < 0.35
        assert len(found.trials) == 8
        assert found.natural_only_loss == found.trials[0].loss_nats_per_token
        assert found.best_loss.value < found.natural_only_loss
        lines = (cell_directory(config, name) / TRIALS_FILE).read_text().splitlines()
        assert len(lines) == 8


@pytest.mark.parametrize("order", [1, 2])
def test_the_order_in_which_runs_end_changes_nothing(undisturbed, root, order):
    shuffled = settings(root)
    search_all(shuffled, order=order)
    assert files_of(shuffled) == files_of(undisturbed)


@pytest.mark.parametrize("kill_after", [1, 5, 9, 11])
def test_a_killed_search_goes_on_and_ends_the_same(undisturbed, root, kill_after):
    killed = settings(root)
    _, before = search_all(killed, order=kill_after, kill_after=kill_after)
    _, after = search_all(killed, order=kill_after + 1)
    assert not set(before) & set(after)
    assert len(before) + len(after) == 12
    assert files_of(killed) == files_of(undisturbed)


def test_a_finished_cell_is_read_not_searched(undisturbed):
    before = files_of(undisturbed)
    again, trained = search_all(undisturbed)
    assert trained == []
    assert again.over
    assert again.summary()["trials_complete"] == 12
    assert files_of(undisturbed) == before


def test_runs_of_a_grid_are_not_trained_again(root):
    config = settings(root)
    packed = PackedInfo.read(root, "tiny")
    grid = [each for cell in ShareSearch(config, packed, ask).cells.values() for each in cell.trials]
    assert [each.choice.shares for each in grid[:4]] == [(0.0,), (1 / 3,), (2 / 3,), (1.0,)]
    for each in grid:
        write_record(root, train(each.run))
    _, trained = search_all(config)
    assert len(trained) == 12 - len(grid)


def test_a_diverged_run_is_a_trial_with_its_reason_and_no_loss(root):
    config = settings(root, cells=[SMALL])
    search_all(config, diverges=(1.0,))
    found = optimum_of(config, "12k-4096")
    diverged = [trial for trial in found.trials if trial.status == "diverged"]
    assert [(trial.share, trial.loss_nats_per_token, trial.reason) for trial in diverged] == [
        (1.0, None, "loss is not finite at step 7")
    ]
    assert len(found.trials) == 6
    assert any("1 of 6 trials have no loss: share 1 (diverged)" in warning for warning in found.warnings)
    assert all(1.0 - trial.share >= 2 * SPACING for trial in found.trials if trial.status == "complete")


def test_a_cell_without_enough_losses_is_an_error_with_the_reasons_and_the_others_are_kept(root):
    config = settings(root, cells=[SMALL])
    everything = tuple(step / 96 for step in range(1, 97))
    search, _ = search_all(config, diverges=everything)
    assert not (cell_directory(config, "12k-4096") / BEST_FILE).exists()
    with pytest.raises(
        UserError, match=r"12k-4096: 1 of 6 trials are complete .* loss is not finite at step 7"
    ):
        search.check_optima()


def test_stops_when_the_interval_is_narrow(root):
    search, trained = search_all(settings(root, trials_per_cell=10, stop_interval_width=0.3))
    assert len(trained) < 20
    assert search.num_trials == search.num_settled
    for cell in search.cells.values():
        assert cell.optimum.best_share.high - cell.optimum.best_share.low < 0.3


def test_a_dearer_cell_goes_on_where_its_neighbour_found_the_best_share(root):
    config = settings(root, trials_per_round=1)
    search, _ = search_all(config, best=0.45)
    cheap, dear = search.cells["12k-4096"], search.cells["25k-8192"]
    assert (cheap.neighbour, dear.neighbour) == (None, "12k-4096")
    assert dear.trials[4].choice.shares[0] == pytest.approx(cheap.optimum.best_share.value, abs=3 / 96)


def test_cells_share_lanes_from_the_start(root):
    search = ShareSearch(settings(root), PackedInfo.read(root, "tiny"), ask)
    waiting = [trial.cell for trial in iter(search.take, None)]
    assert sorted(waiting) == ["12k-4096"] * 4 + ["25k-8192"] * 4


def test_the_grid_method_spreads_its_trials_evenly(root):
    config = settings(root, method="grid", trials_per_cell=9, cells=[SMALL])
    search_all(config)
    assert [trial.share for trial in optimum_of(config, "12k-4096").trials] == [step / 8 for step in range(9)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0.0, 1 / 3, 2 / 3, 1.0)),
        ({"trials_per_cell": 4}, (0.0, 0.5, 1.0)),
        ({"share_range": (0.0, 0.5)}, (0.0, 1 / 6, 1 / 3, 0.5)),
    ],
)
def test_first_shares_are_the_ends_and_what_lies_evenly_between(tmp_path, changes, expected):
    config = settings(tmp_path, **changes)
    first = first_choices(config, MixtureSpace(config.share_range))
    assert [each.shares[0] for each in first] == pytest.approx(expected)


def question(losses, failed=(), share_range=(0.0, 1.0)):
    """What is known when these losses, by share, are."""
    space = MixtureSpace(share_range)
    at = np.array([space.index((share,)) for share in losses], dtype=np.intp)
    count = len(losses)
    known = Losses(
        at, np.array(list(losses.values()), dtype=float), np.zeros(count, dtype=int), np.zeros(count)
    )
    return Question(space, known, tuple(space.index((share,)) for share in failed))


def share_proposed(asked, pending=()):
    return float(asked.space.points[propose(asked, [asked.space.index((share,)) for share in pending])][0])


def test_proposals_keep_their_distance():
    losses = {0.0: 3.1, 1 / 3: 3.0, 2 / 3: 3.05}
    chosen = share_proposed(question(losses, failed=[1.0]), pending=[0.25])
    assert min(abs(chosen - each) for each in (*losses, 0.25)) >= SPACING - 1e-9
    assert 1.0 - chosen >= 2 * SPACING - 1e-9
    assert share_proposed(question({0.0: 3.1, 1.0: 3.2})) == 0.5  # too few losses: the farthest share


def test_proposals_never_repeat_a_share_even_without_room():
    tried: dict[float, float] = {}
    for _ in range(6):
        share = share_proposed(question(tried, share_range=(0.3, 0.36)))
        assert share not in tried
        tried[share] = 3.0 + share


def test_the_plan_says_what_there_is_to_do(root):
    config = settings(root)
    plan = plan_search(config)
    assert not plan.finished
    assert plan.facts["cells missing"] == 2
    assert plan.facts["trials at most"] == 12
    assert plan.facts["tokens at most"] == 6 * (4096 + 8192)
    assert not search_directory(config).exists()
    search, _ = search_all(config)
    identity = claim_search(config, PackedInfo.read(root, "tiny"))
    finish(search_directory(config), identity, **search.summary())
    assert plan_search(config).finished
    assert is_finished(search_directory(config))
    with pytest.raises(IdentityMismatch, match="seed: there 0, asked for 1"):
        plan_search(settings(root, seed=1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"synthetic": "qa"}, "synthetic: 'qa' is not a source of packed/tiny"),
        ({"natural": "synthetic"}, "natural and synthetic are both 'synthetic'"),
        ({"cells": [SMALL, SMALL]}, "12k-4096 is given more than once"),
        ({"cells": [{"model": "13k", "train_tokens": 4096}]}, "model = '13k' is not a known size"),
        (
            {"cells": [{"model": "12k", "train_tokens": 100}]},
            "train_tokens = 100 is less than one step of 256 tokens",
        ),
        ({"share_range": (0.5, 0.51)}, "12k-4096 has 2 mixtures with a synthetic share of 0.5 to 0.51"),
        (
            {"run": {"max_epochs": 1.0}, "cells": [{"model": "12k", "train_tokens": 20480}]},
            "12k-20480 has 0 mixtures with a synthetic share of 0.689 to 1 that its sources can supply",
        ),
        ({"max_tokens": 10_000}, "max_tokens = 10,000, but what the cells start with takes 49,152 tokens"),
        (
            {"synthetic": ["synthetic", "qa", "hq"], "trials_per_cell": 4},
            "qa. is not a source",
        ),
    ],
)
def test_a_search_that_cannot_be_run_is_refused_in_one_sentence(root, changes, says):
    with pytest.raises(UserError, match=says):
        plan_search(settings(root, **changes))


def test_needs_a_packed_set(tmp_path):
    with pytest.raises(IncompleteArtefact, match="run pack_tokens first"):
        plan_search(settings(tmp_path))


def test_concurrency_and_lanes_are_no_part_of_the_search(root):
    wide = settings(root, placement={"lanes": 4, "concurrent_trials": 3})
    assert wide.identity() == settings(root).identity()
    assert any("lanes will stand idle" in warning for warning in plan_search(wide).warnings)
    few = settings(root, placement={"lanes": 8, "concurrent_trials": 8}, trials_per_round=1)
    assert any("trials_per_round = 1: " in warning for warning in plan_search(few).warnings)
    check_search(wide, PackedInfo.read(root, "tiny"))


def test_cells_are_named_by_size_and_budget():
    assert cell_name(settings("x").cells[0]) == "25k-8192"


def test_a_lost_record_is_trained_again(root):
    config = settings(root, cells=[SMALL])
    _, trained = search_all(config, kill_after=3)
    (run_directory(root, trained[0]) / "record.json").unlink()
    _, after = search_all(config)
    assert trained[0] in after
    assert len(after) == 6 - 3 + 1
