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
from dataclasses import replace
from typing import Any

from upath import UPath

from rayjobs.demand import ClusterSize, Demand, cluster_size, demand_of, fitting, placed_within
from rayjobs.lanes import WarmLanes
from rayjobs.sharing import take_over
from rayjobs.study import Step, StudyConfig, steps_of
from synth.config import JobConfig
from synth.errors import UserError, first_line
from synth.plan import Plan
from synth.progress import clock
from synth.storage import list_names, read_json, study_path, write_json_atomic
from synth.study_log import StudyLog

RUNNING = "running"
"""Directory under the study root with one file for each process that runs a study there: its steps and since when."""

BEAT_SECONDS = 60.0
"""How often a process says that it is still there."""
SILENT_SECONDS = 600.0
"""A process that has not said so for this long is taken to be gone: its pid says nothing on another machine, and is another
process's after a while on its own."""

LOOK_AGAIN_SECONDS = 10.0
"""How often steps that wait for room are held against the cluster again: nodes come and go."""

_Outcome = tuple[Step, float, BaseException | None]
"""A step that has ended, after how many seconds, and what stopped it."""


class Schedule:
    """One pass over the steps of a study. `run` returns when all are finished, or raises what stopped one of them."""

    def __init__(
        self,
        study: StudyConfig,
        steps: Sequence[Step],
        connect: Callable[[str, JobConfig], None],
        say: Callable[[str], None],
        size: Callable[[], ClusterSize] | None = None,
        redone: Collection[Step] = (),
    ) -> None:
        """Take the steps in order, how to connect to Ray, and where lines go; `size` gives the cluster's size as it is now.

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
        self._refused: set[str] = set()
        self._began_at: dict[str, str] = {}
        self._log = StudyLog(study.root)
        self._outcomes: queue.Queue[_Outcome] = queue.Queue()

    def run(self) -> None:
        """Run everything. Raises what stopped a step or kept it from beginning, after the steps at work have ended."""
        forget_the_dead(self._study.root)
        self._warn_of_others()
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(over,), name="beat", daemon=True)
        beat.start()
        with ExitStack() as stack, _left_open_if_interrupted(stack):
            lanes = WarmLanes(stack, self._running)
            try:
                while self._waiting or self._running:
                    self._start_next(lanes)
                    if self._running and (outcome := self._next_outcome()):
                        self._settle(*outcome)
            except Exception as error:
                self._wait_for_the_rest(error)
                raise
            finally:
                over.set()
                beat.join()
                running_path(self._study.root, socket.gethostname(), os.getpid()).unlink(missing_ok=True)

    def _start_next(self, lanes: WarmLanes) -> None:
        """Start every step that is ready and has room, each in a thread of its own."""
        ready = [step for step in self._ready() if step.key not in self._refused]
        ready.sort(key=lambda step: step.job.needs_ray)
        if not self._connected and (first := next((step for step in ready if step.job.needs_ray), None)):
            self._can_begin(first)
        size = self._size() if self._connected else ClusterSize()
        fit = fitting([(step, demand_of(step)) for step in ready], list(self._running.values()), size)
        # All are asked for before one begins: what one has asked for and not yet got is not there for the next.
        started = [(step, need) for step, need in fit if self._can_begin(step)]
        placed = [replace(step, config=placed_within(step.config, need)) for step, need in started]
        options = lanes.for_steps(placed)
        for (step, need), each in zip(started, placed, strict=True):
            self._start(step, need, each.config, options.get(step.key, {}))

    def _next_outcome(self) -> _Outcome | None:
        """Return how the next step has ended; None when it is time to look again whether others have room."""
        try:
            return self._outcomes.get(timeout=LOOK_AGAIN_SECONDS)
        except queue.Empty:
            return None

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

    def _start(self, step: Step, demand: Demand, config: Any, options: dict[str, Any]) -> None:
        self._begin(step, demand)
        arguments = (step, config, options)
        threading.Thread(target=self._work, args=arguments, name=step.key, daemon=True).start()

    def _can_begin(self, step: Step) -> bool:
        """Connect to Ray for a step, once, and return whether the cluster can hold what the step needs.

        Nodes that are on their way to a step at work are not there for another one, so a refusal beside others is not the
        last word: the cluster is asked again when one of them has ended.
        """
        if step.key in self._connected or not step.job.needs_ray:
            return True
        try:
            self._connect(self._numbered(step), step.config)
        except UserError as error:
            if not any(need.cpus or need.gpus for need in self._running.values()):
                raise
            self._refused.add(step.key)
            self._say(f"{step.title} waits for another step to end: {error}")
            return False
        self._connected.add(step.key)
        return True

    def _work(self, step: Step, config: Any, options: dict[str, Any]) -> None:
        began, failure = time.monotonic(), None
        try:
            step.job.run(config, **options)
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
        self._refused.clear()
        if failure is not None:
            self._say(f"{step.title} has stopped")
            raise failure
        self._log.add(step.job.name, step.config.name, seconds)
        self._say(f"{step.title}: done in {clock(seconds)}")
        self._note_running()

    def _wait_for_the_rest(self, error: Exception) -> None:
        """Let the steps that are at work end, which can take days, so why nothing follows them is said before. Only the first
        error is raised; what stops another one is said here."""
        if self._running:
            self._say(first_line(error))
            self._say(f"nothing more is begun; waiting for {', '.join(self._running)}")
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
        for entry in running_beside(self._study.root):
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


@contextlib.contextmanager
def _left_open_if_interrupted(stack: ExitStack) -> Iterator[None]:
    """Leave what a stack would close to the end of the process after Ctrl-C: lanes are closed by waiting for them."""
    try:
        yield
    except KeyboardInterrupt:
        stack.pop_all()
        raise


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def running_path(root: str, host: str, pid: int) -> UPath:
    """Return the file in which a process says what it runs."""
    return study_path(root, RUNNING, f"{host}-{pid}.json")


def running_now(root: str) -> list[dict[str, Any]]:
    """Return what the processes that run a study under a root say of themselves; those that are known to be gone left out."""
    return [entry for _, entry in _entries(root) if _alive(entry)]


def running_beside(root: str) -> list[dict[str, Any]]:
    """Return the same of processes other than this one: a container that starts again has the host's name and the process
    number of the one before."""
    me = (socket.gethostname(), os.getpid())
    return [entry for entry in running_now(root) if (entry["host"], entry["pid"]) != me]


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
    silent = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(entry["seen_at"])
    if silent.total_seconds() >= SILENT_SECONDS:
        return False
    if entry["host"] != socket.gethostname():
        return True
    try:
        os.kill(entry["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _brief(plan: Plan) -> list[str]:
    return [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in list(plan.facts.items())[:3]]  # fmt: skip
