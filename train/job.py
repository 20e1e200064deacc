"""The Ray seam of train's jobs: tokenise in parallel, and train the runs of a plan or a generator on lanes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from synth.errors import UserError
from synth.identity import is_finished, read_manifest
from synth.job import tasks_at_once
from synth.plan import OFF_THE_GPU_POOLS
from synth.progress import Progress
from synth.storage import study_path
from train import evaluation_rows, exchanges, generator, harness, packing, rate_sweep
from train.branching import in_training_order
from train.config import EvaluateConfig, GeneratorConfig, PackConfig, PretrainConfig, RateSweepConfig
from train.grid import (
    check_placement,
    claim_plan,
    finish_plan,
    plan_pretrain,
    plan_runs,
    read_plan_records,
    summary,
)
from train.lanes.job import Lanes
from train.leftovers import tidy_up_after
from train.rates import MADE_BY as SWEEP
from train.rates import SweptRates
from train.record import RunRecord
from train.run import RunConfig
from train.tokens import PackedInfo

# --- tokens ----------------------------------------------------------------------------------------------------


def pack_tokens(config: PackConfig) -> dict[str, Any]:
    """Tokenise the sources into `packed/<name>`, or what is missing of it, on a running Ray; return the manifest.

    Raises UserError (an input is missing or damaged, the tokenizer cannot be had), IncompleteArtefact (an input is
    not finished), IdentityMismatch (the directory holds another packed set). What is done by then stays done.
    """
    packing.claim(config)
    directory = packing.packed_directory(config)
    if is_finished(directory):
        return read_manifest(directory, "pack_tokens")
    config = config.model_copy(
        update={"root": str(study_path(config.root))}
    )  # workers run in another directory
    shards = packing.list_shards(config)
    missing = packing.list_missing(config, shards)
    progress = Progress("pack_tokens", len(shards), "shards", already=len(shards) - len(missing))
    progress.say("tokenizer and evaluation rows")
    list(_in_tasks(_packing_task, [("pack_tokens: tokenizer", True, packing.prepare_tokenizer, config)], 1))
    list(
        _in_tasks(
            _packing_task,
            [("pack_tokens: evaluation rows", False, evaluation_rows.build_evaluation, config)],
            1,
        )
    )
    work = [
        (f"pack_tokens: {shard.source_name} {shard.stem}", False, packing.tokenize_shard, config, shard)
        for shard in missing
    ]
    num_tokens = 0
    for tokens in _in_tasks(_packing_task, work, config.placement.tasks):
        num_tokens += tokens
        progress.advance(1, f"{num_tokens / progress.elapsed_seconds:,.0f} tokens/s")
    manifest = packing.finish_pack(config)
    for remark in packing.remarks_on(PackedInfo.read(config.root, config.name)):
        progress.say(remark)
    return manifest


def _in_tasks(task: Any, work: Sequence[tuple[Any, ...]], limit: int) -> Iterator[Any]:
    """Run a remote function on pieces of work, at most `limit` (0: one a CPU of the cluster, as it grows) at a time, and
    yield what each returns as it ends; the first error ends it.

    Each piece is the name its task goes by, and the arguments of the function.
    """
    waiting = iter(work)
    running: list[ray.ObjectRef[Any]] = []
    try:
        while True:
            running += [
                task.options(name=name).remote(*arguments)
                for name, *arguments in itertools.islice(waiting, max(0, tasks_at_once(limit) - len(running)))
            ]
            if not running:
                return
            (done,), running = ray.wait(running, num_returns=1)
            yield ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None  # its one sentence, without the worker's traceback
        raise
    finally:
        for each in running:
            ray.cancel(each)


@ray.remote(num_cpus=1, label_selector=OFF_THE_GPU_POOLS)
def _packing_task(threads: bool, work: Callable[..., Any], *arguments: Any) -> Any:
    # The tokenizer's own threads would fight with the tasks beside it, and it reads this at every call.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads else "false"
    return work(*arguments)


# --- pre-training ----------------------------------------------------------------------------------------------


def pretrain_models(config: PretrainConfig, lanes: Lanes | None = None) -> list[RunRecord]:
    """Train the runs of a plan that have no record yet, on these lanes or its own; return all records, in plan order.

    Runs that diverge or fail are recorded with their reason and counted. Raises UserError (see `plan_pretrain`; or when
    not one run of the plan is complete), LanesLost when no lane is left; what is recorded by then stays recorded.
    """
    plan_pretrain(config)
    packed = PackedInfo.read(config.root, config.packed)
    planned = plan_runs(config, packed)
    identity = claim_plan(config, packed, planned)
    runs = [each.run for each in planned]
    found = read_plan_records(config.root, planned)
    tidy_up_after(config.root, found.values())
    missing = in_training_order([run for run in runs if run.run_id not in found], packed.vocab_size)
    progress = _token_progress("pretrain_models", runs, missing)
    found |= {record.run_id: record for record in _train_missing(config, missing, progress, lanes)}
    records = [found[run.run_id] for run in runs]
    finish_plan(config, identity, records)
    progress.say(summary(records))
    if not any(record.status == "complete" for record in records):
        raise UserError(f"no run of plans/{config.name} is complete: {summary(records)}.")
    return records


def sweep_learning_rates(config: RateSweepConfig, lanes: Lanes | None = None) -> SweptRates:
    """Train every size at several peak rates, more where the best lies at the edge, on these lanes or its own; return the
    best of each.

    Raises UserError (see `plan_sweep`; or when no rate of a size trained to its end), LanesLost when no lane is left; what
    is recorded by then stays recorded.
    """
    rate_sweep.plan_sweep(config)
    packed = PackedInfo.read(config.root, config.packed)
    identity = rate_sweep.claim_sweep(config, packed)
    found = rate_sweep.read_sweep_records(config, packed)
    tidy_up_after(config.root, found.values())
    with contextlib.ExitStack() as stack:
        while missing := [each.run for each in rate_sweep.missing_runs(config, packed, found)]:
            if lanes is None:
                width = min(config.placement.lanes, len(missing))
                placement = config.placement.model_copy(update={"lanes": width})
                lanes = stack.enter_context(Lanes(config.root, placement, step=f"{SWEEP}-{config.name}"))
            runs = in_training_order(missing, packed.vocab_size)
            progress = _token_progress(SWEEP, runs, runs)
            found |= {record.run_id: record for record in lanes.run_all(runs, progress)}
            progress.say(summary([found[run.run_id] for run in runs]))
    rates = rate_sweep.finish_sweep(config, packed, identity, found)
    for sentence in rate_sweep.sentences(rates):
        Progress(SWEEP, 0, "tokens").say(sentence)
    return rates


def _train_missing(
    config: PretrainConfig, missing: Sequence[RunConfig], progress: Progress, lanes: Lanes | None
) -> list[RunRecord]:
    if not missing:
        return []
    if lanes is not None:
        return lanes.run_all(missing, progress)
    width = min(config.placement.lanes, len(missing))
    placement = config.placement.model_copy(update={"lanes": width})
    with Lanes(config.root, placement, step=f"pretrain_models-{config.name}") as own:
        return own.run_all(missing, progress)


def evaluate_models(config: EvaluateConfig) -> dict[str, Any]:
    """Score the kept models of a plan that have no scores yet, each in a task of its own; return the manifest.

    Raises UserError (see `plan_evaluation`; or for a task the harness does not know). What is scored by then stays so.
    """
    harness.plan_evaluation(config)
    identity = harness.claim_evaluation(config)
    config = config.model_copy(
        update={"root": str(study_path(config.root))}
    )  # workers run in another directory
    placement, missing = config.placement, harness.missing_scores(config)
    remote = ray.remote(num_cpus=placement.cpus_per_task, num_gpus=placement.gpus_per_task)
    progress = Progress(harness.MADE_BY, len(missing), "models")
    work = [(f"{harness.MADE_BY}: {run_id}", config, run_id) for run_id in missing]
    for _ in _in_tasks(remote(harness.score_model), work, placement.tasks):
        progress.advance()
    return harness.finish_evaluation(config, identity)


def train_generator(config: GeneratorConfig) -> dict[str, Any]:
    """Make a generator: exchanges of its corpus, packed, learnt in one lane, exported; return its manifest.

    Raises UserError (see `plan_generator`; or when training did not complete), LanesLost when its lane is lost.
    """
    config = config.model_copy(
        update={"root": str(study_path(config.root))}
    )  # workers run in another directory
    identity = generator.claim_generator(config)
    directory = generator.generator_directory(config)
    if is_finished(directory):
        return read_manifest(directory, generator.MADE_BY)
    exchanges.write_exchanges(config)
    pack_tokens(generator.pack_config(config))
    run = generator.run_config(config)
    check_placement([run], PackedInfo.read(config.root, run.packed), config.placement)
    if (record := generator.exported_record(config, run)) is None:
        trainer = functools.partial(generator.train_and_export, config)
        placement, step = (
            config.placement.model_copy(update={"lanes": 1}),
            f"{generator.MADE_BY}-{config.name}",
        )
        with Lanes(config.root, placement, step=step, trainer=trainer) as lanes:
            (record,) = lanes.run_all([run], _token_progress(generator.MADE_BY, [run], [run]))
    tidy_up_after(config.root, [record])
    return generator.finish_generator(config, identity, record)


def _token_progress(step: str, runs: Sequence[RunConfig], missing: Sequence[RunConfig]) -> Progress:
    total, left = (sum(run.num_steps * run.tokens_per_step for run in each) for each in (runs, missing))
    return Progress(step, total, "tokens", already=total - left)
