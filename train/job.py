"""The Ray seam of train: tokenise in parallel, and train a queue of runs on warm worker groups."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import enum
import functools
import gc
import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from upath import UPath

from synth.errors import UserError
from synth.identity import is_finished, read_manifest
from synth.progress import Progress
from synth.storage import read_json, study_path
from train import generator, packing
from train.config import GeneratorConfig, PackConfig, PretrainConfig, RunConfig, TrainPlacement
from train.grid import (
    check_placement,
    claim_plan,
    finish_plan,
    in_training_order,
    plan_pretrain,
    plan_runs,
    read_plan_records,
    summary,
)
from train.queue import Assignment, LanesLost, RunQueue, failed_record
from train.record import RunRecord, read_record, run_directory, write_record
from train.tokens import PackedInfo, PackedSet

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
    config = config.model_copy(update={"root": str(study_path(config.root))})  # workers run in another directory
    shards = packing.list_shards(config)
    missing = packing.list_missing(config, shards)
    progress = Progress("pack_tokens", len(shards), "shards", already=len(shards) - len(missing))
    progress.say("preparing the tokenizer")
    _in_tasks([(True, packing.prepare_tokenizer, config)], 1, progress)
    work = [(False, packing.build_evaluation, config), *((False, packing.tokenize_shard, config, each) for each in missing)]
    _in_tasks(work, config.placement.tasks or int(ray.cluster_resources().get("CPU", 1)), progress)
    return packing.finish_pack(config)


def _in_tasks(work: Sequence[tuple[Any, ...]], width: int, progress: Progress) -> None:
    """Run pieces of work, `width` at a time, until all are done; the first error ends it."""
    waiting = iter(work)
    running: list[ray.ObjectRef[int | None]] = []
    num_tokens = 0
    try:
        while True:
            running += [_packing_task.remote(*each) for each in itertools.islice(waiting, max(1, width) - len(running))]
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


@ray.remote(num_cpus=1)
def _packing_task(threads: bool, work: Callable[..., Any], *arguments: Any) -> Any:
    # The tokenizer's own threads would fight with the tasks beside it, and it reads this at every call.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads else "false"
    return work(*arguments)


# --- warm lanes ------------------------------------------------------------------------------------------------

POLL_SECONDS = 10.0
"""Longest an idle lane waits in one question to the queue; short enough to keep collectives from timing out."""

PATIENCE_SECONDS = 60.0
"""How long a worker whose run raised waits for the others to say the same, before it gives its group up."""

BEAT_SECONDS = 1.0
"""Least time between two words from a run about how far it is."""

WATCH_SECONDS = 2.0
"""How often the driver looks how far things are."""

LATE_SECONDS = 60.0
"""A first lane that takes longer than this is spoken of."""

CLOSE_SECONDS = 10.0
"""Longest `close` waits for lanes to end."""

MAX_SUBMITTED = 1000
"""Runs one caller has in the queue at once; the actor keeps a slot for each."""


class Word(enum.Enum):
    """What a lane is told when there is no run for it."""

    WAIT = "wait"
    STOP = "stop"


Order = Assignment | Word


@ray.remote(num_cpus=0, max_concurrency=10_000)
class _QueueActor:
    """`train.queue.RunQueue` behind an actor: submitters wait for records here, lanes ask for work."""

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
                        await self.done(record)
        except TimeoutError:
            return Word.WAIT
        return Word.STOP

    async def beat(self, run_id: str, tokens: int) -> None:
        """Hear how far a run is, tokens."""
        self._queue.beat(run_id, tokens)

    async def complain(self, run_id: str, error: str) -> None:
        """Hear from a worker what it died of."""
        self._queue.complain(run_id, error)

    async def done(self, record: RunRecord) -> None:
        """Hear that a run has its record, and tell who waits for it."""
        self._queue.complete(record.run_id)
        future = self._records.pop(record.run_id, None)
        if future is not None:
            future.set_result(record)

    async def refuse(self, run_id: str, why: str) -> None:
        """Hear that a run cannot be trained as it was asked for; that is the caller's to know, and no record."""
        self._queue.complete(run_id)
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
        return LanesLost(f"no lane is left to train on ({reasons}). Finished runs are kept: run the job again to go on")


Trainer = Callable[..., RunRecord]
"""Called as `train.loop.train_run` is; it travels to the workers, so its module must load there."""


def _train_run(*arguments: Any, **options: Any) -> RunRecord:
    from train.loop import train_run  # here, so that the driver needs no torch

    return train_run(*arguments, **options)


@dataclass(frozen=True)
class _LaneSettings:
    """What a warm group is started with; it learns the rest from the queue."""

    root: str
    lane: int
    placement: TrainPlacement
    queue: Any
    trainer: Trainer


def _train_from_queue(config: dict[str, _LaneSettings]) -> None:
    """Run on every rank of a warm group: take a run, train it, see it recorded, until told to stop."""
    worker = _LaneWorker(config["settings"])
    while (order := worker.next_order()) != Word.STOP:
        if isinstance(order, Assignment):
            worker.carry_out(order)
            if worker.settings.placement.zero_stage == 3:
                return  # DeepSpeed's stage 3 keeps every engine alive: only a fresh process frees the memory


