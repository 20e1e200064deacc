"""Which step of a study runs when: after those it needs, and beside others where the cluster has room for both."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from upath import UPath

from rayjobs.sharing import take_over
from rayjobs.study import Step, StudyConfig, steps_of
from synth.config import JobConfig
from synth.errors import first_line
from synth.plan import Plan
from synth.progress import clock
from synth.storage import list_names, read_json, study_path, write_json_atomic
from synth.study_log import StudyLog
from train.placement import TrainPlacement

RUNNING = "running"
"""Directory under the study root with one file for each process that runs a study there: its steps and since when."""

BEAT_SECONDS = 60.0
"""How often a process says that it is still there."""
SILENT_SECONDS = 600.0
"""A process of another machine that has not said so for this long is taken to be gone: its pid says nothing here."""

FEWEST_CPUS_TO_OVERLAP = 4
"""A smaller cluster runs one step after the other: two would only slow each other down."""


@dataclass(frozen=True)
class Demand:
    """What a step asks of the cluster while it runs."""

    cpus: float
    gpus: float = 0.0
    elastic: bool = False
    """Whether it works with any number of CPUs, and takes all that are free."""
    group_sizes: tuple[int, ...] = ()
    """Numbers of workers its lanes work with, ascending; what it asks for is what the last of them takes. () where there is
    no choice."""

    def within(self, cpus: float, gpus: float) -> Demand | None:
        """Return the most of it that so much holds; None when not even the least does."""
        if self.elastic:
            return replace(self, cpus=float(int(cpus))) if cpus >= 1 and self.gpus <= gpus else None
        for at in reversed(range(max(1, len(self.group_sizes)))):
            part = self.group_sizes[at] / self.group_sizes[-1] if self.group_sizes else 1.0
            if self.cpus * part <= cpus and self.gpus * part <= gpus:
                sizes = self.group_sizes[: at + 1]
                return replace(self, cpus=self.cpus * part, gpus=self.gpus * part, group_sizes=sizes)
        return None


def demand_of(step: Step) -> Demand:
    """Return what a step's placement asks for; a step that runs on the driver asks for nothing."""
    placement: Any = getattr(step.config, "placement", None)
    if step.section in ("corpora", "pack"):
        return Demand(float(placement.tasks or 1), elastic=placement.tasks == 0)
    if step.section == "rephrase":
        engines = placement.min_engines or placement.engines
        # The stages of Ray Data LLM share a CPU beside the engines; of the other kinds engines are all there is.
        beside = 1 if step.config.engine.kind == "ray_data_llm" else 0
        return Demand(engines * placement.cpus_per_engine + beside, engines * placement.gpus_per_engine)
    if isinstance(placement, TrainPlacement):
        workers = placement.max_workers * (1 if step.section == "generators" else placement.lanes)
        sizes = placement.group_sizes if placement.elastic else ()
        return Demand(
            workers * placement.cpus_per_worker, workers * placement.gpus_per_worker, group_sizes=sizes
        )
    return Demand(0.0)


def placed_within(config: Any, demand: Demand) -> Any:
    """Return a step's configuration with a placement that takes no more than this of the cluster."""
    if demand.elastic:
        change: dict[str, Any] = {"tasks": int(demand.cpus)}
    elif demand.group_sizes:
        least, most = demand.group_sizes[0], demand.group_sizes[-1]
        change = {"workers_per_lane": most if least == most else (least, most)}
    else:
        return config
    return config.model_copy(update={"placement": config.placement.model_copy(update=change)})


def fitting(
    ready: Sequence[tuple[Step, Demand]], running: Sequence[Demand], cpus: float, gpus: float
) -> list[tuple[Step, Demand]]:
    """Return the steps to start now on a cluster of this size, in order; at least one when nothing runs.

    A step whose placement is fixed comes before one that takes what is left, which then gets just that, for as long as it runs.
    """
    if not running and (cpus < FEWEST_CPUS_TO_OVERLAP or len(ready) == 1):
        return list(ready[:1])
    if running and cpus < FEWEST_CPUS_TO_OVERLAP:
        return []
    free_cpus = cpus - sum(need.cpus for need in running)
    free_gpus = gpus - sum(need.gpus for need in running)
    started: list[tuple[Step, Demand]] = []
    for step, wanted in sorted(ready, key=lambda each: (each[1].elastic, len(each[1].group_sizes) > 1)):
        need = wanted.within(free_cpus, free_gpus)
        if need is None:
            if running or started:
                continue
            need = wanted  # nothing will ever leave it more room
        free_cpus, free_gpus = free_cpus - need.cpus, free_gpus - need.gpus
        started.append((step, need))
    return started


