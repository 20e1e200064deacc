"""One run end to end with the real engine: the same bits whatever interrupts it, precedes it or shares the work."""

import pytest
import torch

from synth.errors import UserError
from tests.assets.packed_set import run_on, write_packed_set
from tests.assets.record_contents import metric_lines, results
from tests.assets.worker_group import NEVER, start_group
from train.placement import TrainPlacement
from train.record import read_record, run_directory
from train.run import OptimizerConfig

pytestmark = pytest.mark.drill

RELENTLESS = {"checkpoint_every_seconds": 1e-9}
"""A checkpoint at every opportunity."""


class Killed(Exception):
    """Stands for the end of a process in tests that stay within one."""


def train(root, packed, run, *, stop_at_step=None, **placement):
    from train.loop import train_run

    def report(tokens):
        if stop_at_step is not None and tokens >= stop_at_step * run.tokens_per_step:
            raise Killed

    return train_run(
        run, packed, TrainPlacement(**placement), run_directory(str(root), run.run_id), report=report
    )


def losses(root, run) -> list[tuple]:
    numbers = ("step", "loss_nats_per_token", "gradient_norm", "learning_rate", "loss_by_source")
    return [tuple(line[name] for name in numbers) for line in metric_lines(root, run)]


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
    lines = metric_lines(tmp_path, run)
    for line in lines:  # of 8 rows, 6 are natural and 2 synthetic
        natural, synthetic = (line["loss_by_source"][name] for name in ("natural", "synthetic"))
        assert 0.75 * natural + 0.25 * synthetic == pytest.approx(line["loss_nats_per_token"], rel=1e-5)
    assert record.device.name
    assert record.device.mfu_fraction is None  # no peak is known of a CPU
    assert record.device.rows_per_microbatch == 8
    assert record.device.peak_memory_bytes >= max(line["memory_bytes"] for line in lines) > 50_000_000
    assert record.train_tokens == 24 * 256
    assert {name: use.tokens for name, use in record.sources.items()} == {
        "natural": 144 * 32,
        "synthetic": 48 * 32,
    }
    assert [evaluation.train_tokens for evaluation in record.evaluations] == [12 * 256, 24 * 256]
    assert record.final == record.evaluations[-1]
    assert record.final.loss_nats_per_token < record.evaluations[0].loss_nats_per_token
    assert record.final.domains.keys() == {"code", "prose"}
    assert sorted(path.name for path in run_directory(str(tmp_path), run.run_id).iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "record.json",
    ]


@pytest.mark.parametrize(
    ("precision", "zero_stage"), [("fp32", 0), ("fp32", 1), ("bf16", 0), ("bf16", 1), ("bf16", 2)]
)
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path, packed, precision, zero_stage):
    run = run_on(packed, precision=precision, evaluations=3)
    undisturbed = train(tmp_path / "a", packed, run, zero_stage=zero_stage)
    for stop_at_step in (3, 11, 20):  # before the first checkpoint, and twice after one
        with pytest.raises(Killed):
            train(tmp_path / "b", packed, run, stop_at_step=stop_at_step, zero_stage=zero_stage, **RELENTLESS)
    checkpoints = run_directory(str(tmp_path / "b"), run.run_id) / "checkpoints"
    assert [path.name[:14] for path in checkpoints.iterdir()] == ["step-00000019-"]
    resumed = train(tmp_path / "b", packed, run, zero_stage=zero_stage, **RELENTLESS)
    assert losses(tmp_path / "b", run) == losses(tmp_path / "a", run)
    assert results(resumed) == results(undisturbed)
    assert resumed.attempts == 4
    assert undisturbed.attempts == 1
    assert not checkpoints.exists()


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_exported_model_is_the_one_that_was_evaluated(tmp_path, packed, zero_stage):
    from transformers import AutoModelForCausalLM

    from train.evaluation import evaluate
    from train.loop import train_run
    from train.model import Pretrainer

    run, saved = run_on(packed, precision="bf16"), tmp_path / "saved"
    record = train_run(
        run,
        packed,
        TrainPlacement(zero_stage=zero_stage),
        run_directory(str(tmp_path), run.run_id),
        deliver=lambda llama: llama.save_pretrained(saved),
    )
    loaded = Pretrainer(AutoModelForCausalLM.from_pretrained(saved), packed.eot_id)
    final = evaluate(
        loaded, packed.evaluation, train_tokens=run.train_tokens, rows_per_batch=8, device=torch.device("cpu")
    )
    assert final == record.final


def test_accumulation_changes_float_noise_only(tmp_path, packed):
    run = run_on(packed)
    whole = train(tmp_path / "a", packed, run, rows_per_microbatch=8)
    parts = train(tmp_path / "b", packed, run, rows_per_microbatch=2)
    assert [loss for _, loss, *_ in losses(tmp_path / "a", run)] == pytest.approx(
        [loss for _, loss, *_ in losses(tmp_path / "b", run)], abs=2e-5
    )
    assert parts.final.loss_nats_per_token == pytest.approx(whole.final.loss_nats_per_token, abs=2e-5)


