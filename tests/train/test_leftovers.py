"""What goes when a run is finished, and who takes it away when its worker was killed at that very moment."""

import pytest
from upath import UPath

from synth.storage import write_bytes_atomic, write_json_atomic
from tests.train.conftest import leave_checkpoint
from tests.train.test_record import run_with
from train.attempts import begin_attempt
from train.lanes.queue import failed_record
from train.leftovers import read_use, tidy_up_after, trunk_directory
from train.placement import TrainPlacement
from train.record import TrunkUse, read_record, run_directory, write_record
from train.run import RunConfig

BRANCHING = RunConfig.model_validate(
    run_with(7).model_dump() | {"branching": True, "optimizer": {"warmup_tokens": 0}}
)


def killed_after_its_record(root, run):
    """Leave a run as a worker does that is killed between the record and the tidying up."""
    directory = run_directory(root, run.run_id)
    begin_attempt(run, directory, 1.0)
    leave_checkpoint(directory / "checkpoints", 8, 1)
    write_json_atomic(directory / "microbatch.json", {})
    record = failed_record(
        run, 300, TrainPlacement(), "", tokens=9, seconds=1, tokens_per_second=1, attempts=1
    )
    write_record(root, record)
    return record, directory


def names(directory):
    return sorted(child.name for child in directory.iterdir())


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_the_next_start_tidies_up_what_a_kill_after_the_record_left(tmp_path, scheme):
    root = f"{scheme}{tmp_path}/study"
    plain, where = killed_after_its_record(root, run_with(1))
    branched, of_branch = killed_after_its_record(root, BRANCHING)
    trunk = trunk_directory(of_branch, BRANCHING.trunk_id)
    use = TrunkUse(trunk_id=BRANCHING.trunk_id, train_tokens=0, wall_seconds=0.0, device_seconds=0.0)
    write_json_atomic(of_branch / "trunk.json", use.model_dump(mode="json"))
    assert read_use(of_branch) == use
    for step in (4, 8):
        leave_checkpoint(trunk / "checkpoints", step, 1)
    tidy_up_after(root, [plain, branched])
    for directory in (where, of_branch):
        assert names(directory) == ["config.json", "record.json"]
    assert names(trunk / "checkpoints") == ["step-00000008-x"], "the furthest point is for longer budgets"


def test_what_others_keep_beside_a_record_stays(tmp_path):
    record, directory = killed_after_its_record(str(tmp_path), run_with(1))
    tidy_up_after(str(tmp_path), [record])
    write_bytes_atomic(UPath(directory) / "model" / "model.safetensors", b"1")
    tidy_up_after(str(tmp_path), [record])
    assert names(directory) == ["config.json", "model", "record.json"]


def test_what_cannot_be_removed_is_a_warning_and_goes_the_next_time(tmp_path, caplog):
    record, directory = killed_after_its_record(str(tmp_path), run_with(1))
    (directory / "trunk.json").mkdir()  # no file, so that it cannot be removed like one
    tidy_up_after(str(tmp_path), [record])
    assert f"run {record.run_id} has its record, but" in caplog.text
    assert read_record(str(tmp_path), record.run_id) == record
    (directory / "trunk.json").rmdir()
    tidy_up_after(str(tmp_path), [record])
    assert names(directory) == ["config.json", "record.json"]
