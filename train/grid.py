"""From a plan of axes, shares and seeds to runs, and what training them takes. No Ray, no torch.

plans/<name>/recipe.json    what was asked for, and of which packed set
plans/<name>/plan.json      the runs, each with its place on the axes
plans/<name>/manifest.json  how each run ended; written when all of them have a record
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from synth.errors import UserError
from synth.identity import RECIPE_FILE, claim_directory, finish, is_finished
from synth.plan import Plan
from synth.storage import exists, study_path, write_json_atomic
from train.branching import tokens_to_train
from train.config import PretrainConfig
from train.deepspeed_config import deepspeed_config
from train.flops import count_parameters, train_flops
from train.hyperparameters import optimizer_of, rows_per_step_of
from train.mixture import RowUse, check_epochs
from train.placement import TrainPlacement
from train.rates import rate_facts, rate_parents, rate_warnings
from train.record import RunRecord, read_records, records_of
from train.run import Mixture, ModelConfig, RunConfig, RunTemplate, TrainingRules
from train.schedule import check_schedule
from train.sizes import model_of
from train.tokens import PackedInfo
from train.trackers import check_trackers

KIND = "plan"
MADE_BY = "pretrain_models"
PLAN_FILE = "plan.json"

STATUSES = ("complete", "diverged", "failed")

CPU_FLAGS = Path("/proc/cpuinfo")

FEW_STEPS = 50
"""A run with fewer optimiser steps than this is warned about."""


@dataclass(frozen=True)
class PlannedRun:
    """One run and where it lies on the axes of the plan."""

    run: RunConfig
    model: str
    """Size by name."""
    synthetic: str | None
    """Synthetic source; null at share 0, where no source is mixed in."""
    share: float
    """Synthetic share of the training tokens, [0, 1]."""


def mix(natural: str, synthetic: str | None, share: float) -> Mixture:
    """Return the mixture of a share; equal shares give equal mixtures, so that their runs are one run."""
    if synthetic is None or share == 0.0:
        return {natural: 1.0}
    return {synthetic: 1.0} if share == 1.0 else {natural: 1.0 - share, synthetic: share}


def run_of(
    template: RunTemplate,
    packed_name: str,
    packed: PackedInfo,
    model: ModelConfig,
    train_tokens: int,
    mixture: Mixture,
    seed: int,
    *,
    root: str,
) -> RunConfig:
    """Return the run of a template on a packed set, with the numbers the template stands for at this size and budget.

    Raises UserError when the budget is below one step, or the sweep the template names has no rate for this size;
    IncompleteArtefact when that sweep is not finished.
    """
    num_params = count_parameters(model, packed.vocab_size).non_embedding
    rows_per_step = rows_per_step_of(template, num_params, train_tokens, packed.sequence_length)
    per_step = rows_per_step * packed.sequence_length
    if train_tokens < per_step:
        raise UserError(
            f"train_tokens = {train_tokens:,} is less than one step of {per_step:,} tokens (run.rows_per_step = "
            f"{rows_per_step} x sequence_length = {packed.sequence_length}): raise it or lower run.rows_per_step."
        )
    return RunConfig(
        packed=packed_name,
        packed_hash=packed.hash,
        model=model,
        mixture=mixture,
        train_tokens=train_tokens,
        sequence_length=packed.sequence_length,
        seed=seed,
        rows_per_step=rows_per_step,
        optimizer=optimizer_of(template, model, num_params, train_tokens, root),
        branching=template.branching,
        **{name: getattr(template, name) for name in TrainingRules.model_fields},
    )


def plan_runs(config: PretrainConfig, packed: PackedInfo) -> tuple[PlannedRun, ...]:
    """Return every run of the plan once, in the order of its axes, sources, shares and seeds.

    Raises UserError for an unknown model or source, or a budget below one step.
    """
    _check_sources(config, packed)
    sources = config.synthetic or (None,)
    planned: dict[str, PlannedRun] = {}
    for axis in config.axes:
        for name in axis.models:
            for train_tokens in axis.train_tokens:
                for synthetic in sources:
                    for share in config.shares if synthetic else (0.0,):
                        for seed in config.seeds:
                            run = _run(config, packed, name, train_tokens, synthetic, share, seed)
                            label = synthetic if share > 0 else None
                            planned.setdefault(run.run_id, PlannedRun(run, name, label, share))
    return tuple(planned.values())


def plan_directory(root: str, name: str) -> UPath:
    """Return `plans/<name>` under the study root."""
    return study_path(root, "plans", name)


def plan_pretrain(config: PretrainConfig) -> Plan:
    """Return what `pretrain_models` would do; nothing is written.

    Raises UserError when a source is not in the packed set, a budget needs more passes than `max_epochs`, or a run
    does not fit its placement; IncompleteArtefact without a packed set; IdentityMismatch when the name is taken by
    another plan.
    """
    packed = PackedInfo.read(config.root, config.packed)
    planned = plan_runs(config, packed)
    check_placement([each.run for each in planned], packed, config.placement)
    check_trackers(config.root, config.placement)
    use = check_budgets(planned, packed)
    directory = plan_directory(config.root, config.name)
    if exists(directory / RECIPE_FILE):
        claim_directory(directory, KIND, config.identity(), _parents(config, packed))
    records = read_plan_records(config.root, planned)
    missing = [each for each in planned if each.run.run_id not in records]
    own_tokens = tokens_to_train(
        [each.run for each in missing],
        [record.config for record in records.values() if record.status == "complete"],
    )
    facts = _work(planned, missing, own_tokens, packed) | _models(planned, packed)
    facts |= rate_facts(config.root, config.run, (each.model for each in planned)) | _passes(use)
    facts |= count_statuses(records.values())
    if missing:
        facts["device-hours, estimated"] = device_hours(missing, own_tokens, config.root, config.placement)
    return Plan(
        MADE_BY,
        str(directory),
        finished=is_finished(directory) and not missing,
        facts=facts,
        warnings=(*_warnings(config, planned), *_without_model(config.placement, records.values())),
    )


def claim_plan(config: PretrainConfig, packed: PackedInfo, planned: Sequence[PlannedRun]) -> str:
    """Make `plans/<name>` this plan's own, list its runs there and return its identity. Raises IdentityMismatch."""
    directory = plan_directory(config.root, config.name)
    identity = claim_directory(directory, KIND, config.identity(), _parents(config, packed))
    write_json_atomic(directory / PLAN_FILE, {"runs": [_row(each, packed.vocab_size) for each in planned]})
    return identity