class _LaneWorker:
    """One rank of a warm group. All ranks get the same orders and agree on how each ended."""

    def __init__(self, settings: _LaneSettings) -> None:
        import torch.distributed as dist

        self.settings = settings
        self._queue = settings.queue
        self._leads = dist.get_rank() == 0
        self._control = dist.new_group(backend="gloo")  # orders and errors travel on the CPU, also beside NCCL
        self._group = uuid.uuid4().hex

    def next_order(self) -> Order:
        """Return what the queue tells the leading worker, on all of them."""
        import torch.distributed as dist

        order: list[Order] = [Word.STOP]
        if self._leads:
            with contextlib.suppress(ray.exceptions.RayActorError):  # without its queue a lane has nothing to do
                order = [ray.get(self._queue.take.remote(self.settings.lane, self._group, POLL_SECONDS))]
        dist.broadcast_object_list(order, src=0, group=self._control)
        return order[0]

    def carry_out(self, assignment: Assignment) -> None:
        """Train a run and tell the queue how it ended. Raises when that could not be settled with the other ranks."""
        run = assignment.run
        beats = _Beats(self._queue if self._leads else None, run.run_id)
        began = time.perf_counter()
        outcome = self._settle(_Failed(assignment.give_up) if assignment.give_up else self._try(run, beats))
        gc.collect()  # what a run that raised has left behind
        if not self._leads:
            return
        if isinstance(outcome, _Failed):
            outcome = self._record_failure(assignment, outcome.reason, beats, time.perf_counter() - began)
        if isinstance(outcome, _Refused):
            self._tell(self._queue.refuse, run.run_id, outcome.why)
        else:
            self._tell(self._queue.done, outcome)

    def _try(self, run: RunConfig, beats: _Beats) -> _Outcome:
        import ray.train.torch
        import torch

        settings = self.settings
        try:
            record: RunRecord = settings.trainer(
                run,
                PackedSet.open(settings.root, run.packed),
                settings.placement,
                run_directory(settings.root, run.run_id),
                device=ray.train.torch.get_device(),
                report=beats,
            )
            return record
        except UserError as error:
            return _Refused(str(error))
        except OSError as error:  # a full disk or a store out of reach is no property of the run: it is tried again
            self._complain(run, error)
            raise
        except Exception as error:  # whatever else a run raises is recorded as its end, and the lane goes on
            self._complain(run, error)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # raises if the device's context is broken: then this process must go too
            return _Failed(f"{type(error).__name__}: {error}")

    def _settle(self, outcome: _Outcome) -> _Outcome:
        """Return the outcome all ranks agree on. Raises RuntimeError when one of them is gone or stuck.

        The death of one worker reaches the others as an error of their own. So an error counts as the run's only when
        every rank lives to say how it fared; else this one fails too, the group starts anew and the run resumes.
        """
        import torch.distributed as dist

        patience = None if isinstance(outcome, RunRecord) else dt.timedelta(seconds=PATIENCE_SECONDS)
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.monitored_barrier(self._control, timeout=patience)
        dist.all_gather_object(outcomes, outcome, group=self._control)
        return next((each for each in outcomes if not isinstance(each, RunRecord)), outcomes[0])

    def _record_failure(self, assignment: Assignment, reason: str, beats: _Beats, seconds: float) -> RunRecord:
        run, root = assignment.run, self.settings.root
        record = failed_record(
            run,
            PackedInfo.read(root, run.packed).vocab_size,
            self.settings.placement,
            reason,
            tokens=max(assignment.tokens, beats.tokens),
            seconds=seconds,
            tokens_per_second=beats.tokens_per_second,
            attempts=_attempts(run_directory(root, run.run_id)),
        )
        write_record(root, record)
        return record

    def _complain(self, run: RunConfig, error: Exception) -> None:
        self._tell(self._queue.complain, run.run_id, f"{type(error).__name__}: {error}")

    def _tell(self, method: Any, *arguments: Any) -> None:
        with contextlib.suppress(ray.exceptions.RayActorError):  # the lanes were closed while this run was under way
            ray.get(method.remote(*arguments))


@dataclass(frozen=True)
class _Failed:
    """A run that raised."""

    reason: str


@dataclass(frozen=True)
class _Refused:
    """A run that cannot be trained as it was asked for."""

    why: str


_Outcome = RunRecord | _Failed | _Refused


