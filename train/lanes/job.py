"""The Ray side of lanes: the queue's actor, and the worker groups that Ray Train holds up."""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from synth.job import beside_the_driver, publish
from synth.progress import Progress
from synth.storage import study_path
from train.lanes.queue import LanesLost, Losses, Order, Word
from train.lanes.queue_actor import QueueActor
from train.lanes.worker import LaneWorker, Trainer
from train.placement import TrainPlacement
from train.record import RunRecord
from train.run import RunConfig
from train.telemetry import of_lanes

POLL_SECONDS = 10.0
"""Longest an idle lane waits in one question to the queue; short enough to keep collectives from timing out."""

WATCH_SECONDS = 2.0
"""How often the driver looks how far things are."""

LATE_SECONDS = 60.0
"""A first lane that takes longer than this is spoken of."""

RESIZE_SECONDS = 60.0
"""How often, at most, a group whose size may change is looked at for more room. A larger group goes on from the last
checkpoint, so there must have been one since the last time."""

CLOSE_SECONDS = 10.0
"""Longest `close` waits for lanes to end."""

MAX_SUBMITTED = 1000
"""Runs one caller has in the queue at once; the actor keeps a slot for each."""

MAX_CALLS = 10_000
"""Calls the queue has open at once: one for every run submitted and lane waiting."""


class _QueueLink:
    """A worker's way to the queue actor. When the actor is gone the lanes are closed, and there is nothing to say."""

    def __init__(self, queue: Any, lane: int, num_workers: int) -> None:
        self._queue, self._lane, self._num_workers = queue, lane, num_workers
        self._group = uuid.uuid4().hex

    def take(self) -> Order:
        with contextlib.suppress(ray.exceptions.RayActorError):
            order: Order = ray.get(
                self._queue.take.remote(self._lane, self._group, self._num_workers, POLL_SECONDS)
            )
            return order
        return Word.STOP

    def beat(self, run_id: str, tokens: int) -> None:
        self._queue.beat.remote(run_id, tokens)

    def complain(self, run_id: str, error: str, outside: bool) -> None:
        self._say(self._queue.complain.remote(run_id, error, outside))

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

    # A local Ray is told to keep its own warnings to itself; ours are worth hearing.
    logging.getLogger("train").setLevel(logging.WARNING)
    link = _QueueLink(config["queue"], config["lane"], ray.train.get_context().get_world_size())
    LaneWorker(
        config["root"], config["placement"], config["trainer"], link, ray.train.torch.get_device()
    ).work()


def _train_run(*arguments: Any, **options: Any) -> RunRecord:
    from train.loop import train_run  # here, so that the driver needs no torch

    return train_run(*arguments, **options)


class _GroupSizes(ElasticScalingPolicy):
    """Ray Train's elastic scaling, to sizes alone that share every step evenly. Runs in Ray Train's controller."""

    def __init__(self, scaling_config: ray.train.ScalingConfig, placement: TrainPlacement) -> None:
        super().__init__(scaling_config)
        self._placement = placement

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((size for size in self._placement.group_sizes if size <= possible), default=0)


class Lanes:
    """Warm worker groups that train a common queue of runs; a context manager.

    Each lane is one `TorchTrainer.fit` whose workers stay up, so that a run costs its training and about a second, not
    the start-up of a process group. Lanes start side by side in the background; runs can be submitted at once, here or
    through `queue`, an actor handle that Tune trials can take along: `ray.get(lanes.queue.submit.remote(run))`.
    """

    def __init__(
        self, root: str, placement: TrainPlacement, *, step: str = "training", trainer: Trainer | None = None
    ) -> None:
        """Prepare lanes under a study root; `step` is who opens them, such as `pretrain_models-grid`, for their names.

        `trainer` is called in place of `train.loop.train_run`, with its arguments; it travels to the workers, so its module
        must load there.
        """
        self.placement = placement
        self._root = str(study_path(root))  # workers run in another directory
        self._trainer = trainer or _train_run
        self._name = f"{step}-lanes-{uuid.uuid4().hex[:12]}"  # Ray Train resumes under a known name, so each start is its own
        # Ray Train wants a directory even though nothing is reported to it; the controller on this node makes a file there.
        self._scratch = tempfile.TemporaryDirectory(prefix="synthscale-lanes-", ignore_cleanup_errors=True)
        self._threads: list[threading.Thread] = []
        self._opened = time.monotonic()
        self._spoken_of: set[str] = set()
        self._orders = itertools.count()

    def __enter__(self) -> Lanes:
        actor: Any = ray.remote(
            **beside_the_driver(), max_concurrency=MAX_CALLS, name=f"run queue of {self._name}"
        )(QueueActor)
        self.queue = actor.remote(self._root, self.placement.lanes, publish)
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
        return self.queue.submit.remote(run, next(self._orders))

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
        if self.placement.elastic:
            sizes = state["lane_sizes"].items()
            news |= {f"size {lane} {size}": f"lane {lane} has {size} workers" for lane, size in sizes}
        if not state["lanes_up"] and seconds > LATE_SECONDS:
            news["late"] = (
                f"no lane is up after {seconds:.0f} s; each takes {self.placement.min_workers} x "
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
        """Hold one worker group up until the queue closes, or it is lost too often without getting anywhere."""
        losses = Losses()
        try:
            reason = "closed"
            while not ray.get(self.queue.state.remote())["closed"]:
                try:
                    self._worker_group(lane).fit()
                except Exception:
                    if not ray.is_initialized():  # the driver has left: asking would join the cluster again
                        raise
                    losses.add(ray.get(self.queue.state.remote())["lane_progress"].get(lane, 0))
                    if losses.in_a_row > self.placement.max_restarts:
                        raise
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever ends a lane is what those who wait for records must hear
            reason = _why_ended(error)
        with contextlib.suppress(Exception, SystemExit):  # the driver may leave the cluster meanwhile
            if ray.is_initialized():
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
        trainer = ray.train.torch.TorchTrainer(
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
                num_workers=placement.workers_per_lane,
                use_gpu=on_gpu,
                resources_per_worker=self._resources(),
                elastic_resize_monitor_interval_s=max(RESIZE_SECONDS, 2 * placement.checkpoint_every_seconds),
            ),
            run_config=ray.train.RunConfig(
                name=f"{self._name}-{lane}-{uuid.uuid4().hex[:6]}",
                storage_path=self._scratch.name,
                # Ray would count losses over the lane's whole life, however many runs it finishes in between.
                failure_config=ray.train.FailureConfig(max_failures=0),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": environment},
            ),
        )
        if placement.elastic:  # Ray has no public way to choose the policy
            start = trainer._initialize_and_run_controller
            policy = _GroupSizes(trainer.scaling_config, placement)
            trainer._initialize_and_run_controller = lambda **given: start(
                **given | {"scaling_policy": policy}
            )
        return trainer

    def _resources(self) -> dict[str, float]:
        gpus = self.placement.gpus_per_worker
        return {"CPU": self.placement.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


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
