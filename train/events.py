"""TensorBoard event files of a run, beside its `metrics.jsonl`."""

from __future__ import annotations

from upath import UPath

from train.metrics import StepMetrics, scalars_of
from train.record import Evaluation

EVENTS = "events"
"""Directory of the event files inside a run's; every attempt of the run adds one."""

FLUSH_SECONDS = 10
"""Events reach the disk at least this often."""


class EventLog:
    """The event files of one attempt at a run. What an earlier attempt wrote after `step` is hidden by TensorBoard."""

    def __init__(self, directory: UPath, step: int) -> None:
        from tensorboardX import SummaryWriter  # only where it is asked for

        self._writer = SummaryWriter(
            str(directory / EVENTS), purge_step=step + 1 if step else None, flush_secs=FLUSH_SECONDS
        )

    def add(self, line: StepMetrics) -> None:
        """Add what a metrics line says; a number that is not finite is left out, as it is null there."""
        for name, value in scalars_of(line).items():
            self._writer.add_scalar(f"train/{name}", value, line.step)

    def add_evaluation(self, evaluation: Evaluation, step: int) -> None:
        """Add the held-out losses after a step, nats per token: the mean and each domain's."""
        for name, value in evaluation.scalars().items():
            self._writer.add_scalar(f"held_out/{name}", value, step)

    def close(self, status: str) -> None:
        """Write what is left."""
        self._writer.close()
