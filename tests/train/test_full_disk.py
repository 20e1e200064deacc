"""A disk that fills up under a run: told in one sentence, and the run is the same once there is room again."""

import errno
import resource

import pytest
import torch.distributed as dist
from upath import UPath

from tests.assets.direct_link import DirectLink
from tests.assets.packed_set import run_on, write_packed_set
from tests.assets.record_contents import metric_lines
from train.checkpoint_files import BYTES_PER_PARAMETER, CompleteCheckpoint, newest_step
from train.full_disk import full_disk
from train.placement import TrainPlacement
from train.record import read_record, run_directory


def test_a_full_disk_is_known_by_its_errno_anywhere_in_the_chain_and_other_errors_are_not(tmp_path):
    full = RuntimeError("checkpoint not written")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert full_disk(full, UPath(tmp_path)) == tmp_path
    assert (
        full_disk(OSError(errno.EDQUOT, "Disk quota exceeded"), UPath(tmp_path / "not" / "made")) == tmp_path
    )
    assert full_disk(OSError(errno.EACCES, "Permission denied"), UPath(tmp_path)) is None
    assert full_disk(ValueError("bad shapes"), UPath("memory://study/runs/r")) is None


def lines_of(root, run):
    return [(line["step"], line["loss_nats_per_token"]) for line in metric_lines(root, run)]


@pytest.mark.slow
def test_a_disk_that_takes_no_checkpoint_stops_the_run_and_with_room_it_ends_bit_for_bit_the_same(tmp_path):
    from train.distributed import join_process_group
    from train.lanes.worker import LaneWorker
    from train.loop import train_run

    join_process_group("cpu")
    assert dist.get_world_size() == 1
    packed = write_packed_set(tmp_path)
    run = run_on(packed)
    quiet = train_run(run, packed, TrainPlacement(), run_directory(str(tmp_path / "quiet"), run.run_id))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_disk_that_fills_up(*arguments, report, **options):
        def report_and_fill(tokens):
            report(tokens)
            if tokens >= 12 * run.tokens_per_step:  # a checkpoint fits before, and not after
                resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, hard))

        return train_run(*arguments, report=report_and_fill, **options)

    def work(trainer):
        link = DirectLink([run])
        placement = TrainPlacement(checkpoint_every_seconds=1e-9)
        try:
            LaneWorker(str(tmp_path), placement, trainer, link, "cpu").work()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return link

    stopped = work(on_a_disk_that_fills_up)
    assert stopped.records == []
    assert f"run {run.run_id}: the disk is full at {tmp_path}" in stopped.refused[run.run_id]
    assert read_record(str(tmp_path), run.run_id) is None
    directory = run_directory(str(tmp_path), run.run_id)
    (left,) = (directory / "checkpoints").iterdir()  # what could not be written whole is gone again
    assert 0 < newest_step(directory) <= 12
    complete = CompleteCheckpoint.model_validate_json((left / "complete.json").read_text())
    assert (
        sum(complete.files.values()) < BYTES_PER_PARAMETER * quiet.num_params_total + 2**17
    )  # and PyTorch's own

    (record,) = work(train_run).records
    assert (record.status, record.attempts) == ("complete", 2)
    assert record.final == quiet.final
    assert lines_of(tmp_path, run) == lines_of(tmp_path / "quiet", run)
