"""One worker of a warm lane: it gets runs, trains them, and agrees with the lane's other workers how each ended. No Ray.

What a run raises becomes its record, and the lane goes on. What a run does to its worker's process, or what happens to
a worker besides, ends the whole group; whoever holds the lane up starts it again and the run resumes.
"""

from __future__ import annotations

import datetime as dt
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from synth.errors import UserError
from train.attempts import read_attempts
from train.flops import count_parameters
from train.full_disk import free_bytes, full_disk, room_wanted
from train.lanes.queue import Assignment, Order, Word, failed_record
from train.leftovers import read_use, tidy_up
from train.memory import MicrobatchTooLarge
from train.placement import TrainPlacement
from train.record import RunRecord, read_record, run_directory, write_record
from train.run import RunConfig
from train.tokens import PackedInfo, PackedSet

PATIENCE_SECONDS = 60.0
"""How long a worker whose run raised waits for the others to say the same, before it gives its group up."""

BEAT_SECONDS = 1.0
"""Least time between two words from a run about how far it is."""

Trainer = Callable[..., RunRecord]
"""Called as `train.loop.train_run` is."""


class QueueLink(Protocol):
    """How a worker speaks with the queue. Every rank has one; only the leading rank takes orders and reports ends."""

    def take(self) -> Order:
        """Wait a while for the lane's next order."""

    def beat(self, run_id: str, tokens: int) -> None:
        """Say how far a run is, without waiting for an answer."""

    def complain(self, run_id: str, error: str, outside: bool) -> None:
        """Say what this worker's run raised, in case it does not live to settle it with the others; `outside`: it is no
        property of the run."""

    def done(self, record: RunRecord) -> None:
        """Say that a run has its record."""

    def refuse(self, run_id: str, why: str) -> None:
        """Say that a run cannot be trained as it was asked for."""


@dataclass(frozen=True)
class Failed:
    """A run that raised."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """A run that cannot be trained as it was asked for: the caller's to know, and no record."""

    why: str


@dataclass(frozen=True)
class TooLarge:
    """A run that its workers had no memory for as it was cut; the next attempt takes fewer rows at once."""


Outcome = RunRecord | Failed | Refused | TooLarge