def test_utilisation_is_flops_over_the_configured_peak_of_all_workers(tmp_path, packed):
    run = run_on(packed)
    record = train(tmp_path, packed, run, peak_flops_per_device=1e12)
    assert record.device.peak_flops_per_second == 1e12
    speed = record.train_flops / record.train_tokens * record.tokens_per_second
    assert record.device.mfu_fraction == pytest.approx(speed / 1e12)


def test_zero_stages_agree(tmp_path, packed):
    run = run_on(packed)
    final = {
        stage: train(tmp_path / str(stage), packed, run, zero_stage=stage).final.loss_nats_per_token
        for stage in range(4)
    }
    assert final == pytest.approx(dict.fromkeys(range(4), final[0]), abs=2e-5)


def test_runs_in_one_process_equal_one_in_a_fresh_process(tmp_path, packed):
    runs = [
        run_on(packed, mixture={"natural": 1.0}),
        run_on(packed, seed=3),
        run_on(packed, precision="bf16"),
    ]
    together = [train(tmp_path / "together", packed, run) for run in runs]
    [alone] = workers(tmp_path / "alone", packed, [(runs[-1], TrainPlacement())])
    assert alone.wait(timeout=300) == 0
    assert losses(tmp_path / "alone", runs[-1]) == losses(tmp_path / "together", runs[-1])
    assert results(read_record(str(tmp_path / "alone"), runs[-1].run_id)) == results(together[-1])


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_diverging_run_is_a_record_and_the_next_run_trains(tmp_path, packed, zero_stage):
    run = run_on(packed, optimizer=OptimizerConfig(peak_learning_rate=1e30, warmup_fraction=0.0))
    record = train(tmp_path, packed, run, zero_stage=zero_stage)
    assert record.status == "diverged"
    assert "not finite" in record.reason or "training loss of step" in record.reason
    assert record.final is None
    assert 0 < record.train_tokens <= run.train_tokens
    assert train(tmp_path, packed, run_on(packed), zero_stage=zero_stage).status == "complete"


def test_a_run_that_raises_leaves_the_process_fit_for_the_next(tmp_path, packed):
    run = run_on(packed)
    expected = train(tmp_path / "a", packed, run)
    with pytest.raises(Killed):
        train(tmp_path / "b", packed, run_on(packed, seed=9), stop_at_step=5)
    assert results(train(tmp_path / "b", packed, run)) == results(expected)


@pytest.mark.parametrize(
    ("changes", "placement", "message"),
    [
        (
            {"rows_per_step": 6},
            {"rows_per_microbatch": 4},
            "rows_per_microbatch = 4 does not divide the 6 rows",
        ),
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


def test_a_worker_on_a_quarter_of_a_device_is_charged_a_quarter(tmp_path, packed):
    record = train(tmp_path, packed, run_on(packed), gpus_per_worker=0.25)
    assert record.device_seconds == pytest.approx(record.wall_seconds / 4)


def test_two_workers_train_the_same_runs(tmp_path, packed):
    runs = [run_on(packed, seed=stage) for stage in range(4)]
    placed = [(run, TrainPlacement(zero_stage=stage)) for stage, run in enumerate(runs)]
    assert [worker.wait(timeout=400) for worker in workers(tmp_path / "two", packed, placed, world=2)] == [
        0,
        0,
    ]
    for run, placement in placed:
        together = read_record(str(tmp_path / "two"), run.run_id)
        alone = train(tmp_path / "one", packed, run, zero_stage=placement.zero_stage)
        assert together.final.loss_nats_per_token == pytest.approx(alone.final.loss_nats_per_token, abs=2e-5)
        assert together.sources == alone.sources
        assert together.device_seconds == pytest.approx(2 * together.wall_seconds)


def test_two_killed_workers_resume_bit_for_bit(tmp_path, packed):
    run = run_on(packed, evaluations=3)
    placed = [(run, TrainPlacement(**RELENTLESS))]
    for root, kill_at in (("a", NEVER), ("b", 11 * run.tokens_per_step), ("b", NEVER)):
        group = workers(tmp_path / root, packed, placed, world=2, kill_at=kill_at)
        ended = [worker.wait(timeout=400) for worker in group]
        assert ended == [0, 0] if kill_at == NEVER else 0 not in ended
    resumed, undisturbed = (read_record(str(tmp_path / root), run.run_id) for root in "ba")
    assert losses(tmp_path / "b", run) == losses(tmp_path / "a", run)
    assert results(resumed) == results(undisturbed)
    assert (resumed.attempts, undisturbed.attempts) == (2, 1)


def workers(root, packed, placed, **options):
    return start_group(root, packed, placed, root / "rendezvous", **options)
