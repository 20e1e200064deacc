"""TensorBoard event files: what a run's metrics say, step by step."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event
from upath import UPath

from train.events import EventLog
from train.metrics import StepMetrics
from train.placement import TrainPlacement
from train.record import DomainLoss, Evaluation


def scalars(directory):
    """Return {(tag, step): value} of all event files, read record by record (length, check, event, check)."""
    found = {}
    for path in sorted((directory / "events").iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            place += length + 16
    return found


def line(step, loss):
    return StepMetrics(
        step=step,
        train_tokens=step * 256,
        loss_nats_per_token=loss,
        learning_rate=0.5,
        gradient_norm=1.5,
        tokens_per_second=100.0,
        loss_by_source={"natural": 3.75},
        mfu_fraction=None,
        memory_bytes=1024,
        wall_seconds=2.0,
    )


def test_events_say_what_the_metrics_say(tmp_path):
    events = EventLog(UPath(tmp_path), step=0)
    events.add(line(1, 4.0))
    events.add(line(2, None))
    domain = DomainLoss(loss_nats_per_token=3.5, bits_per_byte=1.25, tokens=10, bytes=40)
    evaluation = Evaluation(
        train_tokens=512,
        domains={"web": domain},
        loss_nats_per_token=3.25,
        macro_loss_nats_per_token=3.5,
        bits_per_byte=1.125,
    )
    events.add_evaluation(evaluation, 2)
    events.close("complete")
    found = scalars(tmp_path)
    assert found["train/loss_nats_per_token", 1] == 4.0
    assert ("train/loss_nats_per_token", 2) not in found
    assert found["train/gradient_norm", 2] == 1.5
    assert found["train/train_tokens", 2] == 512
    assert found["train/loss_by_source/natural", 2] == 3.75
    assert ("train/mfu_fraction", 2) not in found
    assert found["held_out/loss_nats_per_token", 2] == 3.25
    assert found["held_out/bits_per_byte", 2] == 1.125
    assert found["held_out/web", 2] == 3.5


@pytest.mark.slow
def test_a_run_leaves_events_of_every_line_and_evaluation(tmp_path):
    from tests.assets.packed_set import run_on, write_packed_set
    from train.loop import train_run
    from train.record import run_directory

    packed = write_packed_set(tmp_path)
    run = run_on(packed)
    directory = run_directory(str(tmp_path), run.run_id)
    record = train_run(run, packed, TrainPlacement(trackers=("tensorboard",)), directory)
    found = scalars(tmp_path / "runs" / run.run_id)
    assert [step for tag, step in sorted(found) if tag == "train/loss_nats_per_token"] == list(range(1, 25))
    assert found["held_out/loss_nats_per_token", 24] == pytest.approx(record.final.loss_nats_per_token)
