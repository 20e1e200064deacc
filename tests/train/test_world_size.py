"""A run that changes its number of workers on the way: what it has learnt goes with it."""

import pytest

from tests.assets.packed_set import run_on, write_packed_set
from tests.assets.worker_group import NEVER, Stopped, start_group
from train.placement import TrainPlacement
from train.record import read_record, run_directory
from train.run import OptimizerConfig

pytestmark = pytest.mark.slow

STOP_AT = 13 * 8 * 32
"""Tokens after which runs are stopped: in their middle, and after a checkpoint."""

TOLERANCE = {"fp32": 2e-5, "bf16": 1e-2}
"""Nats per token, on a loss of about 3: gradients are added up in another order."""

CASES = [("fp32", 0), ("bf16", 0), ("fp32", 1), ("bf16", 1), ("fp32", 2), ("fp32", 3), ("bf16", 3)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_packed_set(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def placed(packed):
    """A run of every case. Decay and moments matter, so that an optimizer put together wrongly would show."""
    optimizer = OptimizerConfig(weight_decay=3.0, warmup_fraction=0.0)
    return [
        (
            run_on(packed, precision=precision, optimizer=optimizer, seed=seed),
            TrainPlacement(zero_stage=stage, checkpoint_every_seconds=1e-9),
        )
        for seed, (precision, stage) in enumerate(CASES)
    ]


def train_here(root, packed, placed, stop_at=NEVER):
    """Train runs in this process, the only worker; each is stopped at so many tokens."""
    from train.loop import train_run

    def report(tokens):
        if tokens >= stop_at:
            raise Stopped

    for run, placement in placed:
        try:
            train_run(run, packed, placement, run_directory(str(root), run.run_id), report=report)
        except Stopped:
            continue


def train_by_two(root, packed, placed, **options):
    group = start_group(root, packed, placed, root / "rendezvous", world=2, **options)
    return [worker.wait(timeout=300) for worker in group]


@pytest.fixture(scope="module")
def undisturbed(packed, placed, tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    train_here(root, packed, placed)
    return {run.run_id: read_record(str(root), run.run_id) for run, _ in placed}


def check(root, placed, undisturbed):
    for run, _ in placed:
        record, expected = read_record(str(root), run.run_id), undisturbed[run.run_id]
        assert record.attempts == 2
        assert record.sources == expected.sources
        for one, other in zip(record.evaluations, expected.evaluations, strict=True):
            assert one.loss_nats_per_token == pytest.approx(
                other.loss_nats_per_token, abs=TOLERANCE[run.precision]
            )
        # Each worker was there for a part of the time.
        assert record.wall_seconds < record.device_seconds < 2 * record.wall_seconds


def test_what_two_workers_began_one_finishes(tmp_path, packed, placed, undisturbed):
    assert train_by_two(tmp_path, packed, placed[:-1], stop_at=STOP_AT) == [0, 0]
    assert 0 not in train_by_two(tmp_path, packed, placed[-1:], kill_at=STOP_AT)
    train_here(tmp_path, packed, placed)
    check(tmp_path, placed, undisturbed)


def test_what_one_worker_began_two_finish(tmp_path, packed, placed, undisturbed):
    train_here(tmp_path, packed, placed, stop_at=STOP_AT)
    assert train_by_two(tmp_path, packed, placed) == [0, 0]
    check(tmp_path, placed, undisturbed)
