"""The search of the share against tables of losses: the objectives of `share_search.py`. Nothing is trained here.

An objective is what a run of each mixture measures (`losses`) and, kept from the search, what the mixture is worth
(`worth`). Two kinds:

* *simulated*: surfaces of the two published kinds of mixing law, exponential (Ye et al. 2024, arXiv 2403.16952) and
  power (Ge et al. 2024, arXiv 2405.14908), one held-out domain for each source, weighed at random, their coefficients
  drawn at random; the losses over the mixtures differ by 2 to 12 %. Worth is the surface itself; a run measures it
  with normal noise of 0.1 to 0.4 %, about what was measured (`seed_noise` in the results).
* *recorded*: the runs of a grid under several seeds, each set of held-out domains an objective. A run measures what it
  did with one seed; worth is the mean over the other seeds, which has that seed's luck not in it. With one seed
  nothing says what mixtures are worth.

The lowest of many noisy losses is lower than any of them is worth, so `excess_over_the_lowest_loss`, the grid's loss at
the mixture found over the grid's lowest single loss, is above 0 even for the best mixture: see its own row. `excess`
is the same by what mixtures are worth.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.packed_files import ShardInfo
from train.record import DomainLoss, Evaluation, RunRecord
from train.tokens import PackedInfo, SourceInfo
from tune.cells import CellSearch, cell_name, choice_of
from tune.config import Cell, SearchConfig
from tune.job import ask_optuna
from tune.mixture_space import MixtureSpace, with_natural
from tune.results import CellOptimum
from tune.search import ShareSearch
from tune.surface import Losses, fit_surface

Shares = tuple[float, ...]
RUN_COLUMNS = ("study", "model", "train_tokens", "seed", "first", "second")
DOMAIN = "loss_on_"
"""How the columns of held-out losses begin in a table of runs."""
NOISES = (0.001, 0.002, 0.004)
"""Standard deviations of a simulated run's loss, as a part of it."""
LEAST_RANGE, MOST_RANGE = 0.02, 0.12
"""How far losses over the mixtures of a simulated cell lie apart, as a part of the lowest."""
WITHIN = 0.005


@dataclass(frozen=True)
class Table:
    """One cell of an objective."""

    losses: dict[Shares, float]
    """What a run of each mixture measures, nats per token."""
    worth: dict[Shares, float] | None
    """What it is judged by, nats per token; null where one seed is all there is."""

    @property
    def best(self) -> Shares:
        """The mixture that is worth most, or else has the lowest loss."""
        known = self.losses if self.worth is None else self.worth
        return min(known, key=known.__getitem__)


Objective = dict[str, Table]
"""By the name of the cell."""


@dataclass(frozen=True)
class Run:
    """One recorded run of a grid."""

    cell: Cell
    seed: int
    shares: Shares
    losses: dict[str, float]
    """By held-out domain, nats per token."""


# --- simulated -------------------------------------------------------------------------------------------------


def simulated(space: MixtureSpace, cell: str, count: int) -> Iterator[Objective]:
    """Yield objectives of one cell; the number of each decides it."""
    weights = with_natural(space.points)
    keys = [tuple(map(float, point)) for point in space.points]
    for number in range(count):
        random = np.random.default_rng(number)
        surface = sum(
            weight * _domain(random, weights, domain, exponential=number % 2 == 0)
            for domain, weight in enumerate(random.dirichlet(np.full(weights.shape[1], 2.0)))
        )
        width = np.exp(random.uniform(np.log(LEAST_RANGE), np.log(MOST_RANGE)))
        worth = random.uniform(2.5, 5.5) * (1.0 + width * (surface - surface.min()) / np.ptp(surface))
        measured = worth * (1.0 + NOISES[number % len(NOISES)] * random.standard_normal(len(worth)))
        yield {cell: Table(dict(zip(keys, measured, strict=True)), dict(zip(keys, worth, strict=True)))}


def _domain(random: np.random.Generator, weights: Any, domain: int, *, exponential: bool) -> Any:
    """Return the loss on one source's held-out text; the other sources help a little, or harm."""
    others = weights.shape[1]
    if exponential:
        slopes = random.uniform(-0.3, 1.0, others)
        slopes[domain] = random.uniform(2.0, 6.0)
        return random.uniform(2.0, 3.5) + random.uniform(0.3, 0.9) * np.exp(-weights @ slopes)
    helps = random.uniform(0.02, 0.25, others)
    helps[domain] = 1.0
    return random.uniform(1.5, 2.5) * (weights @ helps) ** -random.uniform(0.08, 0.25)


# --- recorded --------------------------------------------------------------------------------------------------


