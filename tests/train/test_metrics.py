"""metrics.jsonl: few lines, whole lines, and none from beyond the checkpoint a run resumes from."""

import dataclasses
import json

import pytest
from upath import UPath

from train.metrics import MAX_LINES, MetricsLog, StepMetrics, finite, log_steps, scalars_of
from train.run import RunConfig
from train.sizes import SIZES


def run_of(num_steps):
    return RunConfig(
        packed="p",
        packed_hash="0",
        model=SIZES["12k"],
        mixture={"natural": 1.0},
        train_tokens=num_steps * 16,
        rows_per_step=2,
        sequence_length=8,
    )


def line(step, wall_seconds=0.0):
    return StepMetrics(
        step=step,
        train_tokens=step * 16,
        loss_nats_per_token=1 / 3 + step,
        learning_rate=1e-3,
        gradient_norm=0.5,
        tokens_per_second=100.0,
        loss_by_source={"natural": 1 / 3 + step, "hq": None},
        mfu_fraction=None,
        memory_bytes=10**9,
        wall_seconds=wall_seconds or float(step),
    )


@pytest.mark.parametrize(
    ("num_steps", "first", "lines"), [(1, 1, 1), (200, 1, 200), (201, 2, 101), (100_000, 500, 200)]
)
def test_a_run_leaves_at_most_so_many_lines_and_one_for_its_last_step(num_steps, first, lines):
    log = MetricsLog(UPath("memory://metrics"), run_of(num_steps))
    wanted = [step for step in range(1, num_steps + 1) if log.wants(step)]
    assert wanted[0] == first
    assert wanted[-1] == num_steps
    assert len(wanted) == lines <= MAX_LINES + 1
    assert set(log_steps(num_steps)) <= set(wanted)


def test_lines_round_trip_exactly(tmp_path):
    log = MetricsLog(UPath(tmp_path), run_of(10))
    log.add(line(1))
    log.add(
        dataclasses.replace(
            line(2), loss_nats_per_token=finite(float("nan")), gradient_norm=finite(float("inf"))
        )
    )
    log.flush()
    found = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert StepMetrics(**found[0]) == line(1)
    assert found[1]["loss_nats_per_token"] is None
    assert found[1]["gradient_norm"] is None


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path):
    first = MetricsLog(UPath(tmp_path), run_of(10))
    for step in range(1, 6):
        first.add(line(step))
    first.flush()
    second = MetricsLog(UPath(tmp_path), run_of(10))
    second.resume(3)
    second.add(line(4, wall_seconds=6.0))
    second.flush()
    steps = [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_run_that_never_flushed_starts_from_nothing():
    log = MetricsLog(UPath("memory://metrics/none"), run_of(10))
    log.resume(0)
    log.flush()
    assert UPath("memory://metrics/none/metrics.jsonl").read_text() == ""


def test_trackers_get_the_numbers_of_a_line_by_name_and_no_nulls():
    assert scalars_of(line(2)) == {
        "train_tokens": 32,
        "loss_nats_per_token": 1 / 3 + 2,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "tokens_per_second": 100.0,
        "loss_by_source/natural": 1 / 3 + 2,
        "memory_bytes": 10**9,
        "wall_seconds": 2.0,
    }
