"""A training process killed without a word: what a second one makes of it is the run that nobody disturbed, bit for bit."""

import contextlib
import os
import signal
import time

import pytest

from tests.assets.object_store import object_store
from tests.assets.packed_set import run_on, write_packed_set
from tests.assets.record_contents import metric_lines, results
from tests.assets.worker_group import start_group
from train.checkpoint_files import newest_step
from train.placement import TrainPlacement
from train.record import read_record, run_directory


def train(root, packed, run):
    from train.loop import train_run

    return train_run(run, packed, TrainPlacement(), run_directory(str(root), run.run_id))


def steps(root, run):
    names = ("step", "loss_nats_per_token", "gradient_norm", "learning_rate", "loss_by_source")
    return [tuple(line[name] for name in names) for line in metric_lines(root, run)]


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("disk", marks=pytest.mark.slow),
        pytest.param("object store", marks=pytest.mark.drill),
    ],
)
def test_a_killed_process_resumes_bit_for_bit(tmp_path, where):
    packed = write_packed_set(tmp_path / "packed")
    run = run_on(packed, train_tokens=400 * 256, evaluations=4)
    undisturbed = train(tmp_path / "a", packed, run)
    with object_store() if where == "object store" else contextlib.nullcontext():
        root = "s3://bucket/study" if where == "object store" else tmp_path / "b"
        directory = run_directory(str(root), run.run_id)
        placed = [(run, TrainPlacement(checkpoint_every_seconds=1e-9))]
        [process] = start_group(root, packed, placed, tmp_path / "rendezvous")
        while not newest_step(directory):
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        assert read_record(str(root), run.run_id) is None
        resumed = train(root, packed, run)
        assert resumed.attempts == 2
        assert steps(root, run) == steps(tmp_path / "a", run)
        assert results(resumed) == results(undisturbed)
        assert not (directory / "checkpoints").exists()
