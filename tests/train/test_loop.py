"""One run end to end with the real engine: the same bits whatever interrupts it, precedes it or shares the work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synth.errors import UserError
from tests.assets.packed_set import run_on, write_packed_set
from train.config import OptimizerConfig, TrainPlacement
from train.record import RunRecord, read_record, run_directory

pytestmark = pytest.mark.slow

RELENTLESS = {"checkpoint_every_seconds": 1e-9}
"""A checkpoint at every opportunity."""


class Killed(Exception):
    """Stands for the end of a process in tests that stay within one."""


def train(root, packed, run, *, stop_at_step=None, **placement):
    from train.loop import train_run

    def report(tokens):
        if stop_at_step is not None and tokens >= stop_at_step * run.tokens_per_step:
            raise Killed

    return train_run(run, packed, TrainPlacement(**placement), run_directory(str(root), run.run_id), report=report)


def losses(root, run) -> list[tuple]:
    lines = (run_directory(str(root), run.run_id) / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [(line["step"], line["loss_nats_per_token"], line["gradient_norm"], line["learning_rate"]) for line in found]


def results(record: RunRecord) -> dict:
    """What a record says, without where, when and how fast."""
    timing = {"wall_seconds", "device_seconds", "tokens_per_second", "attempts", "placement", "provenance"}
    return record.model_dump(exclude=timing)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_packed_set(tmp_path_factory.mktemp("packed"))


def test_a_run_learns_and_accounts_for_every_token(tmp_path, packed):
    run = run_on(packed, train_tokens=24 * 256 + 100)
    record = train(tmp_path, packed, run)
    steps = losses(tmp_path, run)
    assert record == read_record(str(tmp_path), run.run_id)
    assert record.status == "complete"
    assert record.reason is None
    assert [step for step, *_ in steps] == list(range(1, 25))
    assert steps[0][1] == pytest.approx(4.16, abs=0.3)  # ln 64
    assert steps[-1][1] < steps[0][1] - 0.5
    assert record.train_tokens == 24 * 256
    assert {name: use.tokens for name, use in record.sources.items()} == {"natural": 144 * 32, "synthetic": 48 * 32}
    assert [evaluation.train_tokens for evaluation in record.evaluations] == [12 * 256, 24 * 256]
    assert record.final == record.evaluations[-1]
    assert record.final.loss_nats_per_token < record.evaluations[0].loss_nats_per_token
    assert record.final.domains.keys() == {"code", "prose"}
    assert sorted(path.name for path in run_directory(str(tmp_path), run.run_id).iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "record.json",
    ]


@pytest.mark.parametrize(("precision", "zero_stage"), [("fp32", 0), ("fp32", 1), ("bf16", 0), ("bf16", 1), ("bf16", 2)])
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path, packed, precision, zero_stage):
    run = run_on(packed, precision=precision, evaluations=3)
    undisturbed = train(tmp_path / "a", packed, run, zero_stage=zero_stage)
    for stop_at_step in (3, 11, 20):  # before the first checkpoint, and twice after one
        with pytest.raises(Killed):
            train(tmp_path / "b", packed, run, stop_at_step=stop_at_step, zero_stage=zero_stage, **RELENTLESS)
    checkpoints = run_directory(str(tmp_path / "b"), run.run_id) / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000019"]
    resumed = train(tmp_path / "b", packed, run, zero_stage=zero_stage, **RELENTLESS)
    assert losses(tmp_path / "b", run) == losses(tmp_path / "a", run)
    assert results(resumed) == results(undisturbed)
    assert resumed.attempts == 4
    assert undisturbed.attempts == 1
    assert not checkpoints.exists()


def test_accumulation_changes_float_noise_only(tmp_path, packed):
    run = run_on(packed)
    whole = train(tmp_path / "a", packed, run, rows_per_microbatch=8)
    parts = train(tmp_path / "b", packed, run, rows_per_microbatch=2)
    assert [loss for _, loss, *_ in losses(tmp_path / "a", run)] == pytest.approx(
        [loss for _, loss, *_ in losses(tmp_path / "b", run)], abs=2e-5
    )
    assert parts.final.loss_nats_per_token == pytest.approx(whole.final.loss_nats_per_token, abs=2e-5)


def test_zero_stages_agree(tmp_path, packed):
    run = run_on(packed)
    final = {
        stage: train(tmp_path / str(stage), packed, run, zero_stage=stage).final.loss_nats_per_token for stage in range(4)
    }
    assert final == pytest.approx(dict.fromkeys(range(4), final[0]), abs=2e-5)


def test_runs_in_one_process_equal_runs_in_fresh_ones(tmp_path, packed):
    runs = [
        run_on(packed, precision="fp32"),
        run_on(packed, precision="bf16", seed=3),
        run_on(packed, precision="fp32", mixture={"natural": 1.0}),
    ]
    together = [train(tmp_path / "together", packed, run) for run in runs]
    for run, record in zip(runs, together, strict=True):
        alone = in_subprocess(tmp_path / "alone", packed, run)
        assert alone.wait(timeout=180) == 0
        assert losses(tmp_path / "alone", run) == losses(tmp_path / "together", run)
        assert results(read_record(str(tmp_path / "alone"), run.run_id)) == results(record)


def test_a_killed_process_resumes_bit_for_bit(tmp_path, packed):
    run = run_on(packed, train_tokens=400 * 256, evaluations=4)
    undisturbed = train(tmp_path / "a", packed, run)
    directory = run_directory(str(tmp_path / "b"), run.run_id)
    process = in_subprocess(tmp_path / "b", packed, run)
    while not list(directory.glob("checkpoints/*/complete.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert not (directory / "record.json").exists()
    resumed = train(tmp_path / "b", packed, run)
    assert resumed.attempts == 2
    assert losses(tmp_path / "b", run) == losses(tmp_path / "a", run)
    assert results(resumed) == results(undisturbed)


def test_a_diverging_run_is_a_record_and_the_next_run_trains(tmp_path, packed):
    run = run_on(packed, optimizer=OptimizerConfig(peak_learning_rate=1e30, warmup_fraction=0.0, epsilon=1e-30))
    record = train(tmp_path, packed, run)
    assert record.status == "diverged"
    assert "training loss of step" in record.reason
    assert record.final is None
    assert 0 < record.train_tokens <= run.train_tokens
    assert losses(tmp_path, run)[-1][1] is None
    assert train(tmp_path, packed, run_on(packed)).status == "complete"


def test_a_run_that_raises_leaves_the_process_fit_for_the_next(tmp_path, packed):
    run = run_on(packed)
    expected = train(tmp_path / "a", packed, run)
    with pytest.raises(Killed):
        train(tmp_path / "b", packed, run_on(packed, seed=9), stop_at_step=5)
    assert results(train(tmp_path / "b", packed, run)) == results(expected)


@pytest.mark.parametrize(
    ("changes", "placement", "message"),
    [
        ({"rows_per_step": 6}, {"rows_per_microbatch": 4}, "rows_per_microbatch = 4 does not divide the 6 rows"),
        ({"packed_hash": "0" * 16}, {}, "packed_hash = '0000000000000000'"),
        ({"sequence_length": 16}, {}, "sequence_length = 16 .* 32"),
        ({"max_epochs": 0.5}, {}, "max_epochs = 0.5"),
        ({"optimizer": {"warmup_fraction": 0.9, "decay_fraction": 0.9}}, {}, r"optimizer\.warmup_fraction"),
        ({"mixture": {"web": 1.0}}, {}, "source 'web'"),
        ({"precision": "bf16"}, {"zero_stage": 0, "rows_per_microbatch": 2}, "zero_stage = 0"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(tmp_path, packed, changes, placement, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path, packed, run_on(packed, **changes), **placement)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_two_workers_train_the_same_run_and_resume_it(tmp_path, packed, zero_stage):
    run = run_on(packed, evaluations=3)
    alone = train(tmp_path / "a", packed, run, zero_stage=zero_stage)
    assert two_workers(tmp_path / "b", packed, run, zero_stage, stop_at_step=11) != [0, 0]
    assert two_workers(tmp_path / "b", packed, run, zero_stage) == [0, 0]
    assert two_workers(tmp_path / "c", packed, run, zero_stage) == [0, 0]
    together = read_record(str(tmp_path / "b"), run.run_id)
    assert losses(tmp_path / "b", run) == losses(tmp_path / "c", run)
    assert results(together) == results(read_record(str(tmp_path / "c"), run.run_id))
    assert together.attempts == 2
    assert together.final.loss_nats_per_token == pytest.approx(alone.final.loss_nats_per_token, abs=2e-5)
    assert together.device_seconds == pytest.approx(2 * together.wall_seconds)


WORKER = """
import sys
import torch.distributed
from synth.storage import study_path
from train.config import RunConfig, TrainPlacement
from train.record import run_directory
from train.tokens import PackedSet

