"""The queue warm lanes train from: who gets which run, and what a dead worker means. No Ray, no clock, no disk.

A lane asks for work only when it has finished the last; a lane that asks while a run is still in its name has
died under that run. The run is handed out again, and training resumes from its checkpoint. A run that keeps killing
its workers without getting any further is given up, so that one bad run cannot wear out every lane.
"""

from __future__ import annotations

import collections
import enum
import heapq
from dataclasses import dataclass

from synth.errors import UserError
from synth.identity import provenance
from train.placement import TrainPlacement
from train.record import RunRecord, TrunkUse, what_was_trained
from train.run import RunConfig
from train.schedule import peak_learning_rate

MAX_DEATHS_AT_ONE_POINT = 2
"""Times workers may die under a run that starts from the same point each time, before the run is given up."""


class LanesLost(UserError):
    """No lane is left to train what was submitted; says why the last one ended."""


@dataclass(frozen=True)
class Assignment:
    """What a lane is told to do with a run."""

    run: RunConfig
    give_up: str | None = None
    """Record the run as failed with this reason instead of training it; null: train it."""
    refuse: str | None = None
    """Tell who asked for the run that it cannot go on for this reason, which is no property of the run; no record."""
    tokens: int = 0
    """Training tokens done before, as last heard of."""


class Word(enum.Enum):
    """What a lane is told when there is no run for it."""

    WAIT = "wait"
    STOP = "stop"


Order = Assignment | Word


@dataclass
class Ticket:
    """Where one submitted run stands."""

    run: RunConfig
    order: int
    """Place in the queue: the lower the earlier."""
    trunk: str | None = None
    """Trunk it branches off: one run of a trunk is in hand at a time, so that the next can go on from it."""
    lane: int | None = None
    """Lane that has it in hand; null while it waits."""
    last_lane: int | None = None
    """Lane that had it in hand before."""
    tokens: int = 0
    """Training tokens done, as last heard of."""
    started_at: int | None = None
    """Tokens at the first sign of life of this attempt; null before it."""
    last_start: int | None = None
    """The same, of the attempt before."""
    deaths: int = 0
    """Times workers died under it since it last started further on than the time before."""
    error: str | None = None
    """The first thing a worker said before it died, if it could; what the others say after it is its echo."""
    outside: str | None = None
    """What a worker of the last attempt met that is no property of the run: a disk or a store that failed."""