def finish_plan(config: PretrainConfig, identity: str, records: Sequence[RunRecord]) -> dict[str, Any]:
    """Write the manifest of the plan: how each run ended; return it."""
    return finish(
        plan_directory(config.root, config.name),
        identity,
        runs={record.run_id: record.status for record in records},
        **{status: sum(record.status == status for record in records) for status in STATUSES},
    )


def read_plan_records(root: str, planned: Iterable[PlannedRun]) -> dict[str, RunRecord]:
    """Return the records there are of the runs of a plan, by run id."""
    return records_of(root, (each.run.run_id for each in planned))


def check_budgets(planned: Iterable[PlannedRun], packed: PackedInfo) -> list[Mapping[str, RowUse]]:
    """Return what every run draws from each source. Raises UserError when one passes over a source too often."""
    return [check_epochs(each.run, packed.num_rows) for each in planned]


def check_placement(runs: Iterable[RunConfig], packed: PackedInfo, placement: TrainPlacement) -> None:
    """Raise UserError when a run cannot be trained on this placement, or its schedule contradicts itself."""
    gpus = placement.gpus_per_worker
    if placement.max_workers > 1 and 0 < gpus < 1:
        raise UserError(
            f"gpus_per_worker = {gpus} with workers_per_lane = {placement.workers_per_lane}: workers "
            "of one lane cannot share a GPU; set workers_per_lane = 1 and raise lanes instead."
        )
    if gpus > 1:
        raise UserError(
            f"gpus_per_worker = {gpus}: a worker trains on one GPU; set gpus_per_worker = 1 and raise workers_per_lane."
        )
    for run in runs:
        check_schedule(run)
        num_params = count_parameters(run.model, packed.vocab_size).total
        for workers in reversed(placement.group_sizes):
            deepspeed_config(run, placement, workers, num_params)


def summary(records: Sequence[RunRecord]) -> str:
    """Return in one sentence how the runs ended, with the reason of the first that did not complete."""
    counts = collections.Counter[str](record.status for record in records)
    ended = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    worst = next((record for record in records if record.status != "complete"), None)
    if worst is None:
        return f"runs: {ended}"
    return (
        f"runs: {ended} (run {worst.run_id} {worst.status}: {worst.reason}); "
        "to train one of them again delete its runs/<run_id>/record.json"
    )


def count_statuses(records: Iterable[RunRecord]) -> dict[str, object]:
    """Return how many runs diverged and failed, each only if any did."""
    counts = collections.Counter[str](record.status for record in records)
    return {f"runs {status}": counts[status] for status in STATUSES[1:] if counts[status]}


def _run(
    config: PretrainConfig,
    packed: PackedInfo,
    model: str,
    train_tokens: int,
    synthetic: str | None,
    share: float,
    seed: int,
) -> RunConfig:
    mixture = mix(config.natural, synthetic, share)
    return run_of(
        config.run, config.packed, packed, model_of(model), train_tokens, mixture, seed, root=config.root
    )


def _parents(config: PretrainConfig, packed: PackedInfo) -> dict[str, str]:
    return {"packed": packed.hash} | rate_parents(config.root, config.run)


def _check_sources(config: PretrainConfig, packed: PackedInfo) -> None:
    known = ", ".join(sorted(packed.sources))
    for field, names in (("natural", (config.natural,)), ("synthetic", config.synthetic)):
        for name in names:
            if name not in packed.sources:
                raise UserError(
                    f"{field}: {name!r} is not a source of packed/{config.packed} (it has {known}): correct the name, or "
                    "pack that source."
                )
    if config.natural in config.synthetic:
        raise UserError(f"synthetic names {config.natural!r}, which is the natural source: take it out.")
    if not config.synthetic and 0.0 not in config.shares:
        raise UserError("synthetic is empty and shares has no 0: name a synthetic source, or add share 0.")