class _Beats:
    """Tells the queue how far a run is: where it starts, then about once a second."""

    def __init__(self, queue: Any, run_id: str) -> None:
        self._queue, self._run_id = queue, run_id
        self._times: tuple[float, float] | None = None
        self._first_tokens = self.tokens = 0
        self._told_at = float("-inf")

    def __call__(self, tokens: int) -> None:
        now = time.perf_counter()
        if self._times is None:
            self._first_tokens = tokens
        self._times = (self._times[0] if self._times else now, now)
        self.tokens = tokens
        if self._queue is not None and now - self._told_at >= BEAT_SECONDS:
            self._told_at = now
            self._queue.beat.remote(self._run_id, tokens)

    @property
    def tokens_per_second(self) -> float:
        """Speed between the first and the last sign of life; 0 when there were not two."""
        seconds = self._times[1] - self._times[0] if self._times else 0.0
        return (self.tokens - self._first_tokens) / seconds if seconds > 0 else 0.0


class Lanes:
    """Warm worker groups that train a common queue of runs; a context manager.

    Each lane is one `TorchTrainer.fit` whose workers stay up, so that a run costs its training and about a second, not
    the start-up of a process group. Lanes start side by side in the background; runs can be submitted at once, here or
    through `queue`, an actor handle that Tune trials can take along: `ray.get(lanes.queue.submit.remote(run))`.
    """

    def __init__(self, root: str, placement: TrainPlacement, *, trainer: Trainer | None = None) -> None:
        """Prepare lanes under a study root. `trainer` is called in place of `train.loop.train_run`, with its arguments."""
        self.placement = placement
        self._root = str(study_path(root))  # workers run in another directory
        self._trainer = trainer or _train_run
        self._name = f"lanes-{uuid.uuid4().hex[:12]}"  # Ray Train resumes under a known name, so each start is its own
        self._threads: list[threading.Thread] = []
        self._opened = time.monotonic()
        self._spoken_of: set[str] = set()

    def __enter__(self) -> Lanes:
        self.queue: Any = _QueueActor.remote(self._root, self.placement.lanes)
        for lane in range(self.placement.lanes):
            thread = threading.Thread(target=self._keep_up, args=(lane,), name=f"{self._name}-{lane}", daemon=True)
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
            pending |= {self.submit(run): run for run in itertools.islice(waiting, MAX_SUBMITTED - len(pending))}
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

    def _tell(self, progress: Progress, tokens: float, note: str) -> None:
        try:
            state = ray.get(self.queue.state.remote())
        except ray.exceptions.RayActorError:
            raise LanesLost("the queue of the lanes has died; finished runs are kept: run the job again") from None
        seconds = time.monotonic() - self._opened
        news = {f"up {lane}": f"lane {lane} is up after {seconds:.0f} s" for lane in state["lanes_up"]}
        news |= {f"ended {lane}": f"lane {lane} is lost: {why}" for lane, why in state["lanes_ended"].items()}
        if not state["lanes_up"] and seconds > LATE_SECONDS:
            news["late"] = (
                f"no lane is up after {seconds:.0f} s; each takes {self.placement.workers_per_lane} x "
                f"{self._resources()}, and free are {_free_resources()}"
            )
        for key in news.keys() - self._spoken_of:
            self._spoken_of.add(key)
            progress.say(news[key])
        progress.set(tokens + state["tokens_in_hand"], note)

    def _keep_up(self, lane: int) -> None:
        """Hold one worker group up until the queue closes or the group fails for good."""
        try:
            reason = "closed"
            while not ray.get(self.queue.state.remote())["closed"]:
                self._worker_group(lane).fit()
        except (Exception, SystemExit) as error:  # whatever ends a lane is what those who wait for records must hear
            reason = _why_ended(error)
        with contextlib.suppress(Exception, SystemExit):  # the driver may have left the cluster meanwhile
            ray.get(self.queue.lane_ended.remote(lane, reason))

    def _worker_group(self, lane: int) -> Any:
        import ray.train.torch

        placement = self.placement
        on_gpu = placement.gpus_per_worker > 0
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(placement.threads_per_worker)}
        if not on_gpu:
            environment["DS_ACCELERATOR"] = "cpu"
        return ray.train.torch.TorchTrainer(
            _train_from_queue,
            train_loop_config={"settings": _LaneSettings(self._root, lane, placement, self.queue, self._trainer)},
            torch_config=ray.train.torch.TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=placement.workers_per_lane, use_gpu=on_gpu, resources_per_worker=self._resources()
            ),
            run_config=ray.train.RunConfig(
                name=f"{self._name}-{lane}-{uuid.uuid4().hex[:6]}",
                storage_path=str(study_path(self._root, ".lanes")),
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
    config = config.model_copy(update={"root": str(study_path(config.root))})  # workers run in another directory
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
        raise LanesLost("the queue of the lanes has died; finished runs are kept: run the job again") from None
    return record


def _attempts(directory: UPath) -> int:
    from train.loop import ATTEMPTS_FILE

    try:
        return int(read_json(directory / ATTEMPTS_FILE)["attempts"])
    except FileNotFoundError:
        return 1


def _why_ended(error: Exception) -> str:
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    first = next(iter(failures.values()), error)
    lines = str(first).strip().splitlines() or ["it gave no reason"]
    return f"{type(first).__name__}: {lines[0] if isinstance(first, ray.exceptions.RayError) else lines[-1]}"


def _free_resources() -> dict[str, float]:
    return {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
