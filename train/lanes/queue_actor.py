"""The queue as something many can wait on: submitters wait for records, lanes wait for work. asyncio, no Ray.

`train.lanes.job` runs it as an actor; a test calls it in its own process.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from synth.errors import UserError
from synth.telemetry import Sample
from train.lanes.queue import Assignment, LanesLost, Order, RunQueue, Word
from train.leftovers import find_record
from train.record import RunRecord
from train.run import RunConfig
from train.telemetry import of_beat, of_record


def show_nothing(samples: Iterable[Sample]) -> None:
    """Leave numbers unseen, where nobody watches."""


class QueueActor:
    """`train.lanes.queue.RunQueue` with something to wait on: submitters wait for records here, lanes ask for work."""

    def __init__(
        self, root: str, num_lanes: int, show: Callable[[Iterable[Sample]], None] = show_nothing
    ) -> None:
        self._root = root
        self._show = show
        self._queue = RunQueue()
        self._changed = asyncio.Condition()
        self._records: dict[str, asyncio.Future[RunRecord]] = {}
        self._orders = itertools.count()
        self._groups: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._ended: dict[int, str] = {}
        self._num_lanes = num_lanes
        self._closed = False

    async def submit(self, run: RunConfig, order: int | None = None) -> RunRecord:
        """Return the run's record: the one that exists, or the one a lane is about to write. Raises LanesLost.

        Runs with a lower `order` are handed out first. It is the submitter's to give where it matters: Ray begins the calls
        of an asynchronous actor in no order. Without it runs come in the order they arrive.
        """
        order = next(self._orders) if order is None else order
        record = await asyncio.to_thread(find_record, self._root, run.run_id)
        if record is not None:
            return record
        self._refuse_without_lanes()
        future = self._records.setdefault(run.run_id, asyncio.get_running_loop().create_future())
        async with self._changed:
            self._queue.add(run, order)
            self._changed.notify_all()
        return await asyncio.shield(future)

    async def take(self, lane: int, group: str, num_workers: int, wait_seconds: float) -> Order:
        """Return the lane's next order; `group` names this start of the lane's worker group, which has so many workers."""
        self._groups[lane] = group
        if num_workers != self._sizes.setdefault(lane, num_workers):
            # The cluster has taken a worker or found one, which is not the doing of the run it interrupted.
            self._queue.release(lane, died=False)
            self._sizes[lane] = num_workers
        while True:
            try:
                async with asyncio.timeout(wait_seconds), self._changed:
                    assignment = await self._next_assignment(lane, group)
            except TimeoutError:
                return Word.WAIT
            if assignment is None:
                return Word.STOP
            if (record := await self._record_there(lane, assignment)) is None:
                return assignment
            async with self._changed:
                self._settle(record)

    async def _next_assignment(self, lane: int, group: str) -> Assignment | None:
        """Wait for something to do; None when the lane, or this group of it, is to stop."""
        while not self._closed and self._groups[lane] == group:
            if (assignment := self._queue.assign(lane)) is not None:
                return assignment
            await self._changed.wait()
        return None

    async def _record_there(self, lane: int, assignment: Assignment) -> RunRecord | None:
        """Return the record a group left that died before it could tell us. Others are heard while a store takes its time."""
        try:
            return await asyncio.to_thread(find_record, self._root, assignment.run.run_id)
        except OSError:
            self._queue.release(lane, died=False)  # nobody has begun it
            raise

    async def beat(self, run_id: str, tokens: int) -> None:
        """Hear how far a run is, tokens."""
        self._queue.beat(run_id, tokens)
        self._show(of_beat(run_id, tokens))

    async def complain(self, run_id: str, error: str, outside: bool) -> None:
        """Hear from a worker what it died of; `outside`: it is no property of the run."""
        self._queue.complain(run_id, error, outside)

    async def done(self, record: RunRecord) -> None:
        """Hear that a run has its record, and tell who waits for it."""
        async with self._changed:
            self._settle(record)

    def _settle(self, record: RunRecord) -> None:
        self._show(of_record(record))
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
        """Return `closed`, `lanes_up`, `lanes_ended` (lane -> reason), `lane_sizes` (lane -> workers), `lane_progress`
        (lane -> times it got anywhere), `runs_waiting` and `tokens_in_hand`."""
        return {
            "closed": self._closed,
            "lanes_up": sorted(self._groups.keys() - self._ended.keys()),
            "lanes_ended": dict(self._ended),
            "lane_sizes": dict(self._sizes),
            "lane_progress": dict(self._queue.progress),
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
