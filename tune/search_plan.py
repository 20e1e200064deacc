"""What a search of the share would do, and whether it can be done; nothing is written. No Ray."""

from __future__ import annotations

from collections.abc import Iterator

from synth.errors import UserError
from synth.identity import RECIPE_FILE, is_finished
from synth.plan import Plan
from synth.storage import exists
from train.flops import train_flops_6nd
from train.grid import check_placement
from train.mixture import check_epochs
from train.record import records_of
from train.run import RunConfig
from train.tokens import PackedInfo
from tune.cells import (
    CellSearch,
    cell_directory,
    cell_name,
    max_epochs_of,
    search_directory,
    share_caps,
    trial_run,
)
from tune.config import SearchConfig
from tune.rounds import FEW_LOSSES, first_choices
from tune.search import BEST_FILE, cells_of, claim_search


def plan_search(config: SearchConfig) -> Plan:
    """Return what `search_mixture` would do.

    Raises UserError as `check_search` does; IncompleteArtefact without a packed set; IdentityMismatch when the name is
    taken by another search.
    """
    packed = PackedInfo.read(config.root, config.packed)
    check_search(config, packed)
    directory = search_directory(config)
    if exists(directory / RECIPE_FILE):
        claim_search(config, packed)
    cells = cells_of(config, packed)
    first = {run.run_id for cell in cells for run in _first_runs(config, packed, cell)}
    done = [cell.name for cell in cells if exists(cell_directory(config, cell.name) / BEST_FILE)]
    open_cells = [cell for cell in cells if cell.name not in done]
    tokens = [_tokens(config, packed, cell) * cell.most_trials for cell in open_cells]
    flops = sum(train_flops_6nd(cell.num_params, each) for cell, each in zip(open_cells, tokens, strict=True))
    facts: dict[str, object] = {
        "cells missing": len(open_cells),
        "cells": len(cells),
        "trials at most": sum(cell.most_trials for cell in open_cells),
        "shares every cell starts with": _starts(config, cells[0]),
        "runs of these that have a record": len(records_of(config.root, first)),
        "tokens at most": sum(tokens),
        "FLOP (6 N D) at most": float(f"{flops:.3g}"),
    }
    if config.max_tokens is not None:
        facts["trials at most by cell"] = ", ".join(f"{cell.name} {cell.most_trials}" for cell in cells)
    warnings = tuple(_warnings(config, packed, cells))
    return Plan("search_mixture", str(directory), is_finished(directory), facts, warnings)


def check_search(config: SearchConfig, packed: PackedInfo) -> None:
    """Raise UserError when this search cannot be run on this packed set: a source or size is not known, a cell is given
    twice or its budget is below one step, its sources leave it too few mixtures, or the trials or tokens do not suffice
    to begin with."""
    for role, sources in (("natural", (config.natural,)), ("synthetic", config.synthetic)):
        for source in sources:
            if source not in packed.sources:
                raise UserError(
                    f"{role}: {source!r} is not a source of packed/{config.packed} (it has {', '.join(sorted(packed.sources))}): "
                    "correct the name, or pack that source."
                )
    if config.natural in config.synthetic:
        raise UserError(f"natural and synthetic are both {config.natural!r}: name two sources.")
    names = [cell_name(cell) for cell in config.cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"cells: {twice[0]} is given more than once; give each cell once.")
    runs = [run for cell in cells_of(config, packed) for run in _first_runs(config, packed, cell)]
    for run in runs:
        check_epochs(run, packed.num_rows)
    check_placement(runs, packed, config.placement)


def _first_runs(config: SearchConfig, packed: PackedInfo, cell: CellSearch) -> list[RunConfig]:
    return [trial_run(config, packed, cell.cell, each) for each in first_choices(config, cell.space)]


def _tokens(config: SearchConfig, packed: PackedInfo, cell: CellSearch) -> int:
    run = _first_runs(config, packed, cell)[0]
    return run.num_steps * run.tokens_per_step


def _starts(config: SearchConfig, cell: CellSearch) -> str:
    first = [each.shares for each in first_choices(config, cell.space)]
    return ", ".join("+".join(f"{share:.3g}" for share in shares) for shares in first)


def _warnings(config: SearchConfig, packed: PackedInfo, cells: list[CellSearch]) -> Iterator[str]:
    if config.placement.concurrent_trials < config.placement.lanes:
        yield (
            f"placement.concurrent_trials = {config.placement.concurrent_trials} is below placement.lanes = "
            f"{config.placement.lanes}: some lanes will stand idle"
        )
    if config.method == "adaptive" and config.trials_per_round * len(cells) < config.placement.lanes:
        yield (
            f"trials_per_round = {config.trials_per_round}: after its first round a cell tries so many mixtures at a time, fewer in all "
            f"cells ({len(cells)}) than placement.lanes = {config.placement.lanes}: some lanes will stand idle"
        )
    if config.trials_per_cell < FEW_LOSSES:
        yield f"trials_per_cell = {config.trials_per_cell}: with fewer than {FEW_LOSSES} intervals will be wide"
    if config.max_seeds > 1 and config.method == "grid":
        yield f"max_seeds = {config.max_seeds} has no effect on method = 'grid', which trains every mixture once"
    for cell in cells:
        for source, cap in share_caps(config, packed, cell.cell).items():
            if cap < 1.0:
                yield (
                    f"cell {cell.name}: source {source} has tokens for a share of at most {cap:.3g} in "
                    f"{max_epochs_of(config, source):g} passes, so no more is tried"
                )
