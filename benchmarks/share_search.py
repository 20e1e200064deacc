"""How many tokens the search of the share needs, against full grids: on real small runs, and replayed.

    python benchmarks/share_search.py [--model 25k] [--tokens 131072 262144] [--pairs 12] [--root DIR] [--out FILE.json]
    python benchmarks/share_search.py --replay-only [--out FILE.json]

*Real runs.* Three corpora of docstrings stand for a natural source and two synthetic ones; the held-out documents of all
three are the evaluation, so that the best mixture is one of all three. Two studies, one source with shares of 1/16 and
two sources on a simplex lattice of 1/5, each in cells of two budgets, the second of which learns from the first. For each

* the grid trains every mixture (`search_mixture` with method = "grid"), that of two sources under several seeds;
* the search trains its own runs from nothing, with the grid's first seed, on real lanes with Ray Tune and Optuna: it
  reads a copy of the packed set under another name, so that none of the grid's runs is its own;
* the mixture found and the one with the grid's lowest loss are both trained with further seeds, in pairs of one seed.

Two measures of the mixture found. `excess_over_the_lowest_loss` is the grid's loss there over the lowest loss of the
grid, less 1. The lowest of many noisy losses is lower than its mixture is worth, so it is above 0 even for the best
mixture. `excess_by_further_seeds` is the mean of the pairs' ratios, less 1, with its 95 % interval (Student's t): seeds
that had no part in choosing either mixture.

The grids' runs go into `share_search_runs.csv` beside this script's results.

*Replayed*, without a Ray cluster, in minutes: the same search over simulated cells and over that table
(`share_replay.py` says how they are made and judged), beside an even lattice of no more runs, as many random runs, and
the whole grid. --root keeps what was built and trained, and reuses it; what was not measured stays as it is in the file of --out.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, machine, parser_of, versions
from benchmarks.share_replay import (
    Run,
    Shares,
    answers,
    cells_among,
    excesses,
    judge,
    read_runs,
    recorded,
    seed_noise,
    simulated,
    table_of,
    write_runs,
)
from synth.config import CorpusConfig
from synth.identity import is_finished
from synth.job import build_corpus
from synth.progress import Progress
from synth.storage import read_json, study_path
from train.config import PackConfig
from train.job import pack_tokens
from train.lanes.job import Lanes
from train.placement import TrainPlacement
from train.record import read_record
from train.tokens import PackedInfo
from tune.cells import CellSearch, Choice, cell_directory, cell_name, choice_of, trial_run
from tune.config import SearchConfig
from tune.job import search_mixture
from tune.mixture_space import MixtureSpace
from tune.results import CellOptimum, Interval
from tune.search import BEST_FILE, cells_of

CORPORA = {"natural": ["scipy"], "first": ["stdlib"], "second": ["pandas"]}
LANES = TrainPlacement(lanes=2)
TARGET_EXCESS, TARGET_TOKENS = 0.005, 0.4
STUDIES = ("one source", "two sources")
RUNS_FILE = Path(__file__).parent / "results" / "share_search_runs.csv"
SIMULATED_CELLS = 60
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
    """Return by name what the grid and the search of a study have in common, how many trials each may spend, and under
    how many seeds the grid is trained."""
    cells = [{"model": model, "train_tokens": each} for each in budgets]
    return {
        "one source": {"synthetic": ["first"], "steps": 16, "cells": cells, "grid": 17, "search": 6, "seeds": 1},
        "two sources": {"synthetic": ["first", "second"], "steps": 5, "cells": cells, "grid": 21, "search": 8, "seeds": 3},
    }  # fmt: skip


SIMULATED: dict[str, dict[str, Any]] = {
    "one source": {"synthetic": ["first"], "steps": 16, "grid": 17, "search": 6},
    "two sources": {"synthetic": ["first", "second"], "steps": 5, "grid": 21, "search": 8},
    "two sources, fine": {"synthetic": ["first", "second"], "steps": 12, "grid": 91, "search": 12},
}
"""Simulated studies, of one cell each."""


def config_of(root: str, study: dict[str, Any], method: str, name: str, seed: int = 0) -> SearchConfig:
    """Return the configuration of a study's grid or search; each reads its own copy of the packed set."""
    return SearchConfig.model_validate(
        {key: study[key] for key in ("synthetic", "steps", "cells")}
        | {
            "root": root,
            "name": name,
            "method": method,
            "trials_per_cell": study["grid" if method == "grid" else "search"],
            "seed": seed,
            "run": RUN,
            "placement": {"lanes": 2, "concurrent_trials": 3},
        }
    )


def optima(config: SearchConfig) -> dict[str, CellOptimum]:
    """Return what a search found, by cell."""
    cells = cells_of(config, PackedInfo.read(config.root, config.packed))
    return {
        cell.name: CellOptimum.model_validate(read_json(cell_directory(config, cell.name) / BEST_FILE))
        for cell in cells
    }


