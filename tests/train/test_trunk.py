"""Branches with the real engine: the bits of runs of their own, whatever interrupts them, and each token counted once."""

import pytest

from tests.assets.packed_set import run_on, write_packed_set
from tests.assets.record_contents import metric_lines
from train.placement import TrainPlacement
from train.record import TrunkUse, run_directory
from train.run import OptimizerConfig
from train.schedule import trunk_steps

pytestmark = pytest.mark.slow

STEP = 8 * 32
OPTIMIZER = OptimizerConfig(warmup_tokens=2 * STEP, decay_fraction=0.25)


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_packed_set(tmp_path_factory.mktemp("packed"))


def branch(packed, num_steps, **changes):
    fields = {"branching": True, "evaluations": 1, "optimizer": OPTIMIZER, "train_tokens": num_steps * STEP}
    return run_on(packed, **fields | changes)


def train(root, packed, run, stop_at_step=None, **placement):
    from train.loop import train_run

    def report(tokens):
        if stop_at_step is not None and tokens >= stop_at_step * STEP:
            raise Killed

    directory = run_directory(str(root), run.run_id)
    return train_run(run, packed, TrainPlacement(**placement), directory, report=report)


def results(record):
    """What a record says of the model, and of the work but for its clocks."""
    trunk = record.trunk and (record.trunk.trunk_id, record.trunk.train_tokens)
    return record.final, record.evaluations, record.sources, record.train_tokens, record.own_tokens, trunk


def losses(root, run):
    return {
        line["step"]: (line["loss_nats_per_token"], line["gradient_norm"], line["learning_rate"])
        for line in metric_lines(root, run)
    }


def steps_of(checkpoints):
    return sorted(int(path.name.split("-")[1]) for path in checkpoints.iterdir())


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (1, "bf16")])
def test_branches_are_runs_of_their_own_bit_by_bit(tmp_path, packed, zero_stage, precision):
    short, long = (branch(packed, steps, precision=precision) for steps in (12, 24))
    left = trunk_steps(short)
    first, second = (train(tmp_path / "a", packed, run, zero_stage=zero_stage) for run in (short, long))
    assert first.trunk == TrunkUse(
        trunk_id=short.trunk_id, train_tokens=0, wall_seconds=0.0, device_seconds=0.0
    )
    assert second.trunk.train_tokens == left * STEP
    assert (first.own_tokens, second.own_tokens) == (12 * STEP, (24 - left) * STEP)
    assert 0 < second.trunk.device_seconds < second.device_seconds

    alone = branch(packed, 24, precision=precision, branching=False)
    whole = train(tmp_path / "b", packed, alone, zero_stage=zero_stage)
    assert (second.final, second.sources) == (whole.final, whole.sources)
    steps = losses(tmp_path / "a", long)
    assert list(steps) == list(range(left + 1, 25))
    assert steps == {step: line for step, line in losses(tmp_path / "b", alone).items() if step > left}
    assert whole.trunk is None
    assert whole.own_tokens == whole.train_tokens == second.train_tokens


def test_a_branch_interrupted_anywhere_ends_the_same_and_counts_the_same(tmp_path, packed):
    runs = [branch(packed, steps) for steps in (12, 24)]
    quiet = [train(tmp_path / "a", packed, run) for run in runs]
    left = trunk_steps(runs[1])
    disturbed = []
    # Without checkpoints of its own: before the trunk is left, and after; then with one at every opportunity.
    for run, stops in ((runs[0], (5, 10)), (runs[1], (11, left + 2))):
        for step in stops:
            with pytest.raises(Killed):
                train(tmp_path / "b", packed, run, stop_at_step=step)
        with pytest.raises(Killed):
            train(
                tmp_path / "b",
                packed,
                run,
                stop_at_step=run.num_steps - 1,
                checkpoint_every_seconds=1e-9,
            )
        disturbed.append(train(tmp_path / "b", packed, run))
    assert [results(record) for record in disturbed] == [results(record) for record in quiet]
    assert [record.attempts for record in disturbed] == [4, 4]
    for run in runs:
        assert losses(tmp_path / "b", run) == losses(tmp_path / "a", run)


def test_of_a_trunk_one_checkpoint_stays_and_a_longer_budget_goes_on_from_it(tmp_path, packed):
    short, middle, long = (branch(packed, steps) for steps in (8, 16, 24))
    for run in (short, middle):
        train(tmp_path, packed, run)
    checkpoints = tmp_path / "trunks" / short.trunk_id / "checkpoints"
    assert steps_of(checkpoints) == [trunk_steps(middle)]
    assert train(tmp_path, packed, long).trunk.train_tokens == trunk_steps(middle) * STEP
    assert steps_of(checkpoints) == [trunk_steps(long)]
    assert sorted(path.name for path in run_directory(str(tmp_path), long.run_id).iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "record.json",
    ]


def test_a_shorter_budget_than_those_trained_starts_anew_and_leaves_the_trunk_as_it_was(tmp_path, packed):
    short, long = (branch(packed, steps) for steps in (8, 24))
    train(tmp_path, packed, long)
    assert train(tmp_path, packed, short).trunk.train_tokens == 0
    checkpoints = tmp_path / "trunks" / short.trunk_id / "checkpoints"
    assert steps_of(checkpoints) == [trunk_steps(long)]
