"""Which checkpoint a run goes on from when its ZeRO stage has changed. Without an engine: `test_checkpoint.py` loads them."""

import logging

import pytest
from upath import UPath

from synth.storage import write_bytes_atomic
from tests.train.conftest import leave_checkpoint
from train.checkpoint_files import (
    newest_for,
    newest_step,
    remove_half_checkpoints,
)


def test_a_run_that_started_over_under_another_stage_goes_on_from_its_own_checkpoints(tmp_path, caplog):
    home = UPath(tmp_path) / "checkpoints"
    leave_checkpoint(home, 500, zero_stage=1)
    assert newest_for(3, home) is None
    leave_checkpoint(home, 100, zero_stage=3)
    with caplog.at_level(logging.WARNING, logger="train.checkpoint_files"):
        name, complete = newest_for(3, home)
    assert (name, complete.state.step) == ("step-00000100-x", 100)
    assert "step-00000500-x was written under ZeRO 1 and cannot be loaded under ZeRO 3" in caplog.text
    # Back under the old stage the old checkpoint is as good as ever.
    assert newest_for(1, home)[1].state.step == newest_step(UPath(tmp_path)) == 500


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_stages_1_and_2_take_the_newest_of_either(tmp_path, zero_stage):
    home = UPath(tmp_path) / "checkpoints"
    leave_checkpoint(home, 8, zero_stage=1)
    leave_checkpoint(home, 16, zero_stage=2)
    assert newest_for(zero_stage, home)[1].state.step == 16
    assert newest_for(zero_stage, home, up_to_step=15)[1].state.step == 8


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_what_a_kill_left_half_made_goes_and_whole_checkpoints_stay(tmp_path, scheme):
    directory = UPath(f"{scheme}{tmp_path}/run")
    remove_half_checkpoints(directory)
    home = directory / "checkpoints"
    for step, stage in ((100, 3), (500, 1)):
        leave_checkpoint(home, step, stage)
    write_bytes_atomic(home / "step-00000600-y" / "state" / "weights.pt", b"12")
    leave_checkpoint(home, 700, 1)
    write_bytes_atomic(home / "step-00000700-x" / "state" / "weights.pt", b"12")
    write_bytes_atomic(home / ".universal-1234abcd" / "state" / "zero" / "w" / "fp32.pt", b"1234")
    remove_half_checkpoints(directory)
    assert sorted(child.name for child in home.iterdir()) == ["step-00000100-x", "step-00000500-x"]


@pytest.mark.parametrize("content", [b"", b'{"state": {}, "of": "another version"}', b"\xff\xfe"])
def test_a_checkpoint_whose_description_cannot_be_read_does_not_count(tmp_path, caplog, content):
    home = UPath(tmp_path) / "checkpoints"
    for step in (8, 16):
        leave_checkpoint(home, step, 1)
    write_bytes_atomic(home / "step-00000016-x" / "complete.json", content)
    with caplog.at_level(logging.WARNING, logger="train.checkpoint_files"):
        assert newest_for(1, home)[1].state.step == 8
    assert "step-00000016-x/complete.json cannot be read and does not count" in caplog.text