packed_root, root, run, placement, stop_at, rank, world, store = sys.argv[1:]
run, placement = RunConfig.model_validate_json(run), TrainPlacement.model_validate_json(placement)
if int(world) > 1:
    import os
    os.environ.update(LOCAL_RANK=rank, DS_ACCELERATOR="cpu")
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world))

from train.loop import train_run

def report(tokens):
    if tokens >= int(stop_at):
        os._exit(9)

train_run(run, PackedSet.open(packed_root, "tiny"), placement, run_directory(root, run.run_id), report=report)
"""


def in_subprocess(root, packed, run, *, rank=0, world=1, store="-", stop_at=10**12, **placement) -> subprocess.Popen:
    placed = TrainPlacement(**(RELENTLESS | placement)).model_dump_json()
    packed_root = str(packed._address[0])
    arguments = [packed_root, root, run.model_dump_json(), placed, stop_at, rank, world, store]
    return subprocess.Popen([sys.executable, "-c", WORKER, *map(str, arguments)], cwd=Path(__file__).parents[2])


def two_workers(root, packed, run, zero_stage, stop_at_step=10**6) -> list[int]:
    root.mkdir(exist_ok=True)
    store = root / f"store-{time.monotonic_ns()}"
    settings = {"world": 2, "store": store, "stop_at": stop_at_step * run.tokens_per_step, "zero_stage": zero_stage}
    workers = [in_subprocess(root, packed, run, rank=rank, **settings) for rank in range(2)]
    return [worker.wait(timeout=300) for worker in workers]
