"""The Ray seam of train: tokenise in parallel, and train a queue of runs on warm worker groups."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.train

from synth.errors import UserError
from synth.identity import is_finished, read_manifest
from synth.job import beside_the_driver, publish, tasks_at_once
from synth.plan import OFF_THE_GPU_POOLS
from synth.progress import Progress
from synth.storage import study_path
from train import generator, packing
from train.branching import in_training_order
from train.config import GeneratorConfig, PackConfig, PretrainConfig, RunConfig, TrainPlacement
from train.grid import (
    check_placement,
    claim_plan,
    finish_plan,
    plan_pretrain,
    plan_runs,
    read_plan_records,
    summary,
)
from train.lane import LaneWorker, Trainer
from train.queue import LanesLost, Order, RunQueue, Word
from train.record import RunRecord, read_record
from train.telemetry import of_beat, of_lanes, of_record
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
    _in_tasks([("tokenizer", True, packing.prepare_tokenizer, config)], 1, progress)
    _in_tasks([("evaluation rows", False, packing.build_evaluation, config)], 1, progress)
    work = [
        (f"{shard.source_name} {shard.stem}", False, packing.tokenize_shard, config, shard)
        for shard in missing
    ]
    _in_tasks(work, config.placement.tasks, progress)
    manifest = packing.finish_pack(config)
    for remark in packing.remarks_on(PackedInfo.read(config.root, config.name)):
        progress.say(remark)
    return manifest


def _in_tasks(work: Sequence[tuple[Any, ...]], limit: int, progress: Progress) -> None:
    """Run pieces of work, at most `limit` (0: one a CPU of the cluster, as it grows) at a time, until all are done.

    Each is a name, and the arguments of `_packing_task`. The first error ends it.
    """
    waiting = iter(work)
    running: list[ray.ObjectRef[int | None]] = []
    num_tokens = 0
    try:
        while True:
            running += [
                _packing_task.options(name=f"pack_tokens: {name}").remote(*arguments)
                for name, *arguments in itertools.islice(waiting, max(0, tasks_at_once(limit) - len(running)))
            ]
            if not running:
                return
            (done,), running = ray.wait(running, num_returns=1)
            tokens = ray.get(done)
            if tokens is not None:
                num_tokens += tokens
                progress.advance(1, f"{num_tokens / progress.elapsed_seconds:,.0f} tokens/s")
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


# --- warm lanes ------------------------------------------------------------------------------------------------

POLL_SECONDS = 10.0
"""Longest an idle lane waits in one question to the queue; short enough to keep collectives from timing out."""

WATCH_SECONDS = 2.0
"""How often the driver looks how far things are."""

LATE_SECONDS = 60.0
"""A first lane that takes longer than this is spoken of."""

CLOSE_SECONDS = 10.0
"""Longest `close` waits for lanes to end."""

MAX_SUBMITTED = 1000
"""Runs one caller has in the queue at once; the actor keeps a slot for each."""


MAX_CALLS = 10_000
"""Calls the queue has open at once: one for every run submitted and lane waiting."""


class _QueueActor:
    """`train.queue.RunQueue` as an asynchronous actor: submitters wait for records here, lanes ask for work."""

    def __init__(self, root: str, num_lanes: int) -> None:
        self._root = root
        self._queue = RunQueue()
        self._changed = asyncio.Condition()
        self._records: dict[str, asyncio.Future[RunRecord]] = {}
        self._orders = itertools.count()
        self._groups: dict[int, str] = {}
        self._ended: dict[int, str] = {}
        self._num_lanes = num_lanes
        self._closed = False

    async def submit(self, run: RunConfig) -> RunRecord:
        """Return the run's record: the one that exists, or the one a lane is about to write. Raises LanesLost."""
        order = next(self._orders)
        record = await asyncio.to_thread(read_record, self._root, run.run_id)
        if record is not None:
            return record
        self._refuse_without_lanes()
        future = self._records.setdefault(run.run_id, asyncio.get_running_loop().create_future())
        async with self._changed:
            self._queue.add(run, order)
            self._changed.notify_all()
        return await asyncio.shield(future)

    async def take(self, lane: int, group: str, wait_seconds: float) -> Order:
        """Return the lane's next order; `group` names this start of the lane's worker group."""
        self._groups[lane] = group
        try:
            async with asyncio.timeout(wait_seconds), self._changed:
                while not self._closed and self._groups[lane] == group:
                    if (assignment := self._queue.assign(lane)) is None:
                        await self._changed.wait()
                    elif (record := read_record(self._root, assignment.run.run_id)) is None:
                        return assignment
                    else:  # its group died between the record and telling us
                        self._settle(record)
        except TimeoutError:
            return Word.WAIT
        return Word.STOP

    async def beat(self, run_id: str, tokens: int) -> None:
        """Hear how far a run is, tokens."""
        self._queue.beat(run_id, tokens)
        publish(of_beat(run_id, tokens))

    async def complain(self, run_id: str, error: str) -> None:
        """Hear from a worker what it died of."""
        self._queue.complain(run_id, error)

    async def done(self, record: RunRecord) -> None:
        """Hear that a run has its record, and tell who waits for it."""
        async with self._changed:
            self._settle(record)

    def _settle(self, record: RunRecord) -> None:
        publish(of_record(record))
        self._queue.complete(record.run_id)
        self._changed.notify_all()  # a run may have waited for the trunk this one had
        future = self._records.pop(record.run_id, None)
        if future is not None:
            future.set_result(record)

    async def refuse(self, run_id: str, why: str) -> None:
        """Hear that a run cannot be trained as it was asked for; that is the caller's to know, and no record."""
        async with self._changed:
            self._queue.complete(run_id)
            self._changed.notify_all()
        future = self._records.pop(run_id, None)
        if future is not None:
            future.set_exception(UserError(why))

    async def lane_ended(self, lane: int, reason: str) -> None:
        """Hear that a lane is over; what it had in hand goes to another one, or everyone is told there is none."""
        self._ended[lane] = reason
        async with self._changed:
            self._queue.release(lane)
            self._changed.notify_all()
        if len(self._ended) == self._num_lanes:
            for future in self._records.values():
                future.set_exception(self._no_lanes())
            self._records.clear()

    async def close(self) -> None:
        """Tell every lane to stop after the run it has in hand."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def state(self) -> dict[str, Any]:
        """Return `closed`, `lanes_up`, `lanes_ended` (lane -> reason), `runs_waiting` and `tokens_in_hand`."""
        return {
            "closed": self._closed,
            "lanes_up": sorted(self._groups.keys() - self._ended.keys()),
            "lanes_ended": dict(self._ended),
            "runs_waiting": self._queue.num_waiting,
            "tokens_in_hand": self._queue.tokens_in_hand,
        }

    def _refuse_without_lanes(self) -> None:
        if self._closed or len(self._ended) == self._num_lanes:
            raise self._no_lanes()

    def _no_lanes(self) -> LanesLost:
        if self._closed:
            return LanesLost("the lanes are closed; open new ones to train this run")
        reasons = "; ".join(f"lane {lane}: {reason}" for lane, reason in sorted(self._ended.items()))
        return LanesLost(
            f"no lane is left to train on ({reasons}). Finished runs are kept: run the job again to go on"
        )


class _QueueLink:
    """A worker's way to the queue actor. When the actor is gone the lanes are closed, and there is nothing to say."""

    def __init__(self, queue: Any, lane: int) -> None:
        self._queue, self._lane = queue, lane
        self._group = uuid.uuid4().hex

    def take(self) -> Order:
        with contextlib.suppress(ray.exceptions.RayActorError):
            order: Order = ray.get(self._queue.take.remote(self._lane, self._group, POLL_SECONDS))
            return order
        return Word.STOP

    def beat(self, run_id: str, tokens: int) -> None:
        self._queue.beat.remote(run_id, tokens)

    def complain(self, run_id: str, error: str) -> None:
        self._say(self._queue.complain.remote(run_id, error))

    def done(self, record: RunRecord) -> None:
        self._say(self._queue.done.remote(record))

    def refuse(self, run_id: str, why: str) -> None:
        self._say(self._queue.refuse.remote(run_id, why))

    def _say(self, said: Any) -> None:
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(said)


