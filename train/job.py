"""The Ray seam of train: tokenise in parallel, and train a queue of runs on warm worker groups."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import itertools
import pkgutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ray
import ray.train

from synth.storage import study_path
from train.config import RunConfig, TrainPlacement
from train.queue import Assignment, LanesLost, RunQueue, failed_record
from train.record import RunRecord, read_record, run_directory, write_record
from train.tokens import PackedSet


# --- warm lanes ------------------------------------------------------------------------------------------------

POLL_SECONDS = 10.0
"""Longest an idle lane waits in one question to the queue; short enough to keep collectives from timing out."""

PATIENCE_SECONDS = 60.0
"""How long a worker whose run raised waits for the others to say the same, before it gives its group up."""

STOP, WAIT = "stop", "wait"
Order = Assignment | Literal["stop", "wait"]


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
                    assignment = self._queue.assign(lane)
                    if assignment is not None:
                        return assignment
                    await self._changed.wait()
        except TimeoutError:
            return WAIT
        return STOP

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


@dataclass(frozen=True)
class _LaneSettings:
    """What a warm group is started with; it learns the rest from the queue."""

    root: str
    lane: int
    placement: TrainPlacement
    queue: Any
    trainer: str


def _train_from_queue(config: dict[str, _LaneSettings]) -> None:
    """Run on every rank of a warm group: take a run, train it, record it, until told to stop."""
    import torch
    import torch.distributed as dist

    settings = config["settings"]
    torch.set_num_threads(settings.placement.threads_per_worker)
    control = dist.new_group(backend="gloo")  # orders and errors travel on the CPU, also beside NCCL
    leads = dist.get_rank() == 0
    group = uuid.uuid4().hex
    train = pkgutil.resolve_name(settings.trainer)
    while (order := _next_order(settings, group, control, leads)) != STOP:
        if isinstance(order, str):
            continue
        record = _train_one(settings, order, train, control, leads)
        if leads:
            write_record(settings.root, record)
            ray.get(settings.queue.done.remote(record))
        if settings.placement.zero_stage == 3:
            return  # DeepSpeed's stage 3 keeps every engine alive: a fresh group is the only way to free the memory


def _next_order(settings: _LaneSettings, group: str, control: Any, leads: bool) -> Order:
    import torch.distributed as dist

    order: list[Order] = [STOP]
    if leads:
        with contextlib.suppress(ray.exceptions.RayActorError):  # without its queue the lane has nothing to do
            order = [ray.get(settings.queue.take.remote(settings.lane, group, POLL_SECONDS))]
    dist.broadcast_object_list(order, src=0, group=control)
    return order[0]


def _train_one(
    settings: _LaneSettings, assignment: Assignment, train: Callable[..., RunRecord], control: Any, leads: bool
) -> RunRecord:
    """Return the run's record; what a run raises on all ranks becomes a record too. Raises when a peer is lost."""
    run, placement = assignment.run, settings.placement
    began = time.perf_counter()
    beats = _Beats(settings.queue if leads else None, run.run_id)
    packed = PackedSet.open(settings.root, run.packed)
    error = assignment.give_up
    if error is None:
        try:
            directory = run_directory(settings.root, run.run_id)
            record = train(run, packed, placement, directory, device=ray.train.torch.get_device(), report=beats)
        except Exception as failure:  # whatever a run raises is recorded as its own end, and the lane goes on
            error = f"{type(failure).__name__}: {failure}"
    errors = _errors_of_all(settings, run, error, control)
    if not errors:
        return record
    gc.collect()
    seconds = time.perf_counter() - began
    return failed_record(
        run, packed.vocab_size, placement, errors[0], tokens=beats.tokens, seconds=seconds, rate=beats.rate
    )