def runs_of(grid: SearchConfig) -> list[Run]:
    """Return the runs of a grid."""
    cells = {cell_name(cell): cell for cell in grid.cells}
    found = []
    for name, optimum in optima(grid).items():
        for trial in optimum.trials:
            record = read_record(grid.root, trial.run_id)
            assert record is not None
            assert record.final is not None
            losses = {domain: each.loss_nats_per_token for domain, each in record.final.domains.items()}
            found.append(Run(cells[name], grid.seed, choice_of(grid, trial).shares, losses))
    return found


# --- real runs -------------------------------------------------------------------------------------------------


def measure_study(
    root: Path, name: str, study: dict[str, Any], num_pairs: int, lanes: tuple[Lanes, Lanes]
) -> tuple[dict[str, Any], list[Run]]:
    """Train the grids, the search and the pairs of one study; return the figures and the grids' runs."""
    slug = name.replace(" ", "-")
    grids = [
        config_of(str(root / "grid"), study, "grid", f"{slug}-grid-{k}", k) for k in range(study["seeds"])
    ]
    search = config_of(str(root / "search"), study, "adaptive", slug)
    for grid in grids:
        search_mixture(grid, lanes[0])
    search_mixture(search, lanes[1])
    runs = [run for grid in grids for run in runs_of(grid)]
    packed = PackedInfo.read(search.root, search.packed)
    every = tuple(sorted(runs[0].losses))
    cells = []
    for number, cell in enumerate(cells_of(search, packed)):
        optimum = optima(search)[cell.name]
        table = table_of(runs, cell.cell, 0, every)
        chosen = answers(search, cell, optimum, table, number)
        found, lowest = chosen["search"], chosen["whole grid, lowest loss"]
        cells.append(
            {
                "cell": cell.name,
                "found": found,
                "lowest_of_the_grid": lowest,
                "intervals": [[each.low, each.high] for each in _intervals(optimum)],
                "tokens_fraction": len(optimum.trials) / len(table.losses),
                "excess_by_further_seeds": paired(grids[0], cell, (found, lowest), num_pairs, lanes[0]),
            }
            | excesses(table, chosen)
        )
    return {
        "losses_equal_those_of_the_grid": _equal(grids[0], search),
        "packed_set": packed.hash,
        "held_out": every,
        "seed_noise": seed_noise(runs),
        "cells": cells,
    }, runs


def paired(
    grid: SearchConfig, cell: CellSearch, mixtures: tuple[Shares, Shares], num_pairs: int, lanes: Lanes
) -> dict[str, Any]:
    """Train two mixtures with further seeds, each with both; return how much more the first one loses."""
    if mixtures[0] == mixtures[1]:
        return {"pairs": 0, "mean": 0.0, "low": 0.0, "high": 0.0, "of_each_pair": []}
    packed = PackedInfo.read(grid.root, grid.packed)
    runs = [
        trial_run(grid, packed, cell.cell, Choice(shares, replicate))
        for replicate in range(1, num_pairs + 1)
        for shares in mixtures
    ]
    tokens = sum(run.num_steps * run.tokens_per_step for run in runs)
    records = lanes.run_all(runs, Progress("share_search", tokens, "tokens"))
    losses = np.array([record.final.loss_nats_per_token for record in records if record.final])
    ratios = losses[0::2] / losses[1::2] - 1.0
    half = float(student.ppf(0.975, num_pairs - 1) * ratios.std(ddof=1) / num_pairs**0.5)
    mean = float(ratios.mean())
    return {
        "pairs": num_pairs,
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "of_each_pair": ratios.round(6).tolist(),
    }


def _intervals(optimum: CellOptimum) -> list[Interval]:
    return list(optimum.best_shares.values()) or [optimum.best_share]


def _equal(grid: SearchConfig, search: SearchConfig) -> bool:
    """Return whether every run of the search has the loss that the grid's run of this mixture has."""
    losses = [
        {(cell, choice_of(each, trial).shares): trial.loss_nats_per_token}
        for each in (grid, search)
        for cell, optimum in optima(each).items()
        for trial in optimum.trials
    ]
    known: dict[Any, Any] = {}
    return all(known.setdefault(key, loss) == loss for each in losses for key, loss in each.items())


