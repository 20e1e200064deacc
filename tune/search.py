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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from upath import UPath

from synth.errors import UserError
from synth.identity import RECIPE_FILE, claim_directory, is_finished
from synth.plan import Plan
from synth.storage import read_json, study_path, write_json_atomic, write_text_atomic
from train.config import RunConfig
from train.flops import count_parameters, train_flops_6nd
from train.grid import check_placement, mix, run_of
from train.mixture import check_epochs
from train.record import RunRecord, read_record
from train.sizes import model_of
from train.tokens import PackedInfo
from tune.config import Cell, SearchConfig
from tune.optimum import GRID_STEPS, MIN_POINTS, Curve, fit_curve, share_grid
from tune.results import CellOptimum, TrialResult

KIND = "search"
TRIALS_FILE = "trials.jsonl"
BEST_FILE = "best.json"

FEW_LOSSES = 5
"""With fewer losses than this the interval is mostly the prior's."""
FLAT_FRACTION = 0.5
"""An optimum is called flat when shares over this part of the range are as good as the best, within a run's noise."""

Ask = Callable[[SearchConfig, Sequence[TrialResult], Sequence[float], int], tuple[float, ...]]
"""(config, settled trials, shares to try first, how many) -> the shares of the next round."""


@dataclass
class Trial:
    """One share of one cell: a run, and its result once it has one."""

    cell: str
    run: RunConfig
    share: float
    result: TrialResult | None = None


