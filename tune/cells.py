"""The cells of a search of the share: their runs, the shares they start with, when they are done, what they found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from upath import UPath

from synth.storage import study_path
from train.config import RunConfig
from train.flops import count_parameters, train_flops_6nd
from train.grid import mix, run_of
from train.record import RunRecord
from train.sizes import model_of
from train.tokens import PackedInfo
from tune.config import Cell, SearchConfig
from tune.optimum import MIN_POINTS, Curve, fit_curve, share_grid
from tune.results import CellOptimum, TrialResult

FEW_LOSSES = 5
"""With fewer losses than this the interval is mostly the prior's."""
FLAT_FRACTION = 0.5
"""An optimum is called flat when shares over this part of the range are as good as the best, within a run's noise."""


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
    return run_of(
        config.run,
        config.packed,
        packed,
        model_of(cell.model),
        cell.train_tokens,
        mixture,
        config.seed,
        root=config.root,
    )


def trial_result(share: float, record: RunRecord) -> TrialResult:
    """Return what a trial says of its run; a run that is not complete has no loss."""
    loss = record.final.loss_nats_per_token if record.status == "complete" and record.final else None
    return TrialResult(
        share=share,
        run_id=record.run_id,
        status=record.status,
        loss_nats_per_token=loss,
        reason=record.reason,
    )


def order_cells(config: SearchConfig, packed: PackedInfo) -> list[CellSearch]:
    """Return the cells from cheap to dear (6 N D), each with its nearest cheaper one (in log N, log D) as neighbour."""
    places = {
        cell_name(cell): (num_params_of(cell, packed), cell.train_tokens, cell) for cell in config.cells
    }
    ordered = sorted(places, key=lambda name: (train_flops_6nd(*places[name][:2]), name))
    cells = []
    for position, name in enumerate(ordered):
        n, d, cell = places[name]
        distance = {
            other: math.hypot(math.log(places[other][0] / n), math.log(places[other][1] / d))
            for other in ordered
        }
        cheaper = ordered[:position] if config.method == "adaptive" else []
        cells.append(CellSearch(name, cell, min(cheaper, key=lambda other: distance[other], default=None)))
    return cells


def num_params_of(cell: Cell, packed: PackedInfo) -> int:
    """Return the N of a cell: its non-embedding parameters."""
    return count_parameters(model_of(cell.model), packed.vocab_size).non_embedding


# --- what to try, and when to stop -----------------------------------------------------------------------------


def first_shares(config: SearchConfig) -> tuple[float, ...]:
    """Return the shares every cell starts with: the ends and the thirds, where the paper's grid has its runs.

    With fewer than five trials the middle takes the place of the thirds; the `grid` method spreads all its trials.
    """
    low, high = config.share_range
    steps = (
        config.trials_per_cell - 1
        if config.method == "grid"
        else 3
        if config.trials_per_cell >= FEW_LOSSES
        else 2
    )
    candidates = share_grid(config.share_range)
    wanted = (low + (high - low) * step / steps for step in range(steps + 1))
    return tuple(min(candidates, key=lambda share: abs(share - each)) for each in wanted)


def is_done(config: SearchConfig, settled: Sequence[TrialResult]) -> bool:
    """Return whether a cell needs no further trial: all are spent, or the interval of its best share is narrow."""
    if len(settled) >= config.trials_per_cell:
        return True
    if config.stop_interval_width == 0.0 or config.method == "grid":
        return False
    curve = curve_of(config, settled)
    if curve is None:
        return False
    best = curve.best_share()
    return (
        best.low is not None and best.high is not None and best.high - best.low < config.stop_interval_width
    )


def curve_of(config: SearchConfig, settled: Sequence[TrialResult]) -> Curve | None:
    """Return the smooth fit of loss against share; None when too few trials are complete."""
    points = complete_losses(settled)
    if len(points) < MIN_POINTS:
        return None
    return fit_curve([share for share, _ in points], [loss for _, loss in points], config.share_range)


def complete_losses(settled: Sequence[TrialResult]) -> list[tuple[float, float]]:
    """Return (share, loss in nats per token) of the trials that have a loss."""
    return [
        (each.share, each.loss_nats_per_token) for each in settled if each.loss_nats_per_token is not None
    ]


def neighbour_best(neighbour: CellSearch, cell: CellSearch, config: SearchConfig) -> tuple[float, ...]:
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
        raise ValueError(
            f"cell {cell.name}: fewer than {MIN_POINTS} complete trials, so no curve can be drawn"
        )
    run = cell.trials[0].run
    return CellOptimum(
        search=config.name,
        natural=config.natural,
        synthetic=config.synthetic,
        model=cell.cell.model,
        num_params=num_params_of(cell.cell, packed),
        train_tokens=run.num_steps * run.tokens_per_step,
        trials=tuple(cell.settled),
        best_share=curve.best_share(),
        best_loss=curve.best_loss(),
        natural_only_loss=next((loss for share, loss in complete_losses(cell.settled) if share == 0.0), None),
        curve=curve.band(),
        noise_nats=curve.noise_nats(),
        method=curve.describe(),
        warnings=_warnings(config, cell.settled, curve),
    )


def _warnings(config: SearchConfig, settled: Sequence[TrialResult], curve: Curve) -> tuple[str, ...]:
    low, high = config.share_range
    complete = complete_losses(settled)
    close_low, close_high = curve.indistinguishable(within=curve.noise_nats())
    best = curve.best_share().value
    warnings = []
    if len(complete) < len(settled):
        failed = ", ".join(
            f"{each.share:.3g} ({each.status})" for each in settled if each.loss_nats_per_token is None
        )
        warnings.append(
            f"{len(settled) - len(complete)} of {len(settled)} trials have no loss: share {failed}"
        )
    if len(complete) < FEW_LOSSES:
        warnings.append(
            f"the curve is drawn through {len(complete)} losses: the interval rests on what is assumed of it"
        )
    if close_high - close_low >= FLAT_FRACTION * (high - low):
        warnings.append(
            f"flat optimum: shares from {close_low:.2f} to {close_high:.2f} are within the noise of one run "
            f"({curve.noise_nats():.2g} nats) of the best, so any of them will do"
        )
    if best in (low, high) and best not in (0.0, 1.0):
        warnings.append(f"the best share lies at the end of the range searched, {best:g}: widen share_range")
    if not curve.looks_like_one_valley:
        warnings.append("the losses do not look like one smooth valley: repeat the search with another seed")
    return tuple(warnings)