def read_runs(path: Path, study: str) -> list[Run]:
    """Return the recorded runs of a study."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["study"] == study]
    return [
        Run(
            cell=Cell(model=row["model"], train_tokens=int(row["train_tokens"])),
            seed=int(row["seed"]),
            shares=tuple(float(row[name]) for name in ("first", "second") if row[name]),
            losses={name.removeprefix(DOMAIN): float(row[name]) for name in row if name.startswith(DOMAIN)},
        )
        for row in rows
    ]


def write_runs(path: Path, studies: Mapping[str, list[Run]]) -> None:
    """Write recorded runs as a plain table, what `read_runs` reads."""
    domains = sorted({name for runs in studies.values() for run in runs for name in run.losses})
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*RUN_COLUMNS, *(DOMAIN + name for name in domains)])
        for study, runs in studies.items():
            for run in sorted(runs, key=lambda each: (each.cell.train_tokens, each.seed, each.shares)):
                first, second = [*run.shares, ""][:2]
                losses = [run.losses[name] for name in domains]
                cell = run.cell
                table.writerow([study, cell.model, cell.train_tokens, run.seed, first, second, *losses])


def recorded(runs: list[Run]) -> Iterator[Objective]:
    """Yield an objective for each seed and each set of held-out domains."""
    seeds = sorted({run.seed for run in runs})
    domains = sorted(runs[0].losses)
    sets = [some for size in range(1, len(domains) + 1) for some in itertools.combinations(domains, size)]
    for seed, some in itertools.product(seeds, sets):
        yield {cell_name(cell): table_of(runs, cell, seed, some) for cell in cells_among(runs)}


def cells_among(runs: list[Run]) -> list[Cell]:
    """Return the cells of recorded runs."""
    return list({cell_name(run.cell): run.cell for run in runs}.values())


def table_of(runs: list[Run], cell: Cell, seed: int, domains: tuple[str, ...]) -> Table:
    """Return what one seed measured in a cell, mean over these held-out domains, and what the other seeds say."""
    losses: dict[Shares, float] = {}
    others: dict[Shares, list[float]] = {}
    for run in runs:
        if run.cell == cell:
            loss = sum(run.losses[name] for name in domains) / len(domains)
            if run.seed == seed:
                losses[run.shares] = loss
            else:
                others.setdefault(run.shares, []).append(loss)
    return Table(losses, {shares: float(np.mean(others[shares])) for shares in losses} if others else None)


def seed_noise(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Return by cell, as parts of the mean loss over all domains: what is left of a run's loss when the effects of its
    mixture and of its seed are taken out (standard deviation), and how far the mixtures' means lie apart. Nothing for a
    cell with one seed."""
    found = {}
    for cell in cells_among(runs):
        of_cell = sorted((run for run in runs if run.cell == cell), key=lambda run: (run.seed, run.shares))
        num_seeds = len({run.seed for run in of_cell})
        if num_seeds < 2:
            continue
        losses = np.array([np.mean(list(run.losses.values())) for run in of_cell]).reshape(num_seeds, -1)
        left = losses - losses.mean(axis=1, keepdims=True) - losses.mean(axis=0) + losses.mean()
        variance = (left**2).sum() / ((num_seeds - 1) * (losses.shape[1] - 1))
        found[cell_name(cell)] = {
            "seeds": num_seeds,
            "noise": float(variance**0.5 / losses.mean()),
            "range_of_the_means": float(np.ptp(losses.mean(axis=0)) / losses.mean()),
        }
    return found


# --- the search, and what it is held against -------------------------------------------------------------------


def described_set(sources: list[str]) -> PackedInfo:
    """Return a packed set that is only described, with more tokens of each source than any run wants."""
    plenty = SourceInfo(
        num_rows=1 << 40,
        num_tokens=(1 << 47) + 1,
        num_documents=1,
        num_bytes=1,
        num_dropped_tokens=0,
        num_altered_documents=0,
        shards=(),
    )
    return PackedInfo(
        hash="described",
        sequence_length=128,
        vocab_size=1024,
        eot_id=0,
        tokenizer_hash="none",
        sources=dict.fromkeys(sources, plenty),
        evaluation={},
        evaluation_shard=ShardInfo(num_tokens=0, sha256=""),
        domains_left_out={},
    )


def replay(config: SearchConfig, packed: PackedInfo, objective: Objective) -> ShareSearch:
    """Run a search whose losses are read from a table; return it when it is over. Same ask, same settle, no training."""
    search = ShareSearch(config, packed, ask_optuna)
    while not search.over:
        trial = search.take()
        assert trial is not None
        search.settle(trial, _record(trial.run.run_id, objective[trial.cell].losses[trial.choice.shares]))
    return search


def _record(run_id: str, loss: float) -> RunRecord:
    domain = DomainLoss(loss_nats_per_token=loss, bits_per_byte=1.0, tokens=1, bytes=1)
    final = Evaluation(
        train_tokens=0,
        domains={"all": domain},
        loss_nats_per_token=loss,
        macro_loss_nats_per_token=loss,
        bits_per_byte=1.0,
    )
    read: dict[str, Any] = {"run_id": run_id, "status": "complete", "final": final}  # all a search reads
    return RunRecord.model_construct(**read)


