"""How many tokens the search of the share needs, against a full grid: on real small runs, and on their replayed table.

    python benchmarks/share_search.py [--model 25k] [--tokens 131072 262144] [--root DIR] [--out FILE.json]

Three corpora of docstrings stand for a natural source and two synthetic ones; the held-out documents of all three are
the evaluation, so that the best mixture is one of all three. Two studies: one source, shares of 1/16, in cells of two
budgets, the second of which learns from the first; two sources together, a simplex lattice of 1/5. For each

* the grid trains every mixture (`search_mixture` with method = "grid"): the reference;
* the search trains its own runs from nothing, on real lanes with Ray Tune and Optuna: it reads a copy of the packed set
  under another name, so that none of the grid's runs is its own;
* the grid's records are replayed as objectives through the same search, one for each way of weighing the three
  corpora's held-out losses: same ask, same settle, no training.

`excess` is the grid's loss at the share found, over the lowest loss of the grid, less 1. As a comparison the lowest
single loss of an evenly spaced lattice of no more runs is given. --root keeps what was built and trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

sys.path.insert(0, str(Path(__file__).parents[1]))

from synth.config import CorpusConfig
from synth.identity import provenance
from synth.job import build_corpus
from synth.storage import read_json
from train.config import PackConfig
from train.job import pack_tokens
from train.lanes.job import Lanes
from train.placement import TrainPlacement
from train.record import RunRecord, read_record
from train.tokens import PackedInfo
from tune.cells import CellSearch, cell_directory, choice_of, trial_run
from tune.config import SearchConfig
from tune.job import ask_optuna, search_mixture
from tune.results import CellOptimum
from tune.search import BEST_FILE, ShareSearch, cells_of

CORPORA = {"natural": ["scipy"], "first": ["stdlib"], "second": ["pandas"]}
LANES = TrainPlacement(lanes=2)
TARGET_EXCESS, TARGET_TOKENS = 0.005, 0.4
RUN = {
    "rows_per_step": 8,
    "precision": "fp32",
    "max_epochs": 8.0,
    "optimizer": {"peak_learning_rate": 4e-3},
}


def build(root: str) -> None:
    """Build the corpora and the packed set under a root."""
    for name, packages in CORPORA.items():
        build_corpus(
            CorpusConfig.model_validate(
                {
                    "root": root,
                    "name": name,
                    "sources": [{"kind": "docstrings", "packages": packages}],
                    "max_documents": 600,
                    "held_out_fraction": 0.1,
                }
            )
        )
    pack_tokens(
        PackConfig.model_validate(
            {
                "root": root,
                "tokenizer": {"kind": "train", "vocab_size": 1024},
                "sequence_length": 128,
                "evaluate_on": list(CORPORA),
                "sources": {name: {"corpus": name} for name in CORPORA},
                "max_evaluation_tokens_per_domain": 16_384,
            }
        )
    )


def studies(model: str, budgets: list[int]) -> dict[str, dict[str, Any]]:
    """Return by name what the grid and the search of a study have in common, and how many trials each may spend."""
    cells = [{"model": model, "train_tokens": each} for each in budgets]
    return {
        "one source": {"synthetic": ["first"], "steps": 16, "cells": cells, "grid": 17, "search": 6},
        "two sources": {"synthetic": ["first", "second"], "steps": 5, "cells": cells[:1], "grid": 21, "search": 8},
    }  # fmt: skip


def config_of(root: str, study: dict[str, Any], method: str, name: str) -> SearchConfig:
    """Return the configuration of a study's grid or search; each reads its own copy of the packed set."""
    common = {key: study[key] for key in ("synthetic", "steps", "cells")}
    trials = study["grid" if method == "grid" else "search"]
    placement = {"lanes": 2, "concurrent_trials": 3}
    return SearchConfig.model_validate(
        common
        | {
            "root": root,
            "name": name,
            "method": method,
            "trials_per_cell": trials,
            "run": RUN,
            "placement": placement,
        }
    )


def optima(config: SearchConfig) -> dict[str, CellOptimum]:
    """Return what a search found, by cell."""
    cells = cells_of(config, PackedInfo.read(config.root, config.packed))
    return {
        cell.name: CellOptimum.model_validate(read_json(cell_directory(config, cell.name) / BEST_FILE))
        for cell in cells
    }


def found_shares(config: SearchConfig, optimum: CellOptimum) -> tuple[float, ...]:
    """Return the best mixture of a cell."""
    several = tuple(
        optimum.best_shares[name].value for name in config.synthetic if name in optimum.best_shares
    )
    return several or (optimum.best_share.value,)


# --- a recorded grid as an objective ---------------------------------------------------------------------------


class Table:
    """The records of a grid's runs, and losses for a way of weighing the held-out corpora."""

    def __init__(self, grid: SearchConfig) -> None:
        found = optima(grid)
        self.records = {
            name: {
                choice_of(grid, trial).shares: _record(grid.root, trial.run_id) for trial in optimum.trials
            }
            for name, optimum in found.items()
        }
        domains = next(iter(next(iter(self.records.values())).values())).final.domains  # type: ignore[union-attr]
        self.domains = tuple(sorted(domains))

    def losses(self, cell: str, domains: tuple[str, ...]) -> dict[tuple[float, ...], float]:
        """Return the mean loss over some held-out domains of every mixture of a cell, nats per token."""
        return {shares: _loss_on(record, domains) for shares, record in self.records[cell].items()}

    def objectives(self) -> Iterator[tuple[str, ...]]:
        """Yield every set of held-out domains."""
        for count in range(1, len(self.domains) + 1):
            yield from itertools.combinations(self.domains, count)


def _record(root: str, run_id: str) -> RunRecord:
    record = read_record(root, run_id)
    assert record is not None
    return record


