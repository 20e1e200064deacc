"""Records of many runs at once, wherever a study lies."""

import pytest

from train.lanes.queue import failed_record
from train.placement import TrainPlacement
from train.record import read_records, records_of, write_record
from train.run import RunConfig
from train.sizes import model_of


def run_with(seed):
    return RunConfig(
        packed="p", packed_hash="0", model=model_of("12k"), mixture={"natural": 1.0}, train_tokens=1024, sequence_length=16,
        seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_many_records_come_back_in_the_order_asked_and_missing_ones_not(tmp_path, scheme):
    root = f"{scheme}{tmp_path}"
    runs = [run_with(seed) for seed in range(40)]
    for run in runs[1:]:
        write_record(
            root,
            failed_record(
                run, 300, TrainPlacement(), "why", tokens=0, seconds=0, tokens_per_second=0, attempts=1
            ),
        )
    asked = [run.run_id for run in [*reversed(runs), runs[3]]]
    found = records_of(root, asked)
    assert list(found) == asked[:39]
    assert all(record.config.run_id == run_id for run_id, record in found.items())
    assert [record.run_id for record in read_records(root)] == sorted(found)