class LaneWorker:
    """One rank of a lane's process group, which must have been joined."""

    def __init__(
        self, root: str, placement: TrainPlacement, trainer: Trainer, link: QueueLink, device: Any
    ) -> None:
        import torch.distributed as dist

        from train.distributed import share_device

        self._root, self._placement, self._trainer = root, placement, trainer
        self._link, self._device = link, device
        share_device(device, placement.gpus_per_worker)
        self._leads = dist.get_rank() == 0
        self._control = dist.new_group(
            backend="gloo"
        )  # orders and errors travel on the CPU, also beside NCCL

    def work(self) -> None:
        """Carry out orders until told to stop, or until this group has to be replaced by a fresh one."""
        while (order := self._next_order()) is not Word.STOP:
            if isinstance(order, Assignment):
                self._carry_out(order)
                if self._placement.zero_stage == 3:
                    return  # DeepSpeed's stage 3 keeps every engine alive: only a fresh process frees the memory

    def _next_order(self) -> Order:
        """Return what the queue tells the leading worker, on all of them."""
        import torch.distributed as dist

        order: list[Order] = [self._link.take() if self._leads else Word.STOP]
        dist.broadcast_object_list(order, src=0, group=self._control)
        return order[0]

    def _carry_out(self, assignment: Assignment) -> None:
        """Train a run and tell the queue how it ended. Raises when that could not be settled with the other ranks."""
        run = assignment.run
        beats = Beats(self._link if self._leads else None, run.run_id)
        outcome = self._settle(_foregone(assignment) or self._try(run, beats))
        while isinstance(outcome, TooLarge):  # all ranks are here, so none is stuck in a collective
            outcome = self._settle(self._try(run, beats))
        gc.collect()  # what a run that raised has left behind
        if not self._leads:
            return
        if isinstance(outcome, Failed):
            outcome = self._recorded(assignment, outcome.reason, beats)
        if isinstance(outcome, Refused):
            self._link.refuse(run.run_id, outcome.why)
        else:
            self._link.done(outcome)

    def _try(self, run: RunConfig, beats: Beats) -> Outcome:
        directory = run_directory(self._root, run.run_id)
        try:
            packed = PackedSet.open(self._root, run.packed)
            return self._trainer(run, packed, self._placement, directory, device=self._device, report=beats)
        except UserError as error:
            return Refused(str(error))
        # Whatever a run raises of itself is recorded as its end, and the lane goes on.
        except Exception as error:
            if stopped := self._stopped_by_a_full_disk(run, error):
                return stopped  # trying again would find no more room
            outside = isinstance(error, OSError)
            self._link.complain(run.run_id, _named(error), outside)
            if outside:  # a store out of reach, most likely: another attempt may find it back
                raise
            self._check_device()
            return TooLarge() if isinstance(error, MicrobatchTooLarge) else Failed(_named(error))

    def _stopped_by_a_full_disk(self, run: RunConfig, error: Exception) -> Refused | None:
        """Return what to tell whoever asked for the run when a full disk is behind an error of it, else None."""
        full = full_disk(error, run_directory(self._root, run.run_id))
        if full is None:
            return None
        num_params = count_parameters(run.model, PackedInfo.read(self._root, run.packed).vocab_size).total
        left, wanted = _mib(free_bytes(full)), _mib(room_wanted(num_params))
        said = f"the disk is full at {full}, with {left} left: free {wanted} or more"
        self._link.complain(run.run_id, said, True)
        return Refused(
            f"run {run.run_id}: {said} and run the job again; the run goes on from its last checkpoint."
        )

    def _check_device(self) -> None:
        """Raise if the run has broken the device's context, which only a new process can mend."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _settle(self, outcome: Outcome) -> Outcome:
        """Return the outcome all ranks agree on. Raises RuntimeError when one of them is gone or stuck.

        The death of one worker reaches the others as an error of their own. So an error counts as the run's only when
        every rank lives to say how it fared; else this one fails too, the group starts anew and the run resumes.
        """
        import torch.distributed as dist

        patience = None if isinstance(outcome, RunRecord) else dt.timedelta(seconds=PATIENCE_SECONDS)
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.monitored_barrier(self._control, timeout=patience)
        dist.all_gather_object(outcomes, outcome, group=self._control)
        # What one rank knows of a disk or of its memory, the others know as a broken connection.
        kinds = (Refused, TooLarge, Failed)
        settled: Outcome = next(
            (each for kind in kinds for each in outcomes if isinstance(each, kind)), outcomes[0]
        )
        return settled

    def _recorded(self, assignment: Assignment, reason: str, beats: Beats) -> RunRecord | Refused:
        try:
            return self._record_failure(assignment, reason, beats)
        except OSError as error:
            if stopped := self._stopped_by_a_full_disk(assignment.run, error):
                return stopped
            raise

    def _record_failure(self, assignment: Assignment, reason: str, beats: Beats) -> RunRecord:
        run = assignment.run
        if (record := read_record(self._root, run.run_id)) is not None:
            return record  # what was raised came after the end of the run
        directory = run_directory(self._root, run.run_id)
        attempts = read_attempts(directory)
        record = failed_record(
            run,
            PackedInfo.read(self._root, run.packed).vocab_size,
            self._placement,
            reason,
            tokens=max(assignment.tokens, beats.tokens),
            seconds=attempts.wall_seconds,
            device_seconds=attempts.device_seconds,
            tokens_per_second=beats.tokens_per_second,
            attempts=max(1, attempts.number),
            trunk=read_use(directory),
        )
        write_record(self._root, record)
        tidy_up(run, directory)
        return record


class Beats:
    """What a run is given as `report`: tells the queue how far it is, where it starts and then about once a second."""

    def __init__(self, link: QueueLink | None, run_id: str) -> None:
        self._link, self._run_id = link, run_id
        self._began: tuple[float, int] | None = None
        self._heard_at = 0.0
        self._told_at = float("-inf")
        self.tokens = 0
        """Training tokens done, as last heard."""

    def __call__(self, tokens: int) -> None:
        """Take note of the training tokens done."""
        self._heard_at, self.tokens = time.perf_counter(), tokens
        self._began = self._began or (self._heard_at, tokens)
        if self._link is not None and self._heard_at - self._told_at >= BEAT_SECONDS:
            self._told_at = self._heard_at
            self._link.beat(self._run_id, tokens)

    @property
    def tokens_per_second(self) -> float:
        """Speed between the first and the last sign of life; 0 when there were not two."""
        if self._began is None or self._heard_at <= self._began[0]:
            return 0.0
        return (self.tokens - self._began[1]) / (self._heard_at - self._began[0])


def _foregone(assignment: Assignment) -> Outcome | None:
    """Return how a run ends that is not to be tried any more."""
    if assignment.refuse is not None:
        return Refused(assignment.refuse)
    return Failed(assignment.give_up) if assignment.give_up is not None else None


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
