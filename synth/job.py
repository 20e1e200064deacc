"""The Ray seam of synth: fan the missing parts of a corpus or of a synthetic set out over the cluster."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.data
import ray.util.metrics
import ray.util.scheduling_strategies

from synth.config import CorpusConfig, RephraseConfig
from synth.corpus import CorpusBuild, Stage, finished_manifest, remove_intermediates
from synth.engines.job import EngineGroups, fetch_to_every_node
from synth.engines.protocol import PASSING_REASONS
from synth.errors import UserError, first_line
from synth.identity import is_finished, read_manifest, reopen
from synth.ledger import MADE_BY, LedgerEntry, missing_parts, parts_to_retry
from synth.open_parts import Answered, OpenParts, Telling
from synth.plan import OFF_THE_GPU_POOLS
from synth.progress import Progress
from synth.ray_data_llm import CommitParts, RequestRows, processor_fields, to_answer, to_request
from synth.rephrase import RephraseWork, finish_work, open_work
from synth.telemetry import Metric, Sample, of_engine, of_part
from synth.worker import LEAST_PARTS, RephraseWorker, most_parts_at_a_time


def publish(samples: Iterable[Sample]) -> None:
    """Show numbers on the Prometheus endpoint of this process's node, for as long as the process lives."""
    for sample in samples:
        meter = _meter(sample.metric)
        labels = dict(zip(sample.metric.labels, sample.labels, strict=True))
        if isinstance(meter, ray.util.metrics.Gauge):
            meter.set(sample.value, labels)
        elif sample.value:  # Ray refuses to add nothing
            meter.inc(sample.value, labels)


@functools.cache
def _meter(metric: Metric) -> Any:
    kind = {"gauge": ray.util.metrics.Gauge, "counter": ray.util.metrics.Counter}[metric.kind]
    return kind(metric.name, metric.help, metric.labels)


def beside_the_driver() -> dict[str, Any]:
    """Return options of a light actor that lives and dies with the driver's node: no spot node's loss may take it."""
    node = ray.get_runtime_context().get_node_id()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return {"num_cpus": 0, "scheduling_strategy": here}


def tasks_at_once(limit: int) -> int:
    """Return how many one-CPU tasks to have submitted: `limit`, or if that is 0 enough for a cluster twice this size.

    Tasks that wait are what makes an autoscaler add nodes, so a cluster of no CPU yet gets some too.
    """
    return limit or 2 * int(ray.cluster_resources().get("CPU", 0)) + 2


# --- build_corpus -------------------------------------------------------------------------------------------------


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
    """Run the tasks of a stage, at most `max_tasks` (0: one a CPU of the cluster, as it grows) at a time, until all are done.

    The first error ends the stage; what is done by then stays done.
    """
    progress = Progress(
        f"{job}: {stage.name}", stage.num_tasks, stage.unit, already=stage.num_tasks - len(stage.todo)
    )
    work = ray.remote(num_cpus=1, label_selector=OFF_THE_GPU_POOLS)(stage.work)
    waiting = iter(stage.todo)
    running: list[Any] = []
    try:
        while True:
            width = tasks_at_once(max_tasks)
            while len(running) < width and (task := next(waiting, None)) is not None:
                running.append(work.options(name=f"{job}: {stage.name} {task.number}").remote(task))
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

PART_ATTEMPTS = 5
"""Times a part may go down with the process that makes it (not with an engine: see `synth.engines.supervisor`) before the job
ends with a reason. Ray Data itself restarts actors and retries their parts for ever."""


def rephrase_corpus(config: RephraseConfig) -> dict[str, Any]:
    """Make `synthetic/<name>`, or what is missing of it, on a running Ray; return its manifest.

    Raises UserError (a recipe or the model is not there, the engine does not start or stays away, the input is damaged, rows keep
    killing the engine, too many rows are rejected), IncompleteArtefact (the corpus or the generator is not
    finished), IdentityMismatch (the directory holds another set).
    """
    work = open_work(config)
    work.claim()
    again = parts_to_retry(work.directory, work.num_parts) if config.retry_quarantined else []
    if is_finished(work.directory):
        if not again:
            return read_manifest(work.directory, MADE_BY)
        reopen(work.directory)
    missing, attempts = sorted({*missing_parts(work.directory, work.num_parts), *again}), 0
    while missing and attempts < PART_ATTEMPTS:
        _make_parts(work, missing)
        missing, attempts = missing_parts(work.directory, work.num_parts), attempts + 1
    if missing:
        raise UserError(
            f"{len(missing)} parts are missing after {PART_ATTEMPTS} attempts: the process that commits them keeps dying, most "
            "likely for want of memory: take larger nodes, or fewer documents_per_part in build_corpus."
        )
    manifest = finish_work(work)
    if rows := sum(manifest["reasons"].get(reason, 0) for reason in PASSING_REASONS):
        progress = Progress("rephrase_corpus", work.num_parts, "parts", already=work.num_parts)
        progress.say(
            f"{rows:,} rows got no answer, for reasons that may pass: --retry_quarantined asks for them again"
        )
    return manifest


