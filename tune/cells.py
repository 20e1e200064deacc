"""The cells of a search of the share: their mixtures, their runs, and what they learn from one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from upath import UPath

from synth.storage import study_path
from train.flops import count_parameters, train_flops_6nd
from train.grid import mix, run_of
from train.hyperparameters import rows_per_step_of
from train.record import RunRecord
from train.run import Mixture, RunConfig
from train.sizes import model_of
from train.tokens import PackedInfo
from tune.config import Cell, SearchConfig
from tune.mixture_space import MixtureSpace
from tune.results import CellOptimum, TrialResult
from tune.surface import MIN_POINTS, Losses, Surface, fit_surface
from tune.transfer import Donor, Transfer, fit_transfer


@dataclass(frozen=True)
class Choice:
    """What decides a trial in its cell."""

    shares: tuple[float, ...]
    """Of each synthetic source, in the order of the configuration."""
    replicate: int = 0
    """0 for the search's seed, k for the k-th further one."""


@dataclass
class Trial:
    """One choice of one cell: a run, and its result once it has one."""

    cell: str
    run: RunConfig
    choice: Choice
    result: TrialResult | None = None


@dataclass
class CellSearch:
    """One cell on its way to its optimum."""

    name: str
    cell: Cell
    num_params: int
    space: MixtureSpace
    """Mixtures it may try."""
    most_trials: int
    """Trials it may spend."""
    neighbour: str | None = None
    """Nearest cheaper cell; it learns from that one, from that one's neighbour, and so on."""
    trials: list[Trial] = field(default_factory=list)
    done: bool = False
    optimum: CellOptimum | None = None
    """Null while it is searched, and for good when too few trials were complete."""

    @property
    def settled(self) -> list[TrialResult]:
        """Results so far, in the order the trials were chosen."""
        return [trial.result for trial in self.trials if trial.result is not None]

    @property
    def choices(self) -> list[Choice]:
        """Choices so far."""
        return [trial.choice for trial in self.trials]


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


def num_params_of(cell: Cell, packed: PackedInfo) -> int:
    """Return the N of a cell: its non-embedding parameters."""
    return count_parameters(model_of(cell.model), packed.vocab_size).non_embedding


def trial_run(config: SearchConfig, packed: PackedInfo, cell: Cell, choice: Choice) -> RunConfig:
    """Return the run of a choice: the same run, with the same id, that a grid has at this mixture and seed."""
    mixture = mixture_of(config.natural, config.synthetic, choice.shares)
    seed = config.seed + choice.replicate
    model = model_of(cell.model)
    return run_of(
        config.run, config.packed, packed, model, cell.train_tokens, mixture, seed, root=config.root
    )


def mixture_of(natural: str, synthetic: Sequence[str], shares: Sequence[float]) -> Mixture:
    """Return the mixture of these shares; with one source above 0 it is the one a plan has at that share."""
    used = {name: share for name, share in zip(synthetic, shares, strict=True) if share > 0.0}
    if len(used) <= 1:
        name, share = next(iter(used.items()), (None, 0.0))
        return mix(natural, name, share)
    rest = 1.0 - math.fsum(used.values())
    return ({natural: rest} if rest > 1e-9 else {}) | used


def trial_result(config: SearchConfig, choice: Choice, record: RunRecord) -> TrialResult:
    """Return what a trial says of its run; a run that is not complete has no loss."""
    loss = record.final.loss_nats_per_token if record.status == "complete" and record.final else None
    several = len(config.synthetic) > 1
    return TrialResult(
        share=math.fsum(choice.shares),
        shares=dict(zip(config.synthetic, choice.shares, strict=True)) if several else {},
        replicate=choice.replicate,
        run_id=record.run_id,
        status=record.status,
        loss_nats_per_token=loss,
        reason=record.reason,
    )


def choice_of(config: SearchConfig, result: TrialResult) -> Choice:
    """Return the choice a result is of."""
    shares = tuple(result.shares[name] for name in config.synthetic) if result.shares else (result.share,)
    return Choice(shares, result.replicate)


# --- what a cell may try ---------------------------------------------------------------------------------------


def share_caps(config: SearchConfig, packed: PackedInfo, cell: Cell) -> dict[str, float]:
    """Return the highest share each source (natural text included) has rows for within the passes over it that are
    allowed."""
    names = (config.natural, *config.synthetic)
    length = packed.sequence_length
    rows_per_step = rows_per_step_of(config.run, num_params_of(cell, packed), cell.train_tokens, length)
    rows = cell.train_tokens // (rows_per_step * length) * rows_per_step
    slack = math.ceil(math.log2(len(names)))  # rows a source may be off its share, see train.mixture
    caps = dict.fromkeys(names, 1.0)
    for name in names:
        limit = max_epochs_of(config, name)
        allowed = rows if limit is None else math.floor(Fraction(repr(limit)) * packed.num_rows[name])
        if allowed < rows:
            caps[name] = max(0.0, (allowed - slack) / rows)
    return caps


def max_epochs_of(config: SearchConfig, source: str) -> float | None:
    """Return the most passes over a source that are allowed; None for any number."""
    return config.run.max_epochs_by_source.get(source, config.run.max_epochs)


def space_of(config: SearchConfig, caps: Mapping[str, float]) -> MixtureSpace:
    """Return the mixtures a cell may try: the configured range, as far as every source can supply its share."""
    low, high = config.share_range
    return MixtureSpace(
        share_range=(max(low, 1.0 - caps[config.natural]), high),
        caps=tuple(caps[name] for name in config.synthetic),
        steps=config.steps,
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
        cells.append(
            CellSearch(
                name=name,
                cell=cell,
                num_params=n,
                space=space_of(config, share_caps(config, packed, cell)),
                most_trials=config.trials_per_cell,
                neighbour=min(cheaper, key=lambda other: distance[other], default=None),
            )
        )
    return cells


# --- what is known of a cell -----------------------------------------------------------------------------------


def losses_of(config: SearchConfig, space: MixtureSpace, settled: Sequence[TrialResult]) -> Losses:
    """Return the losses of the trials that have one."""
    complete = complete_trials(settled)
    return Losses(
        at=np.array([space.index(choice_of(config, each).shares) for each in complete], dtype=np.intp),
        values=np.array([each.loss_nats_per_token for each in complete], dtype=np.float64),
        seeds=np.array([each.replicate for each in complete], dtype=np.int64),
        known=np.zeros(len(complete)),
    )


def surface_of(config: SearchConfig, space: MixtureSpace, settled: Sequence[TrialResult]) -> Surface | None:
    """Return the smooth fit of a cell's losses; None when too few trials are complete."""
    losses = losses_of(config, space, settled)
    return fit_surface(space.points, losses) if len(losses.values) >= MIN_POINTS else None


def complete_trials(settled: Sequence[TrialResult]) -> list[TrialResult]:
    """Return the trials that have a loss."""
    return [each for each in settled if each.loss_nats_per_token is not None]


def transfer_to(config: SearchConfig, cell: CellSearch, donors: Sequence[CellSearch]) -> Transfer | None:
    """Return what these cells, all of them done, say of another one; None when they have too few losses."""
    found = []
    for donor in donors:
        losses = losses_of(config, donor.space, donor.settled)
        if len(losses.values):
            found.append(
                Donor(
                    log_size=math.log(donor.num_params / cell.num_params),
                    log_budget=math.log(donor.cell.train_tokens / cell.cell.train_tokens),
                    shares=donor.space.points[losses.at],
                    seeds=losses.seeds,
                    losses=losses.values,
                )
            )
    return fit_transfer(cell.space.points, found) if found else None