def measure(
    root: Path, plans: dict[str, dict[str, Any]], num_pairs: int, runs_file: Path
) -> dict[str, dict[str, Any]]:
    """Train studies and write their grids' runs, beside those of others; return by study the figures, with machine and
    versions."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        if not is_finished(study_path(str(root / "grid"), "packed", "packed")):
            build(str(root / "grid"))
        shutil.copytree(root / "grid" / "packed", root / "search" / "packed", dirs_exist_ok=True)
        with Lanes(str(root / "grid"), LANES) as first, Lanes(str(root / "search"), LANES) as second:
            found = {
                name: measure_study(root, name, study, num_pairs, (first, second))
                for name, study in plans.items()
            }
    finally:
        ray.shutdown()
    others = {
        name: read_runs(runs_file, name) for name in STUDIES if name not in found and runs_file.exists()
    }
    write_runs(runs_file, others | {name: runs for name, (_, runs) in found.items()})
    return {
        name: figures | {"reached": reached(figures["cells"])} | where_and_when()
        for name, (figures, _) in found.items()
    }


def reached(cells: list[dict[str, Any]]) -> dict[str, bool]:
    """Return by measure whether the target was met in every cell; the strictest asks it of the interval's upper end."""
    few = all(cell["tokens_fraction"] <= TARGET_TOKENS for cell in cells)
    further = [cell["excess_by_further_seeds"] for cell in cells]
    excess = {
        "over_the_lowest_loss": [cell["excess_over_the_lowest_loss"]["search"] for cell in cells],
        "by_further_seeds": [each["mean"] for each in further],
        "by_further_seeds_upper_end": [each["high"] for each in further],
    }
    return {name: few and max(values) <= TARGET_EXCESS for name, values in excess.items()}


# --- replayed --------------------------------------------------------------------------------------------------


def measure_replayed(root: Path, model: str, budgets: list[int], runs_file: Path) -> dict[str, Any]:
    """Return the figures of the simulated and the recorded studies, with machine and versions."""
    began = time.perf_counter()

    def searches(study: dict[str, Any], slug: str) -> Callable[[int], SearchConfig]:
        return lambda number: config_of(str(root / "replay"), study, "adaptive", f"{slug}-{number}")

    found: dict[str, Any] = {"simulated": {}, "recorded": {}}
    cell = {"model": model, "train_tokens": budgets[0]}
    for name, study in SIMULATED.items():
        space = MixtureSpace(caps=(1.0,) * len(study["synthetic"]), steps=study["steps"])
        objectives = simulated(space, f"{model}-{budgets[0]}", SIMULATED_CELLS)
        slug = "simulated-" + name.replace(" ", "-").replace(",", "")
        found["simulated"][name] = judge(objectives, searches(study | {"cells": [cell]}, slug))
    for name, study in studies(model, budgets).items():
        runs = read_runs(runs_file, name) if runs_file.exists() else []
        if runs:
            cells = [each.model_dump() for each in cells_among(runs)]
            slug = "recorded-" + name.replace(" ", "-")
            figures = judge(recorded(runs), searches(study | {"cells": cells}, slug))
            found["recorded"][name] = {"seed_noise": seed_noise(runs)} | figures
    nine_of_ten = {
        f"{kind}, {name}": {
            measure: study[measure]["search"]["p90"] <= TARGET_EXCESS
            and study["most_tokens_fraction"] <= TARGET_TOKENS
            for measure in ("excess", "excess_over_the_lowest_loss")
            if measure in study
        }
        for kind, of_kind in found.items()
        for name, study in of_kind.items()
    }
    seconds = time.perf_counter() - began
    return found | {"reached_by_nine_of_ten": nine_of_ten, "seconds": seconds} | where_and_when()


def where_and_when() -> dict[str, Any]:
    """Return machine and versions."""
    return {"machine": machine(), "versions": versions()}


def main() -> None:
    """Measure and print the result as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="25k", help="size by name")
    parser.add_argument("--tokens", type=int, nargs="+", default=[131_072, 262_144], help="budgets, tokens")
    parser.add_argument("--pairs", type=int, default=12, help="further seeds of what is compared, 2 at least")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES, help="what to train")
    parser.add_argument("--replay-only", action="store_true", help="train nothing and start no Ray")
    parser.add_argument("--runs", type=Path, default=RUNS_FILE, help="table of the grids' runs")
    parser.add_argument("--root", type=Path, help="keep corpora and runs here")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error(f"--pairs {options.pairs}: an interval needs 2 or more; give 2 or more")
    result: dict[str, Any] = {"target": {"excess": TARGET_EXCESS, "tokens_fraction": TARGET_TOKENS}}
    if options.out and options.out.exists():
        result |= json.loads(options.out.read_text())
    plans = studies(options.model, options.tokens)
    with tempfile.TemporaryDirectory() as fresh:
        root = (options.root or Path(fresh)).absolute()
        if not options.replay_only:
            wanted = {name: plans[name] for name in options.studies}
            result["real"] = result.get("real", {}) | measure(root, wanted, options.pairs, options.runs)
        result["replayed"] = measure_replayed(Path(fresh), options.model, options.tokens, options.runs)
    give(result, options.out)


if __name__ == "__main__":
    main()