def _errors_of_all(settings: _LaneSettings, run: RunConfig, error: str | None, control: Any) -> list[str]:
    """Return what the ranks raised, rank order. Raises RuntimeError when one of them is gone or stuck.

    The death of one worker reaches the others as an error of their own. So an error counts as the run's only when
    every rank lives to say how it fared; else this worker fails too, the group starts anew and the run resumes.
    """
    import torch.distributed as dist

    patience = datetime.timedelta(seconds=PATIENCE_SECONDS) if error else None
    errors: list[str | None] = [None] * dist.get_world_size()
    try:
        dist.monitored_barrier(group=control, timeout=patience)
        dist.all_gather_object(errors, error, group=control)
    except RuntimeError:
        if error is not None:
            ray.get(settings.queue.complain.remote(run.run_id, error))
        raise
    return [each for each in errors if each is not None]


class _Beats:
    """Tells the queue how far a run is: at its first step, then about once a second."""

    def __init__(self, queue: Any, run_id: str) -> None:
        self._queue, self._run_id = queue, run_id
        self._first: tuple[float, int] | None = None
        self._last_beat = float("-inf")
        self._now = 0.0
        self.tokens = 0
        """Training tokens done."""

    def __call__(self, tokens: int) -> None:
        self._now, self.tokens = time.perf_counter(), tokens
        self._first = self._first or (self._now, tokens)
        if self._queue is not None and self._now - self._last_beat >= 1.0:
            self._last_beat = self._now
            self._queue.beat.remote(self._run_id, tokens)

    @property
    def rate(self) -> float:
        """Tokens per second between the first and the last sign of life; 0 when there were not two."""
        if self._first is None or self._now <= self._first[0]:
            return 0.0
        return (self.tokens - self._first[1]) / (self._now - self._first[0])


class Lanes:
    """Warm worker groups that train a common queue of runs: a context manager.

    Each lane is one `TorchTrainer.fit` whose workers stay up, so a run costs its training and about a second, not the
    start-up of a process group. Lanes start side by side in the background; runs can be submitted at once.
    """

    def __init__(self, root: str, placement: TrainPlacement, *, trainer: str = "train.loop:train_run") -> None:
        self.placement = placement
        self._root = str(study_path(root))  # workers run in another directory
        self._trainer = trainer
        self._name = f"lanes-{uuid.uuid4().hex[:12]}"  # Ray Train resumes a known name, so each start has its own
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Lanes:
        self.queue = _QueueActor.remote(self._root, self.placement.lanes)
        self._threads = [
            threading.Thread(target=self._keep_up, args=(lane,), name=f"{self._name}-{lane}", daemon=True)
            for lane in range(self.placement.lanes)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, run: RunConfig) -> ray.ObjectRef[RunRecord]:
        """Return a reference to the record the run will have; getting it raises LanesLost when no lane is left."""
        return self.queue.submit.remote(run)

    def close(self) -> None:
        ray.get(self.queue.close.remote())
        for thread in self._threads:
            thread.join()
        ray.kill(self.queue)

    def _keep_up(self, lane: int) -> None:
        """Hold one worker group up until the queue closes or the group fails for good."""
        try:
            reason = "closed"
            while not ray.get(self.queue.state.remote())["closed"]:
                self._worker_group(lane).fit()
        except Exception as error:  # whatever ends a lane is what those who wait for records must hear
            reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.queue.lane_ended.remote(lane, reason))

    def _worker_group(self, lane: int) -> Any:
        import ray.train.torch

        placement = self.placement
        on_gpu = placement.gpus_per_worker > 0
        resources = {"CPU": placement.cpus_per_worker} | ({"GPU": placement.gpus_per_worker} if on_gpu else {})
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(placement.threads_per_worker)}
        if not on_gpu:
            environment["DS_ACCELERATOR"] = "cpu"
        return ray.train.torch.TorchTrainer(
            _train_from_queue,
            train_loop_config={"settings": _LaneSettings(self._root, lane, placement, self.queue, self._trainer)},
            torch_config=ray.train.torch.TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=placement.workers_per_lane, use_gpu=on_gpu, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=f"{self._name}-{lane}-{uuid.uuid4().hex[:6]}",
                storage_path=str(study_path(self._root, ".lanes")),
                failure_config=ray.train.FailureConfig(max_failures=placement.max_restarts),
                worker_runtime_env={"env_vars": environment},
            ),
        )
