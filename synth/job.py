"""The Ray seam of synth: fan the missing parts of a corpus or of a synthetic set out over the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from synth.config import CorpusConfig, RephraseConfig
from synth.corpus import CorpusBuild, Stage, finished_manifest, remove_intermediates
from synth.errors import UserError
from synth.identity import is_finished, read_manifest
from synth.ledger import MADE_BY, LedgerEntry, missing_parts
from synth.progress import Progress
from synth.rephrase import RephraseWork, RephraseWorker, finish_work, open_work


def build_corpus(config: CorpusConfig) -> dict[str, Any]:
    """Build `corpora/<name>`, or what is missing of it, on a running Ray; return its manifest.

    Raises UserError (an input is not there or broken, no document is left), IncompleteArtefact (a corpus to stay
    disjoint from is not finished), IdentityMismatch (the directory holds another corpus).
    """
    manifest = finished_manifest(config)
    if manifest is not None:
        remove_intermediates(config)  # a kill can come between the manifest and this
        return manifest
    build = CorpusBuild(config)
    for stage in build.stages():
        _run_stage("build_corpus", stage, config.placement.tasks)
    return build.finish()


def _run_stage(job: str, stage: Stage, max_tasks: int) -> None:
    """Run the tasks of a stage, at most `max_tasks` (0: one a CPU of the cluster) at a time, until all are done.

    The first error ends the stage; what is done by then stays done.
    """
    progress = Progress(
        f"{job}: {stage.name}", stage.num_tasks, stage.unit, already=stage.num_tasks - len(stage.todo)
    )
    width = max_tasks or max(1, int(ray.cluster_resources().get("CPU", 1)))
    work = ray.remote(stage.work)
    waiting = iter(stage.todo)
    running: list[Any] = []
    try:
        while True:
            while len(running) < width and (task := next(waiting, None)) is not None:
                running.append(
                    work.options(name=f"{job}: {stage.name} {task.number}", num_cpus=1).remote(task)
                )
            if not running:
                return
            (done,), running = ray.wait(running, num_returns=1)
            ray.get(done)
            progress.advance()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None  # its one sentence, without the worker's traceback
        raise
    finally:
        for reference in running:
            ray.cancel(reference)


# --- rephrase_corpus ----------------------------------------------------------------------------------------------

ACTOR_RESTARTS = 8
PART_ATTEMPTS_AFTER_LOSS = 3
"""Ray's own defaults restart an actor and retry its parts for ever: bounded, a part that takes the process down
with it ends the job with a reason. (An engine's death is no actor's death; see `synth.supervisor`.)"""


def rephrase_corpus(config: RephraseConfig) -> dict[str, Any]:
    """Make `synthetic/<name>`, or what is missing of it, on a running Ray; return its manifest.

    Raises UserError (a recipe or the model is not there, the engine does not start, the input is damaged, rows keep
    killing the engine, too many rows are rejected), IncompleteArtefact (the corpus or the generator is not
    finished), IdentityMismatch (the directory holds another set).
    """
    work = open_work(config)
    work.claim()
    if is_finished(work.directory):
        return read_manifest(work.directory, MADE_BY)
    missing = missing_parts(work.directory, work.num_parts)
    if missing:
        _make_parts(work, missing)
    return finish_work(work)


def _make_parts(work: RephraseWork, missing: list[int]) -> None:
    """Make the missing parts on actors of one engine each; the first failure ends the job."""
    progress = Progress("rephrase_corpus", work.num_parts, "parts", already=work.num_parts - len(missing))
    accepted = 0
    for result in _results(work, missing):
        if failure := result["failure"]:
            raise UserError(failure)
        entry = LedgerEntry.model_validate_json(result["entry"])
        accepted += entry.total.accepted_tokens
        rate = accepted / max(progress.elapsed_seconds, 1e-9)
        progress.advance(note=f"{rate:,.0f} accepted tokens/s")


def _results(work: RephraseWork, parts: list[int]) -> Iterator[dict[str, Any]]:
    """Send part numbers through the actors; yield a small row for each, in no order.

    Only part numbers and ledger entries pass through Ray: actors read and write the study themselves. Nothing but
    the actors asks for a CPU, so no other stage can starve and no engine waits for one.
    """
    placement = work.config.placement
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = PART_ATTEMPTS_AFTER_LOSS
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items(
            [{"part": part} for part in parts], override_num_blocks=len(parts)
        ).map_batches(
            _PartActor,
            fn_constructor_args=(work,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=min(placement.engines, len(parts)),
                max_tasks_in_flight_per_actor=placement.parts_in_flight,
                max_concurrent_calls_per_actor=placement.parts_in_flight,
            ),
            num_cpus=placement.cpus_per_engine,
            num_gpus=placement.gpus_per_engine or None,
            max_restarts=ACTOR_RESTARTS,
            max_task_retries=PART_ATTEMPTS_AFTER_LOSS,
        )
        yield from dataset.iter_rows()


class _PartActor:
    """One engine in one Ray actor; Ray Data calls it once a part, several calls at a time."""

    def __init__(self, work: RephraseWork) -> None:
        self._worker = RephraseWorker(work)

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Make one part. A failure a person can act on comes back as a sentence, not through Ray's tracebacks."""
        try:
            entry = await self._worker.make_part(int(batch["part"][0]))
        except UserError as error:
            return {"entry": [""], "failure": [str(error)]}
        return {"entry": [entry.model_dump_json()], "failure": [""]}