def _make_parts(work: RephraseWork, missing: list[int]) -> None:
    """Make the missing parts on actors of one engine each; the first failure ends the job."""
    progress = Progress("rephrase_corpus", work.num_parts, "parts", already=work.num_parts - len(missing))
    accepted = 0
    ask: Callable[[], Answered] = dict  # Ray Data LLM tells nothing of a part before it is done
    if work.config.engine.kind == "ray_data_llm":
        results = _ray_data_llm_results(work, missing)
    else:
        open_parts = ray.remote(**beside_the_driver())(OpenParts).remote()
        results, ask = _results(work, missing, open_parts), functools.partial(_heard, open_parts)
    with Telling(progress, ask) as telling:
        for result in results:
            if failure := result["failure"]:
                raise UserError(failure)
            entry = LedgerEntry.model_validate_json(result["entry"])
            accepted += entry.total.accepted_tokens
            rate = accepted / max(progress.elapsed_seconds, 1e-9)
            telling.finish(entry.part, f"{rate:,.0f} accepted tokens/s")
            publish(of_part(work.config.name, entry, progress, rate))


def _heard(open_parts: Any) -> Answered:
    try:
        heard: Answered = ray.get(open_parts.answered.remote())
    except ray.exceptions.RayError:  # whatever it is, the results say it
        return {}
    return heard


def _results(work: RephraseWork, parts: list[int], open_parts: Any) -> Iterator[dict[str, Any]]:
    """Send part numbers through the actors; yield a small row for each, in no order.

    Only part numbers and ledger entries pass through Ray: actors read and write the study themselves. Nothing but
    the actors asks for a CPU, so no other stage can starve and no engine waits for one.
    """
    placement = work.config.placement
    most = min(placement.engines, len(parts))
    # No more than its share: the engine that is up first would take what keeps the others busy. But enough to have work
    # all the time, since fewer engines may come than were asked for.
    at_once = min(most_parts_at_a_time(work), max(LEAST_PARTS, math.ceil(len(parts) / most)))
    name = f"rephrase_corpus {work.config.name}"
    with _quiet_ray_data(), EngineGroups(name, placement) as groups:
        dataset = ray.data.from_items(
            [{"part": part} for part in parts], override_num_blocks=len(parts)
        ).map_batches(
            RephrasePart,
            fn_constructor_args=(work, open_parts),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(placement.min_engines or most, most),
                max_size=most,
                max_tasks_in_flight_per_actor=at_once,
                max_concurrent_calls_per_actor=at_once,
            ),
            num_cpus=placement.cpus_per_engine,
            num_gpus=placement.gpus_per_engine or None,
            ray_remote_args_fn=groups.actor_options if placement.across_nodes else None,
        )
        dataset.set_name(name)
        yield from dataset.iter_rows()


# --- the same by Ray Data LLM ---

ENGINE_RESTARTS = 2
"""Times an engine of Ray Data LLM that died is started again with the same rows; its own default is for ever."""

SMALL_STAGE_CPUS = 0.1
"""Logical CPUs of every stage beside the engines: with whole ones a small cluster has none left for an engine and waits
for ever, without a word."""


