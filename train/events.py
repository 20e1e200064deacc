"""TensorBoard event files of a run, beside its `metrics.jsonl`: a view for people, which no step reads."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict

from upath import UPath

from synth.errors import UserError
from synth.storage import is_local, study_path
from train.config import TrainPlacement
from train.metrics import StepMetrics
from train.record import Evaluation

EVENTS = "events"
"""Directory of the event files inside a run's; every attempt of the run adds one."""

FLUSH_SECONDS = 10
"""Events reach the disk at least this often."""


def check_events(root: str, placement: TrainPlacement) -> None:
    """Raise UserError when event files are asked for and cannot be written."""
    if not placement.tensorboard:
        return
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            "placement.tensorboard = true needs the package tensorboardX: install it, or set it to false."
        )
    if not is_local(study_path(root)):
        raise UserError(
            f"placement.tensorboard = true with root = {root!r}: event files grow line by line, which an object store "
            "cannot do; set it to false, or take a local root."
        )


class EventLog:
    """The event files of one attempt at a run. What an earlier attempt wrote after `step` is hidden by TensorBoard."""

    def __init__(self, directory: UPath, step: int) -> None:
        from tensorboardX import SummaryWriter  # only where it is asked for

        self._writer = SummaryWriter(
            str(directory / EVENTS), purge_step=step + 1 if step else None, flush_secs=FLUSH_SECONDS
        )

    def add(self, line: StepMetrics) -> None:
        """Add what a metrics line says; a number that is not finite is left out, as it is null there."""
        for name, value in asdict(line).items():
            if name != "step" and value is not None:
                self._writer.add_scalar(f"train/{name}", value, line.step)

    def add_evaluation(self, evaluation: Evaluation, step: int) -> None:
        """Add the held-out losses after a step, nats per token: the mean and each domain's."""
        self._writer.add_scalar("held_out/loss_nats_per_token", evaluation.loss_nats_per_token, step)
        self._writer.add_scalar("held_out/bits_per_byte", evaluation.bits_per_byte, step)
        for domain, loss in evaluation.domains.items():
            self._writer.add_scalar(f"held_out/{domain}", loss.loss_nats_per_token, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
