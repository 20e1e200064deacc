"""Which checkpoint a run goes on from when its ZeRO stage has changed. Without an engine: `test_checkpoint.py` loads them."""

import logging

import pytest
from upath import UPath

from synth.storage import write_bytes_atomic, write_json_atomic
from train.checkpoint import CompleteCheckpoint, RunState, newest_for, newest_step


def leave(home, step, zero_stage):
    """Leave a checkpoint as a worker group would."""
    checkpoint = home / f"step-{step:08d}-x"
    write_bytes_atomic(checkpoint / "state" / "weights.pt", b"1234")
    complete = CompleteCheckpoint(
        state=RunState(step=step), world_size=1, zero_stage=zero_stage, optimizer="Adam", files={"weights.pt": 4}
    )  # fmt: skip
    write_json_atomic(checkpoint / "complete.json", complete.model_dump(mode="json"))


def test_a_run_that_started_over_under_another_stage_goes_on_from_its_own_checkpoints(tmp_path, caplog):
    home = UPath(tmp_path) / "checkpoints"
    leave(home, 500, zero_stage=1)
    assert newest_for(3, home) is None
    leave(home, 100, zero_stage=3)
    with caplog.at_level(logging.WARNING, logger="train.checkpoint"):
        name, complete = newest_for(3, home)
    assert (name, complete.state.step) == ("step-00000100-x", 100)
    assert "step-00000500-x was written under ZeRO 1 and cannot be loaded under ZeRO 3" in caplog.text
    # Back under the old stage the old checkpoint is as good as ever.
    assert newest_for(1, home)[1].state.step == newest_step(UPath(tmp_path)) == 500


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_stages_1_and_2_take_the_newest_of_either(tmp_path, zero_stage):
    home = UPath(tmp_path) / "checkpoints"
    leave(home, 8, zero_stage=1)
    leave(home, 16, zero_stage=2)
    assert newest_for(zero_stage, home)[1].state.step == 16
    assert newest_for(zero_stage, home, up_to_step=15)[1].state.step == 8
