"""The search of the best synthetic share, cell by cell: which run comes next, and when a cell is done. No Ray.

    searches/<name>/recipe.json            what was asked for, and of which packed set
    searches/<name>/<cell>/trials.jsonl    one line a trial, in the order they were chosen; a score is its run's record
    searches/<name>/<cell>/best.json       the optimum; with it the cell is done
    searches/<name>/manifest.json          written when every cell is done

Each (N, D) cell starts with the same few shares. Then it goes on in rounds: the next shares are chosen from the
losses so far, all of a round together, and a round ends when each of its runs has a record. What is chosen depends
on nothing but the records of the rounds before, never on which run ended first. So a search that was killed chooses
the same shares again, finds their records, and goes on; neither Tune's state nor Optuna's is needed. After its first
round a cell waits for the nearest cheaper cell and tries that one's best share next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from synth.errors import UserError
from synth.identity import RECIPE_FILE, claim_directory, is_finished
from synth.plan import Plan
from synth.storage import read_json, write_json_atomic, write_text_atomic
from train.config import RunConfig
from train.flops import train_flops_6nd
from train.grid import check_placement
from train.mixture import check_epochs
from train.rates import rate_parents
from train.record import RunRecord, read_record
from train.tokens import PackedInfo
from tune.cells import (
    FEW_LOSSES,
    CellSearch,
    Trial,
    cell_directory,
    cell_name,
    cell_optimum,
    complete_losses,
    first_shares,
    is_done,
    neighbour_best,
    num_params_of,
    order_cells,
    search_directory,
    trial_result,
    trial_run,
)
from tune.config import Cell, SearchConfig
from tune.optimum import GRID_STEPS, MIN_POINTS, share_grid
from tune.results import CellOptimum, TrialResult

KIND = "search"
TRIALS_FILE = "trials.jsonl"
BEST_FILE = "best.json"

Ask = Callable[[SearchConfig, Sequence[TrialResult], Sequence[float], int], tuple[float, ...]]
"""(config, settled trials, shares to try first, how many) -> the shares of the next round."""


class ShareSearch:
    """All cells of one search. `take` gives the next run to train, `settle` takes its record; both from one thread.

    Runs that have a record already, from an earlier attempt or from a grid, are settled without being handed out.
    """

    def __init__(self, config: SearchConfig, packed: PackedInfo, ask: Ask) -> None:
        self.config = config
        self._packed = packed
        self._ask = ask
        self._waiting: list[Trial] = []
        self.cells = {each.name: each for each in order_cells(config, packed)}
        for each in self.cells.values():
            self._load(each)
        self._advance()

    def take(self) -> Trial | None:
        """Return the next trial to run; None when there is none before another one is settled."""
        return self._waiting.pop(0) if self._waiting else None

    def settle(self, trial: Trial, record: RunRecord) -> None:
        """Note how the run of a trial ended, on disk too, and choose what follows from it."""
        self._note(trial, record)
        self._advance()

    @property
    def over(self) -> bool:
        """Whether every cell is done."""
        return all(cell.done for cell in self.cells.values())

    @property
    def num_settled(self) -> int:
        """Trials with a result."""
        return sum(len(cell.settled) for cell in self.cells.values())

    @property
    def num_trials(self) -> int:
        """Trials there will be at most: a cell that is done counts those it had."""
        most = self.config.trials_per_cell
        return sum(len(cell.trials) if cell.done else most for cell in self.cells.values())

    def check_optima(self) -> None:
        """Raise RuntimeError when a cell is done without an optimum, with the reasons of its trials."""
        for cell in self.cells.values():
            if cell.done and cell.optimum is None:
                reasons = "; ".join(
                    f"share {each.share:.3g}: {each.reason}" for each in cell.settled if each.reason
                )
                raise RuntimeError(
                    f"cell {cell.name}: {len(complete_losses(cell.settled))} of {len(cell.settled)} trials are complete and a "
                    f"best share needs {MIN_POINTS} ({reasons}): mend what stopped them, delete their records under runs/, and search again"
                )

    def summary(self) -> dict[str, Any]:
        """Return what the manifest says of the cells."""
        optima = [cell.optimum for cell in self.cells.values() if cell.optimum is not None]
        trials = [trial for optimum in optima for trial in optimum.trials]
        return {
            "cells": list(self.cells),
            "trials": len(trials),
            "trials_complete": sum(trial.status == "complete" for trial in trials),
            "runs": sorted({trial.run_id for trial in trials}),
        }

    def _load(self, cell: CellSearch) -> None:
        try:
            found = read_json(cell_directory(self.config, cell.name) / BEST_FILE)
        except FileNotFoundError:
            return
        cell.optimum, cell.done = CellOptimum.model_validate(found), True
        cell.trials = [self._trial(cell, each.share, each) for each in cell.optimum.trials]

    def _trial(self, cell: CellSearch, share: float, result: TrialResult | None = None) -> Trial:
        return Trial(cell.name, trial_run(self.config, self._packed, cell.cell, share), share, result)

    def _advance(self) -> None:
        """Let every cell go on as far as the records reach; one that is done may free another."""
        while any(self._step(cell) for cell in self.cells.values() if not cell.done):
            pass

    def _step(self, cell: CellSearch) -> bool:
        """Finish a cell or begin its next round; return False when there is nothing to do for it now."""
        if len(cell.settled) < len(cell.trials):
            return False
        if cell.trials and is_done(self.config, cell.settled):
            self._finish(cell)
            return True
        shares = self._next_round(cell)
        if shares is None:
            return False
        for share in shares:
            trial = self._trial(cell, share)
            cell.trials.append(trial)
            record = read_record(self.config.root, trial.run.run_id)
            if record is None:
                self._waiting.append(trial)
            else:
                self._note(trial, record)
        return True

    def _next_round(self, cell: CellSearch) -> tuple[float, ...] | None:
        """Return the shares of the next round, None when the cell must wait for its neighbour."""
        first = first_shares(self.config)
        if not cell.trials:
            return self._ask(self.config, (), first, len(first))
        hints: tuple[float, ...] = ()
        if cell.neighbour is not None and len(cell.trials) == len(first):
            neighbour = self.cells[cell.neighbour]
            if not neighbour.done:
                return None
            hints = neighbour_best(neighbour, cell, self.config)
        count = min(self.config.trials_per_round, self.config.trials_per_cell - len(cell.trials))
        return self._ask(self.config, cell.settled, hints[:count], count)

    def _note(self, trial: Trial, record: RunRecord) -> None:
        cell = self.cells[trial.cell]
        trial.result = trial_result(trial.share, record)
        lines = "".join(each.model_dump_json() + "\n" for each in cell.settled)
        write_text_atomic(cell_directory(self.config, cell.name) / TRIALS_FILE, lines)

    def _finish(self, cell: CellSearch) -> None:
        cell.done = True
        if len(complete_losses(cell.settled)) >= MIN_POINTS:
            cell.optimum = cell_optimum(self.config, self._packed, cell)
            path = cell_directory(self.config, cell.name) / BEST_FILE
            write_json_atomic(path, cell.optimum.model_dump(mode="json"))


# --- the plan --------------------------------------------------------------------------------------------------


def plan_search(config: SearchConfig) -> Plan:
    """Return what `search_mixture` would do; nothing is written.

    Raises UserError when a source or size is not known, a cell is given twice, there are more trials than shares, or
    an end of the range needs more passes than `max_epochs`; IncompleteArtefact without a packed set;
    IdentityMismatch when the name is taken by another search.
    """
    packed = PackedInfo.read(config.root, config.packed)
    check_search(config, packed)
    directory = search_directory(config)
    if (directory / RECIPE_FILE).exists():
        claim_search(config, packed)
    cells = order_cells(config, packed)
    first = [trial_run(config, packed, cell.cell, share) for cell in cells for share in first_shares(config)]
    found = sum(read_record(config.root, run.run_id) is not None for run in first)
    done = [cell.name for cell in cells if (cell_directory(config, cell.name) / BEST_FILE).exists()]
    open_cells = [cell for cell in cells if cell.name not in done]
    runs = [trial_run(config, packed, cell.cell, config.share_range[0]) for cell in open_cells]
    tokens = [run.num_steps * run.tokens_per_step * config.trials_per_cell for run in runs]
    flops = sum(
        train_flops_6nd(num_params_of(cell.cell, packed), each)
        for cell, each in zip(open_cells, tokens, strict=True)
    )
    facts: dict[str, object] = {
        "cells missing": len(open_cells),
        "cells": len(cells),
        "trials at most": config.trials_per_cell * len(open_cells),
        "shares every cell starts with": ", ".join(f"{share:.3g}" for share in first_shares(config)),
        "runs of these that have a record": found,
        "tokens at most": sum(tokens),
        "FLOP (6 N D) at most": float(f"{flops:.3g}"),
    }
    return Plan(
        "search_mixture", str(directory), is_finished(directory), facts, tuple(_plan_warnings(config))
    )


def check_search(config: SearchConfig, packed: PackedInfo) -> None:
    """Raise UserError when this search cannot be run on this packed set."""
    for role, source in (("natural", config.natural), ("synthetic", config.synthetic)):
        if source not in packed.sources:
            raise UserError(
                f"{role}: {source!r} is not a source of packed/{config.packed} (it has {', '.join(sorted(packed.sources))}): "
                "correct the name, or pack that source."
            )
    if config.natural == config.synthetic:
        raise UserError(f"natural and synthetic are both {config.natural!r}: name two sources.")
    names = [cell_name(cell) for cell in config.cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"cells: {twice[0]} is given more than once; give each cell once.")
    if config.trials_per_cell > len(share_grid(config.share_range)):
        raise UserError(
            f"trials_per_cell = {config.trials_per_cell}, but share_range holds {len(share_grid(config.share_range))} "
            f"shares (steps of 1/{GRID_STEPS}): lower trials_per_cell or widen share_range."
        )
    runs = [
        _checked_run(config, packed, cell, share) for cell in config.cells for share in config.share_range
    ]
    check_placement(runs, packed, config.placement)


def _checked_run(config: SearchConfig, packed: PackedInfo, cell: Cell, share: float) -> RunConfig:
    run = trial_run(config, packed, cell, share)
    check_epochs(run, packed.num_rows)
    return run


def claim_search(config: SearchConfig, packed: PackedInfo) -> str:
    """Make `searches/<name>` this search's own and return its identity. Raises IdentityMismatch."""
    parents = {"packed": packed.hash} | rate_parents(config.root, config.run)
    return claim_directory(search_directory(config), KIND, config.identity(), parents)


def _plan_warnings(config: SearchConfig) -> list[str]:
    warnings = []
    if config.placement.concurrent_trials < config.placement.lanes:
        warnings.append(
            f"placement.concurrent_trials = {config.placement.concurrent_trials} is below placement.lanes = "
            f"{config.placement.lanes}: some lanes will stand idle"
        )
    if config.trials_per_cell < FEW_LOSSES:
        warnings.append(
            f"trials_per_cell = {config.trials_per_cell}: with fewer than {FEW_LOSSES} intervals will be wide"
        )
    return warnings