def found_shares(config: SearchConfig, optimum: CellOptimum) -> Shares:
    """Return the best mixture of a cell."""
    several = tuple(
        optimum.best_shares[name].value for name in config.synthetic if name in optimum.best_shares
    )
    return several or (optimum.best_share.value,)


def answers(
    config: SearchConfig, cell: CellSearch, optimum: CellOptimum, table: Table, number: int
) -> dict[str, Shares]:
    """Return by method the mixture that it takes for the best of a table, each with as many runs as the search had."""
    measured, count = table.losses, len(optimum.trials)
    every, even = tuple(measured), even_lattice(cell.space, count)
    drawn = np.random.default_rng(number).permutation(len(every))[:count]
    return {
        "search": found_shares(config, optimum),
        "the search's runs, lowest loss": _luckiest(config, optimum),
        "even lattice, lowest loss": min(even, key=measured.__getitem__),
        "even lattice, same fit": _fitted(cell.space, measured, even),
        "random, lowest loss": min((every[i] for i in drawn), key=measured.__getitem__),
        "whole grid, lowest loss": min(every, key=measured.__getitem__),
        "the best mixture itself": table.best,
    }


def _luckiest(config: SearchConfig, optimum: CellOptimum) -> Shares:
    losses = {
        choice_of(config, each).shares: each.loss_nats_per_token
        for each in optimum.trials
        if each.loss_nats_per_token is not None
    }
    return min(losses, key=losses.__getitem__)


def even_lattice(space: MixtureSpace, count: int) -> tuple[Shares, ...]:
    """Return the finest simplex lattice of no more mixtures than this."""
    lattices = [space.lattice(parts) for parts in range(1, count)]
    return max((each for each in lattices if len(each) <= count), key=len)


def _fitted(space: MixtureSpace, measured: Mapping[Shares, float], tried: tuple[Shares, ...]) -> Shares:
    at = np.array([space.index(shares) for shares in tried], dtype=np.intp)
    values = np.array([measured[shares] for shares in tried])
    surface = fit_surface(space.points, Losses(at, values, 0 * at, np.zeros(len(at))))
    return tuple(map(float, surface.points[surface.best_index]))


def judge(objectives: Iterator[Objective], search: Callable[[int], SearchConfig]) -> dict[str, Any]:
    """Replay every objective through a search of its own; return how far each method is off, over all cells."""
    off: dict[str, dict[str, list[float]]] = {}
    fractions, held = [], []
    for number, objective in enumerate(objectives):
        config = search(number)
        over = replay(config, described_set([config.natural, *config.synthetic]), objective)
        for name, cell in over.cells.items():
            assert cell.optimum is not None
            table = objective[name]
            fractions.append(len(cell.optimum.trials) / len(table.losses))
            held += _held(config, cell.optimum, table.best)
            for key, by_method in excesses(table, answers(config, cell, cell.optimum, table, number)).items():
                for method, excess in by_method.items():
                    off.setdefault(key, {}).setdefault(method, []).append(excess)
    return {
        "cells": len(fractions),
        "most_tokens_fraction": max(fractions),
        "mean_width_of_the_intervals": float(np.mean([width for width, _ in held])),
        "intervals_that_hold_the_best_share": float(np.mean([inside for _, inside in held])),
    } | {key: {method: _summary(values) for method, values in each.items()} for key, each in off.items()}


def _held(config: SearchConfig, optimum: CellOptimum, best: Shares) -> list[tuple[float, bool]]:
    intervals = [optimum.best_shares[name] for name in config.synthetic if name in optimum.best_shares]
    found = []
    for interval, share in zip(intervals or [optimum.best_share], best, strict=True):
        low, high = interval.low or 0.0, interval.high or 0.0
        found.append((high - low, low - 1e-9 <= share <= high + 1e-9))
    return found


def excesses(table: Table, chosen: Mapping[str, Shares]) -> dict[str, dict[str, float]]:
    """Return by method how much more its mixture loses than the best, by the grid's own losses and by worth if known."""
    of = {"excess_over_the_lowest_loss": table.losses} | ({"excess": table.worth} if table.worth else {})
    return {
        key: {method: known[shares] / min(known.values()) - 1.0 for method, shares in chosen.items()}
        for key, known in of.items()
    }


def _summary(values: list[float]) -> dict[str, float]:
    figures: dict[str, Any] = {
        "mean": np.mean(values),
        "median": np.median(values),
        "p90": np.quantile(values, 0.9),
        "worst": max(values),
        "within_half_a_percent": np.mean(np.array(values) <= WITHIN),
    }
    return {name: round(float(value), 6) for name, value in figures.items()}