def _row(planned: PlannedRun, vocab_size: int) -> dict[str, Any]:
    run = planned.run
    parameters = count_parameters(run.model, vocab_size)
    return {
        "run_id": run.run_id,
        "model": planned.model,
        "num_params_non_embedding": parameters.non_embedding,
        "num_params_total": parameters.total,
        "train_tokens": run.num_steps * run.tokens_per_step,
        "synthetic": planned.synthetic,
        "share": planned.share,
        "seed": run.seed,
    }


def _work(
    planned: Sequence[PlannedRun],
    missing: Sequence[PlannedRun],
    own_tokens: Mapping[str, int],
    packed: PackedInfo,
) -> dict[str, object]:
    runs = [each.run for each in missing]
    flops = sum(
        train_flops(run.model, packed.vocab_size, run.sequence_length, own_tokens[run.run_id]) for run in runs
    )
    work: dict[str, object] = {
        "runs missing": len(missing),
        "runs": len(planned),
        "tokens missing": sum(own_tokens.values()),
        "steps missing": sum(own_tokens[run.run_id] // run.tokens_per_step for run in runs),
        "FLOP missing": float(f"{flops:.3g}"),
    }
    if any(run.branching for run in runs):
        apart = sum(run.num_steps * run.tokens_per_step for run in runs)
        work["tokens saved by branching"] = apart - sum(own_tokens.values())
    return work


def _models(planned: Sequence[PlannedRun], packed: PackedInfo) -> dict[str, object]:
    models = {each.model: count_parameters(each.run.model, packed.vocab_size) for each in planned}
    return {
        f"parameters of {name}": f"{counts.non_embedding:,} non-embedding, {counts.total:,} in all"
        for name, counts in sorted(models.items(), key=lambda item: item[1].total)
    }


def _passes(use: Sequence[Mapping[str, RowUse]]) -> dict[str, object]:
    most: dict[str, float] = {}
    for of_run in use:
        for name, rows in of_run.items():
            most[name] = max(most.get(name, 0.0), rows.epochs)
    return {f"most passes over {name}": round(epochs, 3) for name, epochs in sorted(most.items())}


def device_hours(
    missing: Sequence[PlannedRun], own_tokens: Mapping[str, int], root: str, placement: TrainPlacement
) -> float | str:
    """Return device-hours at the speed this study's finished runs of the same models had, or why there is no number."""
    on_gpu = placement.gpus_per_worker > 0
    measured: dict[ModelConfig, list[float]] = collections.defaultdict(list)
    for record in read_records(root):
        if record.status == "complete" and (record.placement.gpus_per_worker > 0) == on_gpu:
            measured[record.config.model].append(record.device_seconds / record.train_tokens)
    unmeasured = sorted({each.model for each in missing if each.run.model not in measured})
    if unmeasured:
        return f"unknown: no finished run of {', '.join(unmeasured)} in this study yet"
    seconds = sum(
        statistics.median(measured[each.run.model]) * own_tokens[each.run.run_id] for each in missing
    )
    return float(f"{seconds / 3600:.2g}")


def _warnings(config: PretrainConfig, planned: Sequence[PlannedRun]) -> Iterator[str]:
    longest = max(each.run.train_tokens for each in planned)
    yield from rate_warnings(config.root, config.run, (each.model for each in planned), longest)
    if not config.synthetic and any(share > 0 for share in config.shares):
        yield "synthetic is empty, so only share 0 is trained"
    if len(config.seeds) == 1:
        yield "one seed: nothing will say how much of a difference between runs is noise"
    fewest = min(each.run.num_steps for each in planned)
    if fewest < FEW_STEPS:
        yield f"the shortest run has {fewest} optimiser steps; below about {FEW_STEPS} a loss says little about the model"
    on_cpu = config.placement.gpus_per_worker == 0
    if on_cpu and any(each.run.precision == "bf16" for each in planned) and _emulates_bf16(CPU_FLAGS):
        yield (
            "precision = 'bf16' on a CPU without AVX-512 is emulated, several times slower than float32: set "
            "run.precision = 'fp32', unless the workers are other machines than this one"
        )


def _without_model(placement: TrainPlacement, records: Iterable[RunRecord]) -> Iterator[str]:
    without = sum(record.status == "complete" and not record.placement.keep_models for record in records)
    if placement.keep_models and without:
        yield (
            f"{without} runs are finished without a model, as placement.keep_models was false: to have theirs too, delete "
            "their runs/<run_id>/record.json"
        )


def _emulates_bf16(cpu_flags: Path) -> bool:
    """Return whether this Linux machine's CPU has no AVX-512, without which bfloat16 is computed by conversion."""
    try:
        return "avx512" not in cpu_flags.read_text()
    except OSError:  # no such file: not Linux, and nothing is known
        return False
