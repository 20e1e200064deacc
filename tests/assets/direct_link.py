"""A lane's way to the queue without Ray, for a worker in the test's own process."""

from __future__ import annotations

from collections.abc import Iterable

from train.lanes.queue import Order, RunQueue, Word
from train.record import RunRecord
from train.run import RunConfig


class DirectLink:
    """The queue at arm's length: orders from a RunQueue in this process, `STOP` when it is empty."""

    def __init__(self, runs: Iterable[RunConfig]) -> None:
        self.queue = RunQueue()
        for order, run in enumerate(runs):
            self.queue.add(run, order)
        self.records: list[RunRecord] = []
        self.refused: dict[str, str] = {}
        self.beats: list[tuple[str, int]] = []

    def take(self) -> Order:
        return self.queue.assign(0) or Word.STOP

    def beat(self, run_id: str, tokens: int) -> None:
        self.beats.append((run_id, tokens))
        self.queue.beat(run_id, tokens)

    def complain(self, run_id: str, error: str, outside: bool) -> None:
        self.queue.complain(run_id, error, outside)

    def done(self, record: RunRecord) -> None:
        self.queue.complete(record.run_id)
        self.records.append(record)

    def refuse(self, run_id: str, why: str) -> None:
        self.queue.complete(run_id)
        self.refused[run_id] = why