class Schedule:
    """One pass over the steps of a study. `run` returns when all are finished, or raises what stopped one of them."""

    def __init__(
        self,
        study: StudyConfig,
        steps: Sequence[Step],
        connect: Callable[[str, JobConfig], None],
        say: Callable[[str], None],
        size: Callable[[], tuple[float, float]] | None = None,
        redone: Collection[Step] = (),
    ) -> None:
        """Take the steps in order, how to connect to Ray, and where lines go; `size` gives the cluster's CPUs and GPUs.

        `redone` are steps to be done again, which are not taken over from another study.
        """
        self._study, self._connect, self._say = study, connect, say
        self._size = size or cluster_size
        self._steps = steps
        self._all = {step.key: step for step in steps_of(study)}
        self._redone = {step.key for step in redone}
        self._waiting = list(steps)
        self._plans: dict[str, Plan] = {}
        self._running: dict[str, Demand] = {}
        self._connected: set[str] = set()
        self._began_at: dict[str, str] = {}
        self._log = StudyLog(study.root)
        self._outcomes: queue.Queue[tuple[Step, float, BaseException | None]] = queue.Queue()

    def run(self) -> None:
        """Run everything. Raises what stopped a step or kept it from beginning, after the steps at work have ended."""
        forget_the_dead(self._study.root)
        self._warn_of_others()
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(over,), name="beat", daemon=True)
        beat.start()
        with ExitStack() as stack:
            lanes = _SharedLanes(stack)
            try:
                while self._waiting or self._running:
                    self._start_next(lanes)
                    if self._running:
                        self._settle(*self._outcomes.get())
            except Exception:
                self._wait_for_the_rest()
                raise
            finally:
                over.set()
                beat.join()
                running_path(self._study.root, socket.gethostname(), os.getpid()).unlink(missing_ok=True)

    def _start_next(self, lanes: _SharedLanes) -> None:
        ready = self._ready()
        if not ready:
            return
        if (on_the_driver := next((step for step in ready if not step.job.needs_ray), None)) is not None:
            self._run_here(on_the_driver, {})
            return
        if not self._running:  # else it is connected, and this step may have to wait
            self._connect_for(ready[0])
        cpus, gpus = self._size()
        started = fitting(
            [(step, demand_of(step)) for step in ready], list(self._running.values()), cpus, gpus
        )
        if len(started) == 1 and not self._running:
            self._run_here(started[0][0], lanes.for_step(started[0][0]))
            return
        lanes.close()  # they hold CPUs that are counted as free here
        for step, need in started:
            self._run_beside(step, need)

    def _ready(self) -> list[Step]:
        """Return waiting steps whose parents are done and that have something left to do; note those that have not."""
        while True:
            open_steps = {step.key for step in self._waiting} | set(self._running)
            ready = [step for step in self._waiting if not open_steps & set(step.parents)]
            finished = [step for step in ready if self._is_finished(step)]
            for step in finished:
                self._waiting.remove(step)
            if not finished:
                return ready

    def _is_finished(self, step: Step) -> bool:
        if step.key in self._plans:  # looked at before, and waiting for room since
            return False
        plan, taken_from = step.plan(), None
        if not plan.finished and self._study.share_with and step.key not in self._redone:
            taken_from = take_over(step, self._study.share_with, self._all)
            plan = step.plan()
        if taken_from is not None:
            self._log.add(step.job.name, step.config.name, 0.0, taken_from=taken_from)
        if plan.finished:
            how = f"taken over from {taken_from}" if taken_from else "finished already"
            self._say(f"{self._numbered(step)}: {how}")
        else:
            self._plans[step.key] = plan
        return plan.finished

    def _run_here(self, step: Step, options: dict[str, Any]) -> None:
        if step.job.needs_ray:
            self._connect_for(step)
        self._begin(step, Demand(0.0))
        began, failure = time.monotonic(), None
        try:
            step.job.run(step.config, **options)
        except Exception as error:  # raised again, once the steps beside it have ended
            failure = error
        self._settle(step, time.monotonic() - began, failure)

    def _run_beside(self, step: Step, demand: Demand) -> None:
        self._connect_for(step)
        self._begin(step, demand)
        config = placed_within(step.config, demand)
        threading.Thread(target=self._work, args=(step, config), name=step.key, daemon=True).start()

    def _connect_for(self, step: Step) -> None:
        """Connect to Ray for a step, once: the cluster is asked whether it can hold what the step needs."""
        if step.key not in self._connected:
            self._connected.add(step.key)
            self._connect(self._numbered(step), step.config)

    def _work(self, step: Step, config: Any) -> None:
        began, failure = time.monotonic(), None
        try:
            step.job.run(config)
        except BaseException as error:  # handed to the main thread, which raises it
            failure = error
        self._outcomes.put((step, time.monotonic() - began, failure))

    def _begin(self, step: Step, demand: Demand) -> None:
        plan = self._plans[step.key]
        beside = f" beside {', '.join(self._running)}" if self._running else ""
        self._say(f"{self._numbered(step)}: {', '.join(_brief(plan))}{beside}")
        for warning in plan.warnings:
            self._say(f"warning: {warning}")
        self._waiting.remove(step)
        self._running[step.key] = demand
        self._began_at[step.key] = _now()
        self._note_running()

    def _settle(self, step: Step, seconds: float, failure: BaseException | None) -> None:
        del self._running[step.key]
        if failure is not None:
            self._say(f"{step.title} has stopped")
            raise failure
        self._log.add(step.job.name, step.config.name, seconds)
        self._say(f"{step.title}: done in {clock(seconds)}")
        self._note_running()

    def _wait_for_the_rest(self) -> None:
        """Let the steps that are at work end. Only the first error is raised, so what stops another one is said here."""
        if self._running:
            self._say(f"waiting for {', '.join(self._running)}")
        while self._running:
            step, seconds, failure = self._outcomes.get()
            del self._running[step.key]
            if failure is None:
                self._log.add(step.job.name, step.config.name, seconds)
            else:
                self._say(f"{step.title} has stopped too: {first_line(failure)}")

    def _warn_of_others(self) -> None:
        """Say which of these steps another process runs, which may have been killed a moment ago."""
        mine = {step.key for step in self._steps}
        for entry in running_now(self._study.root):
            for key in mine & entry["steps"].keys():
                self._say(
                    f"warning: {key} is at work in process {entry['pid']} on {entry['host']} since {entry['steps'][key]}, unless "
                    "that was killed: two at once do the same work twice"
                )

    def _numbered(self, step: Step) -> str:
        return f"{list(self._steps).index(step) + 1}/{len(self._steps)} {step.title}"

    def _note_running(self) -> None:
        host, pid = socket.gethostname(), os.getpid()
        steps = {key: self._began_at[key] for key in list(self._running) if key in self._began_at}
        write_json_atomic(
            running_path(self._study.root, host, pid),
            {"host": host, "pid": pid, "seen_at": _now(), "steps": steps},
        )

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a store that is away stops no step by this
                self._note_running()


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def running_path(root: str, host: str, pid: int) -> UPath:
    """Return the file in which a process says what it runs."""
    return study_path(root, RUNNING, f"{host}-{pid}.json")