def _loss_on(record: RunRecord, domains: tuple[str, ...]) -> float:
    assert record.final is not None
    return sum(record.final.domains[name].loss_nats_per_token for name in domains) / len(domains)


def replay(config: SearchConfig, table: Table, domains: tuple[str, ...]) -> ShareSearch:
    """Run a search whose losses are read from a table; return it when it is over."""
    search = ShareSearch(config, PackedInfo.read(config.root, config.packed), ask_optuna)
    while not search.over:
        trial = search.take()
        assert trial is not None
        record = table.records[trial.cell][trial.choice.shares]
        assert record.final is not None
        final = record.final.model_copy(update={"loss_nats_per_token": _loss_on(record, domains)})
        search.settle(trial, record.model_copy(update={"final": final}))
    return search


# --- figures ---------------------------------------------------------------------------------------------------


def compare(
    config: SearchConfig, cell: CellSearch, optimum: CellOptimum, grid: dict[tuple[float, ...], float]
) -> dict[str, Any]:
    """Return what a search found in a cell beside what the grid says."""
    best = min(grid.values())
    shares = found_shares(config, optimum)
    losses = {each: grid[each] for each in _even(cell, len(optimum.trials))}
    return {
        "cell": cell.name,
        "found": shares,
        "interval": [optimum.best_share.low, optimum.best_share.high],
        "grid_best": min(grid, key=lambda each: grid[each]),
        "excess": grid[shares] / best - 1.0,
        "tokens_fraction": len(optimum.trials) / len(grid),
        "excess_of_even_lattice": min(losses.values()) / best - 1.0,
        "grid_loss_range": max(grid.values()) / best - 1.0,
    }


def _even(cell: CellSearch, count: int) -> tuple[tuple[float, ...], ...]:
    lattices = [cell.space.lattice(parts) for parts in range(1, count)]
    return max((each for each in lattices if len(each) <= count), key=len)


def measure_study(root: Path, name: str, study: dict[str, Any], lanes: tuple[Lanes, Lanes]) -> dict[str, Any]:
    """Train grid and search of one study and replay the grid; return the figures."""
    slug = name.replace(" ", "-")
    grid = config_of(str(root / "grid"), study, "grid", f"{slug}-grid")
    search = config_of(str(root / "search"), study, "adaptive", slug)
    began = time.perf_counter()
    search_mixture(grid, lanes[0])
    trained = time.perf_counter()
    search_mixture(search, lanes[1])
    done = time.perf_counter()
    table, everything = Table(grid), tuple(sorted(Table(grid).domains))
    measured, found = optima(grid), optima(search)
    packed = PackedInfo.read(search.root, search.packed)
    cells = {cell.name: cell for cell in cells_of(search, packed)}
    real, equal = [], True
    for cell, optimum in found.items():
        losses = {
            choice_of(grid, trial).shares: trial.loss_nats_per_token or 0.0 for trial in measured[cell].trials
        }
        real.append(compare(search, cells[cell], optimum, losses))
        equal &= all(losses[choice_of(search, t).shares] == t.loss_nats_per_token for t in optimum.trials)
    replays = []
    for number, domains in enumerate(table.objectives()):
        config = search.model_copy(update={"root": str(root / "replay"), "name": f"{slug}-{number}"})
        over = replay(config, table, domains)
        replays += [
            {"held_out": list(domains)}
            | compare(config, cell, cell.optimum, table.losses(cell.name, domains))
            for cell in over.cells.values()
            if cell.optimum is not None
        ]
    return {
        "grid_seconds": trained - began,
        "search_seconds": done - trained,
        "losses_equal_those_of_the_grid": equal,
        "held_out": list(everything),
        "tokens_of_a_grid_run": [
            trial_run(grid, packed, cells[cell].cell, choice_of(grid, measured[cell].trials[0])).train_tokens
            for cell in cells
        ],
        "real": real,
        "replayed": replays,
        "worst_excess": max(each["excess"] for each in (*real, *replays)),
        "worst_excess_of_even_lattice": max(each["excess_of_even_lattice"] for each in (*real, *replays)),
        "most_tokens_fraction": max(each["tokens_fraction"] for each in (*real, *replays)),
    }


def measure(root: Path, model: str, budgets: list[int]) -> dict[str, Any]:
    """Return the figures of both studies, with machine and versions."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        build(str(root / "grid"))
        for other in ("search", "replay"):
            shutil.copytree(root / "grid" / "packed", root / other / "packed", dirs_exist_ok=True)
        plans = studies(model, budgets)
        with Lanes(str(root / "grid"), LANES) as first, Lanes(str(root / "search"), LANES) as second:
            found = {name: measure_study(root, name, each, (first, second)) for name, each in plans.items()}
    finally:
        ray.shutdown()
    reached = {
        name: study["worst_excess"] <= TARGET_EXCESS and study["most_tokens_fraction"] <= TARGET_TOKENS
        for name, study in found.items()
    }
    return {
        "target": {"excess": TARGET_EXCESS, "tokens_fraction": TARGET_TOKENS, "reached": reached},
        "model": model,
        "budgets": budgets,
        "studies": found,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version()} | provenance()["packages"],
    }


def main() -> None:
    """Measure and print the result as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="25k", help="size by name")
    parser.add_argument("--tokens", type=int, nargs="+", default=[131_072, 262_144], help="budgets, tokens")
    parser.add_argument("--root", type=Path, help="keep corpora and runs here")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        result = json.dumps(
            measure((options.root or Path(fresh)).absolute(), options.model, options.tokens), indent=2
        )
    print(result)
    if options.out:
        options.out.write_text(result + "\n")


if __name__ == "__main__":
    main()