def _ray_data_llm_results(work: RephraseWork, parts: list[int]) -> Iterator[dict[str, Any]]:
    """Send part numbers through drafting, Ray Data LLM's engines and committing; yield as `_results` does."""
    import ray.data.llm

    small = {"num_cpus": SMALL_STAGE_CPUS}
    one = ray.data.ActorPoolStrategy(size=1)
    try:
        with _quiet_ray_data():
            processor = ray.data.llm.build_processor(
                ray.data.llm.vLLMEngineProcessorConfig(**processor_fields(work)), preprocess=to_request, postprocess=to_answer,
                preprocess_map_kwargs=small, postprocess_map_kwargs=small,
            )  # fmt: skip
            engine_stage = processor.get_stage_by_name("vLLMEngineStage")
            engine_stage.map_batches_kwargs["max_task_retries"] = ENGINE_RESTARTS
            requests = ray.data.from_items(
                [{"part": part} for part in parts], override_num_blocks=len(parts)
            ).map_batches(RequestRows, fn_constructor_args=(work,), batch_size=1, compute=one, **small)
            dataset = processor(requests).map_batches(
                CommitParts,
                fn_constructor_args=(work,),
                batch_size=None,
                batch_format="pyarrow",
                compute=one,
                **small,
            )
            dataset.set_name(f"rephrase_corpus {work.config.name}")
            yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        raise _in_one_sentence(error) from None


def _in_one_sentence(error: BaseException) -> UserError:
    """Return what ended a Ray Data execution: the worker's own sentence where there is one, else the last line of Ray's."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, UserError):
            return link
        link = getattr(link, "cause", None) or link.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return UserError(
        f"engine.kind = 'ray_data_llm' did not get through ({first_line(error)}: {lines[-1] if lines else 'no message'}): it tells no "
        "more; parts that are done stay done. engine.kind = 'vllm' finds the row that kills an engine, and says why one did not start."
    )


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Keep Ray Data's own account of an execution out of the job's log; its dashboard and log files still have it."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = PART_ATTEMPTS
    # Its default asks for more tasks in flight than an engine may have, and a pool would never grow past `min_engines`.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    # It takes what a tokenizer weighs for a leak, every half minute.
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    # Its progress module warns that progress bars are off, which is what was asked for.
    quieter = {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}
    levels = {name: logging.getLogger(name).level for name in quieter}
    for name, level in quieter.items():
        logging.getLogger(name).setLevel(level)
    try:
        with ray.data.DataContext.current(context):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


PUBLISH_SECONDS = 2.0
"""How often an engine shows how full it is, and how far its parts are."""

CLOSE_SECONDS = 25.0
"""Time an engine has to end when its actor does: longer than it takes itself, shorter than Ray waits for an actor."""


class RephrasePart:
    """One engine in one Ray actor; Ray Data calls it once a part, several calls at a time.

    The name is what Ray's dashboard shows.
    """

    def __init__(self, work: RephraseWork, open_parts: Any) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open_parts, self._failure = open_parts, ""
        # Raised from here it would come back as Ray's traceback, after several attempts.
        try:
            if work.config.placement.across_nodes and work.config.engine.kind == "vllm":
                fetch_to_every_node(work.model)
            self._worker = RephraseWorker(work)
        except (UserError, OSError) as error:
            self._failure = first_line(error)
        self._showing: asyncio.Task[None] | None = None

    def __del__(self) -> None:
        """End the engine: all Ray Data does at the end of an actor is to let go of this object, outside its event loop.

        Left to the end of the process, an engine's own processes would be taken from it, which it reports as their death.
        """
        if self._loop is not None:
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._worker.close(), self._loop).result(CLOSE_SECONDS)

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Make one part. A failure a person can act on comes back as a sentence, not through Ray's tracebacks."""
        if self._failure:
            return {"entry": [""], "failure": [self._failure]}
        self._loop = asyncio.get_running_loop()
        self._showing = self._showing or asyncio.create_task(_show(self._worker, self._open_parts))
        part = int(batch["part"][0])
        try:
            if await self._open_parts.begin.remote(part) > PART_ATTEMPTS:
                raise UserError(
                    f"part {part}: the process that makes it has died {PART_ATTEMPTS} times, most likely for want of memory: "
                    "lower placement.parts_in_flight or placement.kv_cache_gib, or take larger nodes."
                )
            entry = await self._worker.make_part(part)
        except UserError as error:
            return {"entry": [""], "failure": [str(error)]}
        except OSError as error:
            said = f"part {part}: {first_line(error)}: mend the store or the disk, then run the job again; what is done stays done."
            return {"entry": [""], "failure": [said]}
        return {"entry": [entry.model_dump_json()], "failure": [""]}


async def _show(worker: RephraseWorker, open_parts: Any) -> None:
    me = ray.get_runtime_context().get_actor_id()
    while True:
        publish(of_engine(worker.work.config.name, *worker.load))
        open_parts.hear.remote(me, worker.answered)
        await asyncio.sleep(PUBLISH_SECONDS)
