"""Numbers that training shows while it runs; see `synth.telemetry`. No Ray."""

from __future__ import annotations

from collections.abc import Iterator

from synth.telemetry import Metric, Sample
from train.record import RunRecord

RUN_TOKENS = Metric("synthscale_run_tokens", "gauge", "Training tokens of a run that are done.", ("run",))
RUN_LOSS = Metric(
    "synthscale_run_loss_nats_per_token", "gauge", "Loss of a finished run on held-out text, nats per token.", ("run", "params", "mixture")
)  # fmt: skip
RUN_RATE = Metric(
    "synthscale_run_tokens_per_second", "gauge", "Training throughput of a finished run, tokens a second.", ("run",)
)  # fmt: skip
RUNS = Metric(
    "synthscale_runs", "counter", "Runs that have a record: complete, diverged or failed.", ("status",)
)
LANES = Metric("synthscale_lanes", "gauge", "Worker groups asked for, and those that are up.", ("state",))
QUEUE = Metric("synthscale_run_queue", "gauge", "Runs that no worker group has in hand.", ())
IN_HAND = Metric(
    "synthscale_tokens_in_hand", "gauge", "Training tokens done in runs that are not complete.", ()
)
METRICS = (RUN_TOKENS, RUN_LOSS, RUN_RATE, RUNS, LANES, QUEUE, IN_HAND)


def of_beat(run_id: str, tokens: int) -> Iterator[Sample]:
    """Return how far a run is."""
    yield Sample(RUN_TOKENS, tokens, (run_id,))


def of_record(record: RunRecord) -> Iterator[Sample]:
    """Return how a run ended."""
    yield Sample(RUNS, 1, (record.status,))
    yield Sample(RUN_TOKENS, record.train_tokens, (record.run_id,))
    yield Sample(RUN_RATE, record.tokens_per_second, (record.run_id,))
    if record.final is not None:
        mixture = " ".join(f"{name}={share:.3f}" for name, share in sorted(record.config.mixture.items()))
        labels = (record.run_id, str(record.num_params_non_embedding), mixture)
        yield Sample(RUN_LOSS, record.final.loss_nats_per_token, labels)


def of_lanes(up: int, asked_for: int, runs_waiting: int, tokens_in_hand: int) -> Iterator[Sample]:
    """Return how the worker groups and their queue stand."""
    yield Sample(LANES, up, ("up",))
    yield Sample(LANES, asked_for, ("asked for",))
    yield Sample(QUEUE, runs_waiting, ())
    yield Sample(IN_HAND, tokens_in_hand, ())
