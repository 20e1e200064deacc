"""The search of the best synthetic share, cell by cell: which run comes next, and when a cell is done. No Ray.

    searches/<name>/recipe.json            what was asked for, and of which packed set
    searches/<name>/<cell>/trials.jsonl    one line a trial, in the order they were chosen; a score is its run's record
    searches/<name>/<cell>/best.json       the optimum; with it the cell is done
    searches/<name>/manifest.json          written when every cell is done

Each (N, D) cell starts with the same few mixtures. Then it goes on in rounds: the next mixtures are chosen from the
losses so far, all of a round together, and a round ends when each of its runs has a record. What is chosen depends
on nothing but the records of the rounds before, never on which run ended first. So a search that was killed chooses
the same mixtures again, finds their records, and goes on; neither Tune's state nor Optuna's is needed. After its first
round a cell waits for the cells it learns from: the nearest cheaper one, that one's own, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from synth.errors import UserError
from synth.identity import claim_directory
from synth.storage import read_json, write_json_atomic, write_text_atomic
from train.rates import rate_parents
from train.record import RunRecord, read_record
from train.tokens import PackedInfo
from tune.cells import (
    CellSearch,
    Choice,
    Trial,
    cell_directory,
    choice_of,
    complete_trials,
    order_cells,
    search_directory,
    trial_result,
    trial_run,
)
from tune.config import SearchConfig
from tune.found import cell_optimum
from tune.results import CellOptimum, TrialResult
from tune.rounds import Question, first_choices, is_done, next_choices, trial_limits
from tune.surface import MIN_POINTS

KIND = "search"
FORMAT = 3
"""Raised whenever the same configuration would try other mixtures or answer otherwise; part of the identity."""
TRIALS_FILE = "trials.jsonl"
BEST_FILE = "best.json"

Ask = Callable[[SearchConfig, Question, tuple[Choice, ...], int], tuple[Choice, ...]]
"""(config, what is known, choices to begin with, how many) -> the choices of the next round."""


def cells_of(config: SearchConfig, packed: PackedInfo) -> list[CellSearch]:
    """Return the cells from cheap to dear, with the trials each may spend. Raises UserError when they are too few."""
    cells = order_cells(config, packed)
    for cell in cells:
        _check_size(config, cell)
    runs = [trial_run(config, packed, cell.cell, first_choices(config, cell.space)[0]) for cell in cells]
    tokens = [run.num_steps * run.tokens_per_step for run in runs]
    for cell, most in zip(cells, trial_limits(config, cells, tokens), strict=True):
        cell.most_trials = most
    spent = sum(cell.most_trials * each for cell, each in zip(cells, tokens, strict=True))
    if config.max_tokens is not None and spent > config.max_tokens:
        raise UserError(
            f"max_tokens = {config.max_tokens:,}, but what the cells start with takes {spent:,} tokens: raise it or search "
            "fewer cells."
        )
    return cells


def _check_size(config: SearchConfig, cell: CellSearch) -> None:
    """Raise UserError when a cell has too few mixtures for its trials, or too few trials to begin with."""
    num_mixtures = len(cell.space.points)
    low, high = cell.space.share_range
    if num_mixtures < config.trials_per_cell:
        raise UserError(
            f"trials_per_cell = {config.trials_per_cell}, but cell {cell.name} has {num_mixtures} mixtures with a synthetic "
            f"share of {low:.3g} to {high:.3g} that its sources can supply: lower trials_per_cell, widen share_range, raise "
            "run.max_epochs or generate more."
        )
    needed = len(first_choices(config, cell.space))
    if needed > config.trials_per_cell:
        raise UserError(
            f"trials_per_cell = {config.trials_per_cell} is less than the {needed} trials a search of "
            f"{len(config.synthetic)} sources starts with: raise it."
        )


class ShareSearch:
    """All cells of one search. `take` gives the next run to train, `settle` takes its record; both from one thread.

    Runs that have a record already, from an earlier attempt or from a grid, are settled without being handed out.
    """

    def __init__(self, config: SearchConfig, packed: PackedInfo, ask: Ask) -> None:
        self.config = config
        self._packed = packed
        self._ask = ask
        self._waiting: list[Trial] = []
        self.cells = {each.name: each for each in cells_of(config, packed)}
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
        return sum(len(cell.trials) if cell.done else cell.most_trials for cell in self.cells.values())

    def check_optima(self) -> None:
        """Raise UserError when a cell is done without an optimum, with the reasons of its trials."""
        for cell in self.cells.values():
            if cell.done and cell.optimum is None:
                reasons = "; ".join(
                    f"share {each.share:.3g}: {each.reason}" for each in cell.settled if each.reason
                )
                raise UserError(
                    f"cell {cell.name}: {len(complete_trials(cell.settled))} of {len(cell.settled)} trials are complete and a "
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
        for each in cell.optimum.trials:
            cell.trials.append(self._trial(cell, choice_of(self.config, each), each))

    def _trial(self, cell: CellSearch, choice: Choice, result: TrialResult | None = None) -> Trial:
        return Trial(cell.name, trial_run(self.config, self._packed, cell.cell, choice), choice, result)

    def _advance(self) -> None:
        """Let every cell go on as far as the records reach; one that is done may free another."""
        while any(self._step(cell) for cell in self.cells.values() if not cell.done):
            pass

    def _step(self, cell: CellSearch) -> bool:
        """Finish a cell or begin its next round; return False when there is nothing to do for it now."""
        if len(cell.settled) < len(cell.trials):
            return False
        if cell.trials and is_done(self.config, cell):
            self._finish(cell)
            return True
        choices = self._next_round(cell)
        if choices is None:
            return False
        for choice in choices:
            trial = self._trial(cell, choice)
            cell.trials.append(trial)
            record = read_record(self.config.root, trial.run.run_id)
            if record is None:
                self._waiting.append(trial)
            else:
                self._note(trial, record)
        return True

    def _next_round(self, cell: CellSearch) -> tuple[Choice, ...] | None:
        """Return the choices of the next round, None when the cell must wait for those it learns from."""
        if not cell.trials:
            return first_choices(self.config, cell.space)
        donors = self._donors(cell)
        if not all(donor.done for donor in donors):
            return None
        question, first, count = next_choices(self.config, cell, donors)
        return self._ask(self.config, question, first, count)

    def _donors(self, cell: CellSearch) -> list[CellSearch]:
        """Return the cells this one learns from, the nearest first."""
        donors = []
        while cell.neighbour is not None:
            cell = self.cells[cell.neighbour]
            donors.append(cell)
        return donors

    def _note(self, trial: Trial, record: RunRecord) -> None:
        cell = self.cells[trial.cell]
        trial.result = trial_result(self.config, trial.choice, record)
        lines = "".join(each.model_dump_json() + "\n" for each in cell.settled)
        write_text_atomic(cell_directory(self.config, cell.name) / TRIALS_FILE, lines)

    def _finish(self, cell: CellSearch) -> None:
        cell.done = True
        if len(complete_trials(cell.settled)) >= MIN_POINTS:
            cell.optimum = cell_optimum(self.config, self._packed, cell)
            path = cell_directory(self.config, cell.name) / BEST_FILE
            write_json_atomic(path, cell.optimum.model_dump(mode="json"))


def claim_search(config: SearchConfig, packed: PackedInfo) -> str:
    """Make `searches/<name>` this search's own and return its identity. Raises IdentityMismatch."""
    parents = {"packed": packed.hash} | rate_parents(config.root, config.run)
    recipe = {**config.identity(), "format": FORMAT}
    return claim_directory(search_directory(config), KIND, recipe, parents)
