"""Numbers that a search shows while it runs; see `synth.telemetry`. No Ray."""

from __future__ import annotations

from collections.abc import Iterator

from synth.telemetry import Metric, Sample

TRIALS_RUNNING = Metric(
    "synthscale_trials_running", "gauge", "Trials that wait for their run.", ("search", "cell")
)
TRIALS = Metric(
    "synthscale_trials", "counter", "Trials that ended: complete, diverged, failed, or broken (no record).", ("search", "cell", "status")
)  # fmt: skip
TRIAL_LOSS = Metric(
    "synthscale_trial_loss_nats_per_token", "gauge", "Loss of a trial on held-out text, nats per token.", ("search", "cell", "share")
)  # fmt: skip
METRICS = (TRIALS_RUNNING, TRIALS, TRIAL_LOSS)


def of_running(search: str, cell: str, running: int) -> Iterator[Sample]:
    """Return how many trials of a cell wait for their run."""
    yield Sample(TRIALS_RUNNING, running, (search, cell))


def of_trial(search: str, cell: str, share: str, status: str, loss: float | None) -> Iterator[Sample]:
    """Return how a trial ended; `loss` in nats per token where there is one."""
    yield Sample(TRIALS, 1, (search, cell, status))
    if loss is not None:
        yield Sample(TRIAL_LOSS, loss, (search, cell, share))