def _work_in_lane(config: dict[str, Any]) -> None:
    """Run on every worker of a lane's group."""
    import ray.train.torch

    link = _QueueLink(config["queue"], config["lane"])
    LaneWorker(
        config["root"], config["placement"], config["trainer"], link, ray.train.torch.get_device()
    ).work()


def _train_run(*arguments: Any, **options: Any) -> RunRecord:
    from train.loop import train_run  # here, so that the driver needs no torch

    return train_run(*arguments, **options)


class Lanes:
    """Warm worker groups that train a common queue of runs; a context manager.

    Each lane is one `TorchTrainer.fit` whose workers stay up, so that a run costs its training and about a second, not
    the start-up of a process group. Lanes start side by side in the background; runs can be submitted at once, here or
    through `queue`, an actor handle that Tune trials can take along: `ray.get(lanes.queue.submit.remote(run))`.
    """

    def __init__(self, root: str, placement: TrainPlacement, *, trainer: Trainer | None = None) -> None:
        """Prepare lanes under a study root. `trainer` is called in place of `train.loop.train_run`, with its arguments;
        it travels to the workers, so its module must load there."""
        self.placement = placement
        self._root = str(study_path(root))  # workers run in another directory
        self._trainer = trainer or _train_run
        self._name = (
            f"lanes-{uuid.uuid4().hex[:12]}"  # Ray Train resumes under a known name, so each start is its own
        )
        # Ray Train wants a directory even though nothing is reported to it; the controller on this node makes a file there.
        self._scratch = tempfile.TemporaryDirectory(prefix="synthscale-lanes-", ignore_cleanup_errors=True)
        self._threads: list[threading.Thread] = []
        self._opened = time.monotonic()
        self._spoken_of: set[str] = set()

    def __enter__(self) -> Lanes:
        actor: Any = ray.remote(
            **beside_the_driver(), max_concurrency=MAX_CALLS, name=f"run queue of {self._name}"
        )(_QueueActor)
        self.queue = actor.remote(self._root, self.placement.lanes)
        for lane in range(self.placement.lanes):
            thread = threading.Thread(
                target=self._keep_up, args=(lane,), name=f"{self._name}-{lane}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, run: RunConfig) -> ray.ObjectRef[RunRecord]:
        """Return a reference to the record the run will have, or has. Getting it raises LanesLost when no lane is left
        and UserError when the run cannot be trained as it is asked for (both as the cause of a RayTaskError)."""
        return self.queue.submit.remote(run)

    def run_all(self, runs: Sequence[RunConfig], progress: Progress) -> list[RunRecord]:
        """Train runs in this order, as lanes come free, and return their records in the same order.

        `progress` is told in training tokens. Raises LanesLost and UserError as `submit` says.
        """
        waiting = iter(runs)
        records: dict[str, RunRecord] = {}
        pending: dict[Any, RunConfig] = {}
        tokens = progress.done
        while True:
            pending |= {
                self.submit(run): run for run in itertools.islice(waiting, MAX_SUBMITTED - len(pending))
            }
            if not pending:
                return [records[run.run_id] for run in runs]
            done, _ = ray.wait(list(pending), timeout=WATCH_SECONDS)
            for reference in done:
                run = pending.pop(reference)
                records[run.run_id] = _record_of(reference)
                tokens += run.num_steps * run.tokens_per_step
            self._tell(progress, tokens, f"{len(records)}/{len(runs)} runs")

    def close(self) -> None:
        """End the lanes. Idle ones are gone when this returns; a run in hand is finished in the background, or dies with
        the driver and resumes from its checkpoint next time."""
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(self.queue.close.remote())
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        ray.kill(self.queue)
        self._scratch.cleanup()

    def _tell(self, progress: Progress, tokens: float, note: str) -> None:
        try:
            state = ray.get(self.queue.state.remote())
        except ray.exceptions.RayActorError:
            raise LanesLost(
                "the queue of the lanes has died; finished runs are kept: run the job again"
            ) from None
        publish(
            of_lanes(
                len(state["lanes_up"]), self.placement.lanes, state["runs_waiting"], state["tokens_in_hand"]
            )
        )
        seconds = time.monotonic() - self._opened
        news = {f"up {lane}": f"lane {lane} is up after {seconds:.0f} s" for lane in state["lanes_up"]}
        news |= {f"ended {lane}": f"lane {lane} is lost: {why}" for lane, why in state["lanes_ended"].items()}
        if not state["lanes_up"] and seconds > LATE_SECONDS:
            news["late"] = (
                f"no lane is up after {seconds:.0f} s; each takes {self.placement.workers_per_lane} x "
                f"{self._resources()}, and free are {_free_resources()}"
            )
        for key in sorted(news.keys() - self._spoken_of):
            self._spoken_of.add(key)
            progress.say(news[key])
        if not state["lanes_up"]:
            note += ", lanes are starting"
        # A run that has just ended is for a moment neither in hand nor counted; progress does not go back for that.
        progress.set(max(progress.done, tokens + state["tokens_in_hand"]), note)

    def _keep_up(self, lane: int) -> None:
        """Hold one worker group up until the queue closes or the group fails for good."""
        try:
            reason = "closed"
            while not ray.get(self.queue.state.remote())["closed"]:
                self._worker_group(lane).fit()
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever ends a lane is what those who wait for records must hear
            reason = _why_ended(error)
        with contextlib.suppress(Exception, SystemExit):  # the driver may have left the cluster meanwhile
            ray.get(self.queue.lane_ended.remote(lane, reason))

    def _worker_group(self, lane: int) -> Any:
        import ray.train.torch

        placement = self.placement
        on_gpu = placement.gpus_per_worker > 0
        environment = {
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(placement.threads_per_worker),
        }
        if not on_gpu:
            environment["DS_ACCELERATOR"] = "cpu"
        return ray.train.torch.TorchTrainer(
            _work_in_lane,
            train_loop_config={
                "root": self._root,
                "placement": placement,
                "trainer": self._trainer,
                "queue": self.queue,
                "lane": lane,
            },
            torch_config=ray.train.torch.TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=placement.workers_per_lane, use_gpu=on_gpu, resources_per_worker=self._resources()
            ),
            run_config=ray.train.RunConfig(
                name=f"{self._name}-{lane}-{uuid.uuid4().hex[:6]}",
                storage_path=self._scratch.name,
                failure_config=ray.train.FailureConfig(max_failures=placement.max_restarts),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": environment},
            ),
        )

    def _resources(self) -> dict[str, float]:
        gpus = self.placement.gpus_per_worker
        return {"CPU": self.placement.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


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
    missing = in_training_order([run for run in runs if run.run_id not in found], packed.vocab_size)
    progress = _token_progress("pretrain_models", runs, missing)
    found |= {record.run_id: record for record in _train_missing(config, missing, progress, lanes)}
    records = [found[run.run_id] for run in runs]
    finish_plan(config, identity, records)
    progress.say(summary(records))
    if not any(record.status == "complete" for record in records):
        raise UserError(f"no run of plans/{config.name} is complete: {summary(records)}.")
    return records


def _train_missing(
    config: PretrainConfig, missing: Sequence[RunConfig], progress: Progress, lanes: Lanes | None
) -> list[RunRecord]:
    if not missing:
        return []
    if lanes is not None:
        return lanes.run_all(missing, progress)
    width = min(config.placement.lanes, len(missing))
    with Lanes(config.root, config.placement.model_copy(update={"lanes": width})) as own:
        return own.run_all(missing, progress)


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
    generator.write_exchanges(config)
    pack_tokens(generator.pack_config(config))
    run = generator.run_config(config)
    check_placement([run], PackedInfo.read(config.root, run.packed), config.placement)
    if (record := generator.exported_record(config, run)) is None:
        trainer = functools.partial(generator.train_and_export, config)
        with Lanes(config.root, config.placement.model_copy(update={"lanes": 1}), trainer=trainer) as lanes:
            (record,) = lanes.run_all([run], _token_progress(generator.MADE_BY, [run], [run]))
    return generator.finish_generator(config, identity, record)


def _token_progress(step: str, runs: Sequence[RunConfig], missing: Sequence[RunConfig]) -> Progress:
    total, left = (sum(run.num_steps * run.tokens_per_step for run in each) for each in (runs, missing))
    return Progress(step, total, "tokens", already=total - left)


def _record_of(reference: Any) -> RunRecord:
    try:
        record: RunRecord = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # its one sentence, without the actor's traceback
    except ray.exceptions.RayActorError:
        raise LanesLost(
            "the queue of the lanes has died; finished runs are kept: run the job again"
        ) from None
    return record


def _why_ended(error: BaseException) -> str:
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    first = next(iter(failures.values()), error)
    lines = str(first).strip().splitlines() or ["it gave no reason"]
    return f"{type(first).__name__}: {lines[0] if isinstance(first, ray.exceptions.RayError) else lines[-1]}"


def _free_resources() -> dict[str, float]:
    return {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
