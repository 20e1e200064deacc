"""Numbers a job shows while it runs: their names, their units, and how they follow from what the job knows. No Ray.

Whoever runs a job publishes the samples (`synth.job.publish`); Prometheus collects them from every node as
`ray_<name>`, counters as `ray_<name>_total`. Nothing of the platform reads them: results are in the study's files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from synth.ledger import LedgerEntry
from synth.progress import Progress


@dataclass(frozen=True)
class Metric:
    """One number that is shown."""

    name: str
    """With its unit where it has one."""
    kind: Literal["gauge", "counter"]
    """A gauge is how things stand; a counter is what was added since the process began."""
    help: str
    labels: tuple[str, ...]
    """What the number is told apart by."""


@dataclass(frozen=True)
class Sample:
    """A value of a metric: the value of a gauge, what is added to a counter."""

    metric: Metric
    value: float
    labels: tuple[str, ...]
    """Values of the metric's labels, in their order."""


STEP_DONE = Metric(
    "synthscale_step_done", "gauge", "Work of a step that is done, in its unit.", ("step", "unit")
)
STEP_TOTAL = Metric("synthscale_step_total", "gauge", "Work of a step in all, in its unit.", ("step", "unit"))
PARTS_DONE = Metric(
    "synthscale_parts_done", "gauge", "Parts of a synthetic set that are committed.", ("set",)
)
PARTS = Metric("synthscale_parts", "gauge", "Parts of a synthetic set.", ("set",))
ROWS = Metric(
    "synthscale_rows", "counter", "Rows committed: kept, rejected or quarantined.", ("set", "verdict")
)
REASONS = Metric(
    "synthscale_turned_down_rows", "counter", "Rows not kept, under each of their reasons.", ("set", "reason")
)  # fmt: skip
ACCEPTED_TOKENS = Metric("synthscale_accepted_tokens", "counter", "Output tokens of kept rows.", ("set",))
ACCEPTED_RATE = Metric(
    "synthscale_accepted_tokens_per_second", "gauge", "Output tokens of kept rows a second, since the step began.", ("set",)
)  # fmt: skip
ENGINE_DEATHS = Metric("synthscale_engine_deaths", "counter", "Deaths of engines.", ("set",))
ENGINE_REQUESTS = Metric(
    "synthscale_engine_requests", "gauge", "Requests of an engine: running in it, or waiting for a place.", ("set", "state")
)  # fmt: skip
METRICS = (STEP_DONE, STEP_TOTAL, PARTS_DONE, PARTS, ROWS, REASONS, ACCEPTED_TOKENS, ACCEPTED_RATE, ENGINE_DEATHS, ENGINE_REQUESTS)  # fmt: skip


def of_progress(progress: Progress) -> Iterator[Sample]:
    """Return how far a step is."""
    labels = (progress.step, progress.unit)
    yield Sample(STEP_DONE, progress.done, labels)
    yield Sample(STEP_TOTAL, progress.total, labels)


def of_part(
    name: str, entry: LedgerEntry, progress: Progress, accepted_per_second: float
) -> Iterator[Sample]:
    """Return what a committed part adds to the synthetic set of this name, and how the set stands with it."""
    total = entry.total
    yield Sample(PARTS_DONE, progress.done, (name,))
    yield Sample(PARTS, progress.total, (name,))
    for verdict in ("kept", "rejected", "quarantined"):
        yield Sample(ROWS, getattr(total, verdict), (name, verdict))
    for reason, rows in total.reasons.items():
        yield Sample(REASONS, rows, (name, reason))
    yield Sample(ACCEPTED_TOKENS, total.accepted_tokens, (name,))
    yield Sample(ACCEPTED_RATE, accepted_per_second, (name,))
    if entry.engine_deaths is not None:  # a backend that does not tell has no number
        yield Sample(ENGINE_DEATHS, entry.engine_deaths, (name,))


def of_engine(name: str, running: int, waiting: int) -> Iterator[Sample]:
    """Return how full an engine that makes this set is."""
    yield Sample(ENGINE_REQUESTS, running, (name, "running"))
    yield Sample(ENGINE_REQUESTS, waiting, (name, "waiting"))