def running_now(root: str) -> list[dict[str, Any]]:
    """Return what the processes that run a study under a root say of themselves; those that are known to be gone left out."""
    return [entry for _, entry in _entries(root) if _alive(entry)]


def forget_the_dead(root: str) -> None:
    """Remove what processes have said of themselves that were killed since."""
    for path, entry in _entries(root):
        if not _alive(entry):
            path.unlink(missing_ok=True)


def _entries(root: str) -> Iterator[tuple[UPath, dict[str, Any]]]:
    directory = study_path(root, RUNNING)
    for name in list_names(directory, ".json"):
        with contextlib.suppress(FileNotFoundError):  # it has ended since
            yield directory / name, read_json(directory / name)


def _alive(entry: dict[str, Any]) -> bool:
    if entry["host"] != socket.gethostname():
        silent = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(entry["seen_at"])
        return silent.total_seconds() < SILENT_SECONDS
    try:
        os.kill(entry["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class _SharedLanes:
    """Warm training lanes kept from one training step to the next with the same placement, and closed otherwise.

    Starting worker groups costs more than training a small model; neighbouring steps of a study share them.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._open: tuple[TrainPlacement, Any] | None = None

    def for_step(self, step: Step) -> dict[str, Any]:
        """Return the step's further arguments: the lanes when it trains a queue of runs, nothing otherwise."""
        if step.job.name not in ("sweep_learning_rates", "pretrain_models", "search_mixture"):
            self.close()
            return {}
        fields = TrainPlacement.model_fields
        placement = TrainPlacement(**{name: getattr(step.config.placement, name) for name in fields})
        if self._open is None or self._open[0] != placement:
            self.close()
            from train.lanes.job import Lanes

            self._open = (placement, self._stack.enter_context(Lanes(step.config.root, placement)))
        return {"lanes": self._open[1]}

    def close(self) -> None:
        """Give the workers back."""
        self._stack.close()
        self._open = None


def cluster_size() -> tuple[float, float]:
    """Return the CPUs and GPUs of the Ray cluster as it is now."""
    import ray

    size = ray.cluster_resources()
    return float(size.get("CPU", 0.0)), float(size.get("GPU", 0.0))


def _brief(plan: Plan) -> list[str]:
    return [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in list(plan.facts.items())[:3]]  # fmt: skip