@dataclass
class CellSearch:
    """One cell on its way to its optimum."""

    name: str
    cell: Cell
    neighbour: str | None = None
    """Cell whose best share this one tries after its first round."""
    trials: list[Trial] = field(default_factory=list)
    done: bool = False
    optimum: CellOptimum | None = None
    """Null while it is searched, and for good when too few trials were complete."""

    @property
    def settled(self) -> list[TrialResult]:
        """Results so far, in the order the shares were chosen."""
        return [trial.result for trial in self.trials if trial.result is not None]


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
                reasons = "; ".join(f"share {each.share:.3g}: {each.reason}" for each in cell.settled if each.reason)
                raise RuntimeError(
                    f"cell {cell.name}: {len(_complete(cell.settled))} of {len(cell.settled)} trials are complete and a "
                    f"best share needs {MIN_POINTS} ({reasons})"
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
            hints = _hints(neighbour, cell, self.config)
        count = min(self.config.trials_per_round, self.config.trials_per_cell - len(cell.trials))
        return self._ask(self.config, cell.settled, hints[:count], count)

    def _note(self, trial: Trial, record: RunRecord) -> None:
        cell = self.cells[trial.cell]
        trial.result = trial_result(trial.share, record)
        lines = "".join(each.model_dump_json() + "\n" for each in cell.settled)
        write_text_atomic(cell_directory(self.config, cell.name) / TRIALS_FILE, lines)

    def _finish(self, cell: CellSearch) -> None:
        cell.done = True
        if len(_complete(cell.settled)) >= MIN_POINTS:
            cell.optimum = cell_optimum(self.config, self._packed, cell)
            path = cell_directory(self.config, cell.name) / BEST_FILE
            write_json_atomic(path, cell.optimum.model_dump(mode="json"))


# --- cells and runs --------------------------------------------------------------------------------------------


def search_directory(config: SearchConfig) -> UPath:
    """Return `searches/<name>` under the study root."""
    return study_path(config.root, "searches", config.name)


def cell_directory(config: SearchConfig, cell: str) -> UPath:
    """Return the directory of one cell of the search."""
    return search_directory(config) / cell


def cell_name(cell: Cell) -> str:
    """Return the name of a cell: `98k-131072`."""
    return f"{cell.model}-{cell.train_tokens}"


def trial_run(config: SearchConfig, packed: PackedInfo, cell: Cell, share: float) -> RunConfig:
    """Return the run of a share: the same run, with the same id, that a grid has at this share."""
    mixture = mix(config.natural, config.synthetic, share)
    return run_of(config.run, config.packed, packed, model_of(cell.model), cell.train_tokens, mixture, config.seed)


def trial_result(share: float, record: RunRecord) -> TrialResult:
    """Return what a trial says of its run; a run that is not complete has no loss."""
    loss = record.final.loss_nats_per_token if record.status == "complete" and record.final else None
    return TrialResult(
        share=share, run_id=record.run_id, status=record.status, loss_nats_per_token=loss, reason=record.reason
    )


def order_cells(config: SearchConfig, packed: PackedInfo) -> list[CellSearch]:
    """Return the cells from cheap to dear (6 N D), each with its nearest cheaper one (in log N, log D) as neighbour."""
    places = {cell_name(cell): (_num_params(cell, packed), cell.train_tokens, cell) for cell in config.cells}
    ordered = sorted(places, key=lambda name: (train_flops_6nd(*places[name][:2]), name))
    cells = []
    for position, name in enumerate(ordered):
        n, d, cell = places[name]
        distance = {other: math.hypot(math.log(places[other][0] / n), math.log(places[other][1] / d)) for other in ordered}
        cheaper = ordered[:position] if config.method == "adaptive" else []
        cells.append(CellSearch(name, cell, min(cheaper, key=lambda other: distance[other], default=None)))
    return cells


def _num_params(cell: Cell, packed: PackedInfo) -> int:
    return count_parameters(model_of(cell.model), packed.vocab_size).non_embedding


# --- what to try, and when to stop -----------------------------------------------------------------------------


def first_shares(config: SearchConfig) -> tuple[float, ...]:
    """Return the shares every cell starts with: the ends and the thirds, where the paper's grid has its runs.

    With fewer than five trials the middle takes the place of the thirds; the `grid` method spreads all its trials.
    """
    low, high = config.share_range
    steps = config.trials_per_cell - 1 if config.method == "grid" else 3 if config.trials_per_cell >= FEW_LOSSES else 2
    candidates = share_grid(config.share_range)
    wanted = (low + (high - low) * step / steps for step in range(steps + 1))
    return tuple(min(candidates, key=lambda share: abs(share - each)) for each in wanted)


def is_done(config: SearchConfig, settled: Sequence[TrialResult]) -> bool:
    """Return whether a cell needs no further trial: all are spent, or the interval of its best share is narrow."""
    if len(settled) >= config.trials_per_cell:
        return True
    curve = curve_of(config, settled)
    if curve is None or config.stop_interval_width == 0.0 or config.method == "grid":
        return False
    best = curve.best_share()
    return best.low is not None and best.high is not None and best.high - best.low < config.stop_interval_width


def curve_of(config: SearchConfig, settled: Sequence[TrialResult]) -> Curve | None:
    """Return the smooth fit of loss against share; None when too few trials are complete."""
    points = _complete(settled)
    if len(points) < MIN_POINTS:
        return None
    return fit_curve([share for share, _ in points], [loss for _, loss in points], config.share_range)


def _complete(settled: Sequence[TrialResult]) -> list[tuple[float, float]]:
    return [(each.share, each.loss_nats_per_token) for each in settled if each.loss_nats_per_token is not None]


def _hints(neighbour: CellSearch, cell: CellSearch, config: SearchConfig) -> tuple[float, ...]:
    """Return the neighbour's best share, unless it has none or this cell has tried it."""
    if neighbour.optimum is None:
        return ()
    best = neighbour.optimum.best_share.value
    share = min(share_grid(config.share_range), key=lambda each: abs(each - best))
    return () if any(trial.share == share for trial in cell.trials) else (share,)


# --- the answer ------------------------------------------------------------------------------------------------


def cell_optimum(config: SearchConfig, packed: PackedInfo, cell: CellSearch) -> CellOptimum:
    """Return the optimum of a cell from its settled trials. Raises ValueError with fewer complete than MIN_POINTS."""
    curve = curve_of(config, cell.settled)
    if curve is None:
        raise ValueError(f"cell {cell.name}: fewer than {MIN_POINTS} complete trials, so no curve can be drawn")
    run = cell.trials[0].run
    return CellOptimum(
        search=config.name,
        natural=config.natural,
        synthetic=config.synthetic,
        model=cell.cell.model,
        num_params=_num_params(cell.cell, packed),
        train_tokens=run.num_steps * run.tokens_per_step,
        trials=tuple(cell.settled),
        best_share=curve.best_share(),
        best_loss=curve.best_loss(),
        natural_only_loss=next((loss for share, loss in _complete(cell.settled) if share == 0.0), None),
        curve=curve.band(),
        noise_nats=curve.noise_nats(),
        method=curve.describe(),
        warnings=_warnings(config, cell.settled, curve),
    )


def _warnings(config: SearchConfig, settled: Sequence[TrialResult], curve: Curve) -> tuple[str, ...]:
    low, high = config.share_range
    complete = _complete(settled)
    close_low, close_high = curve.indistinguishable()
    best = curve.best_share().value
    warnings = []
    if len(complete) < len(settled):
        failed = ", ".join(f"{each.share:.3g} ({each.status})" for each in settled if each.loss_nats_per_token is None)
        warnings.append(f"{len(settled) - len(complete)} of {len(settled)} trials have no loss: share {failed}")
    if len(complete) < FEW_LOSSES:
        warnings.append(f"the curve is drawn through {len(complete)} losses: the interval rests on what is assumed of it")
    if close_high - close_low >= FLAT_FRACTION * (high - low):
        warnings.append(
            f"flat optimum: shares from {close_low:.2f} to {close_high:.2f} are within the noise of one run "
            f"({curve.noise_nats():.2g} nats) of the best, so any of them will do"
        )
    if best in (low, high) and best not in (0.0, 1.0):
        warnings.append(f"the best share lies at the end of the range searched, {best:g}: widen share_range")
    if curve.single_valley_fraction < 0.3:
        warnings.append("the losses do not look like one smooth valley: repeat the search with another seed")
    return tuple(warnings)


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
        train_flops_6nd(_num_params(cell.cell, packed), each) for cell, each in zip(open_cells, tokens, strict=True)
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
    return Plan("search_mixture", str(directory), is_finished(directory), facts, tuple(_plan_warnings(config)))


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
    runs = [_checked_run(config, packed, cell, share) for cell in config.cells for share in config.share_range]
    check_placement(runs, packed, config.placement)


def _checked_run(config: SearchConfig, packed: PackedInfo, cell: Cell, share: float) -> RunConfig:
    per_step = config.run.rows_per_step * packed.sequence_length
    if cell.train_tokens < per_step:
        raise UserError(
            f"cells: train_tokens = {cell.train_tokens:,} is less than one step of {per_step:,} tokens (run.rows_per_step "
            f"= {config.run.rows_per_step} x sequence_length = {packed.sequence_length}): raise it or lower run.rows_per_step."
        )
    run = trial_run(config, packed, cell, share)
    check_epochs(run, packed.num_rows)
    return run


def claim_search(config: SearchConfig, packed: PackedInfo) -> str:
    """Make `searches/<name>` this search's own and return its identity. Raises IdentityMismatch."""
    return claim_directory(search_directory(config), KIND, config.identity(), {"packed": packed.hash})


def _plan_warnings(config: SearchConfig) -> list[str]:
    warnings = []
    if config.placement.concurrent_trials < config.placement.lanes:
        warnings.append(
            f"placement.concurrent_trials = {config.placement.concurrent_trials} is below placement.lanes = "
            f"{config.placement.lanes}: some lanes will stand idle"
        )
    if config.trials_per_cell < FEW_LOSSES:
        warnings.append(f"trials_per_cell = {config.trials_per_cell}: with fewer than {FEW_LOSSES} intervals will be wide")
    return warnings