class RunQueue:
    """Tickets in the order they were given; pure bookkeeping, driven by `train.lanes.queue_actor`."""

    def __init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}
        self._waiting: list[tuple[int, str]] = []
        self.progress = collections.Counter[int]()
        """Times each lane got anywhere: trained a run to its end, or left a run where the next attempt could go on from
        further than before."""

    def add(self, run: RunConfig, order: int) -> None:
        """Put a run into the queue; one that is already waiting or in hand stays where it is."""
        if run.run_id not in self._tickets:
            self._tickets[run.run_id] = Ticket(run, order, run.trunk_id)
            heapq.heappush(self._waiting, (order, run.run_id))

    def assign(self, lane: int) -> Assignment | None:
        """Return what the lane does next, None when nothing waits that could be trained now."""
        self.release(lane)
        taken = {ticket.trunk for ticket in self._tickets.values() if ticket.lane is not None}
        passed_over = []
        while self._waiting:
            entry = heapq.heappop(self._waiting)
            ticket = self._tickets.get(entry[1])
            if ticket is None:  # completed by a group that was thought dead
                continue
            if ticket.trunk is not None and ticket.trunk in taken:
                passed_over.append(entry)
                continue
            self._waiting = sorted([*passed_over, *self._waiting])
            ticket.lane = lane
            outside, ticket.outside = ticket.outside, None
            if ticket.deaths < MAX_DEATHS_AT_ONE_POINT:
                return Assignment(ticket.run, tokens=ticket.tokens)
            if outside is not None:
                return Assignment(ticket.run, refuse=_why_stopped(ticket, outside), tokens=ticket.tokens)
            return Assignment(ticket.run, _why_given_up(ticket), tokens=ticket.tokens)
        self._waiting = passed_over
        return None

    def release(self, lane: int, died: bool = True) -> None:
        """Take back the run a lane has in hand, if there is one, and put it at its old place in the queue.

        `died`: its workers died under it, for all that is known; else something else ended them.
        """
        for run_id, ticket in self._tickets.items():
            if ticket.lane == lane:
                ticket.lane, ticket.last_lane = None, lane
                ticket.deaths += died
                if ticket.started_at is not None:
                    ticket.last_start, ticket.started_at = ticket.started_at, None
                heapq.heappush(self._waiting, (ticket.order, run_id))

    def beat(self, run_id: str, tokens: int) -> None:
        """Note how far a run is, tokens. The first beat of an attempt tells whether the last one left a checkpoint."""
        ticket = self._tickets.get(run_id)
        if ticket is None:
            return
        if ticket.started_at is None:
            ticket.started_at = tokens
            if ticket.last_start is not None and tokens > ticket.last_start:
                ticket.deaths = 0
                if ticket.last_lane is not None:
                    self.progress[ticket.last_lane] += 1
        ticket.tokens = tokens

    def complain(self, run_id: str, error: str, outside: bool = False) -> None:
        """Note what one worker says ended a run it could not finish together with the others; `outside`: no property of
        the run."""
        ticket = self._tickets.get(run_id)
        if ticket is None:
            return
        ticket.error = ticket.error or error
        if outside:
            ticket.outside = ticket.outside or error

    def complete(self, run_id: str) -> None:
        """Forget a run that has its record."""
        ticket = self._tickets.pop(run_id, None)
        if ticket is not None and ticket.lane is not None and ticket.deaths < MAX_DEATHS_AT_ONE_POINT:
            self.progress[ticket.lane] += 1

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._tickets

    @property
    def num_waiting(self) -> int:
        """Runs nobody has in hand."""
        return sum(ticket.lane is None for ticket in self._tickets.values())

    @property
    def tokens_in_hand(self) -> int:
        """Training tokens done in runs that are not complete."""
        return sum(ticket.tokens for ticket in self._tickets.values())


class Losses:
    """How often in a row a lane has lost its workers without getting anywhere in between."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self._progress = 0

    def add(self, progress: int) -> None:
        """Count one more loss; `progress` is that of the lane so far (`RunQueue.progress`)."""
        self.in_a_row = self.in_a_row + 1 if progress == self._progress else 1
        self._progress = progress


def _why_given_up(ticket: Ticket) -> str:
    said = f"; the first thing a worker said was: {ticket.error}" if ticket.error else ""
    where = f"after {ticket.tokens} tokens" if ticket.tokens else "before its first step"
    return f"workers died under this run {ticket.deaths} times {where}, and starting again got it no further{said}"


def _why_stopped(ticket: Ticket, outside: str) -> str:
    return (
        f"run {ticket.run.run_id} was stopped {ticket.deaths} times by what is no fault of its own ({outside}): mend that and "
        "run the job again; the run goes on from its last checkpoint."
    )


def failed_record(  # noqa: PLR0913  # what is known of a run that could not say it itself, all by name
    run: RunConfig,
    vocab_size: int,
    placement: TrainPlacement,
    reason: str,
    *,
    tokens: int,
    seconds: float,
    tokens_per_second: float,
    attempts: int,
    device_seconds: float | None = None,
    trunk: TrunkUse | None = None,
) -> RunRecord:
    """Return the record of a run that ended before it could write its own.

    `tokens` were trained, as far as anyone heard, all `attempts` took `seconds` and `device_seconds` (null: on one worker
    all the time), the last one at `tokens_per_second` (0 when that is not known); what the run drew from each source is left
    out. What it had taken over from its trunk is counted in, as in every record.
    """
    trained = what_was_trained(run, vocab_size, max(tokens, trunk.train_tokens if trunk else 0))
    if device_seconds is None:
        device_seconds = seconds * placement.devices_per_worker
    return RunRecord(
        **trained,
        status="failed",
        reason=reason,
        sources={},
        peak_learning_rate=peak_learning_rate(run.optimizer, trained["num_params_non_embedding"]),
        wall_seconds=seconds + (trunk.wall_seconds if trunk else 0.0),
        device_seconds=device_seconds + (trunk.device_seconds if trunk else 0.0),
        trunk=trunk,
        tokens_per_second=tokens_per_second,
        attempts=attempts,
        placement=placement,
        provenance=provenance(),
    )
