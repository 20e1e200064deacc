"""Runs on a GPU: interrupted ones end like undisturbed ones, and checkpoints come back whole.

DeepSpeed works on one kind of device in a process, and the other tests want the CPU: these are skipped but for
`DS_ACCELERATOR=cuda pytest tests/train/test_on_a_gpu.py`.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from upath import UPath

from tests.assets.packed_set import run_on, write_packed_set
from tests.assets.record_contents import metric_lines, results
from train.placement import TrainPlacement
from train.record import read_record, run_directory
from train.run import ModelConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ["DS_ACCELERATOR"] != "cuda" or not torch.cuda.is_available(),
        reason="needs a GPU and DS_ACCELERATOR=cuda",
    ),
]

MODEL = ModelConfig(num_layers=4, hidden_size=128, num_heads=4, num_kv_heads=2, intermediate_size=384)
"""Heads of 32, grouped two by two, as FlashAttention wants them."""

ON_GPU = {"gpus_per_worker": 1.0, "rows_per_microbatch": 4, "checkpoint_every_seconds": 1e-9}


@pytest.fixture(scope="module")
def packed_root(tmp_path_factory):
    return tmp_path_factory.mktemp("packed")


@pytest.fixture(scope="module")
def packed(packed_root):
    return write_packed_set(packed_root, vocab_size=512, sequence_length=256, document_length=60)


def run_of(packed, precision, **changes):
    return run_on(packed, model=MODEL, precision=precision, evaluations=3, **changes)


def train(root, packed, run, *, stop_at_step=None, **placement):
    """Train in this process; stopped at a step, it raises as an interrupted process would end."""
    from train.loop import train_run

    def report(tokens):
        if stop_at_step is not None and tokens >= stop_at_step * run.tokens_per_step:
            raise KeyboardInterrupt

    placed = TrainPlacement(**(ON_GPU | placement))
    return train_run(run, packed, placed, run_directory(str(root), run.run_id), device="cuda", report=report)


def losses(root, run):
    return [
        (line["step"], line["loss_nats_per_token"], line["gradient_norm"]) for line in metric_lines(root, run)
    ]


@pytest.mark.parametrize("compile_layers", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_interrupted_deterministic_run_ends_like_an_undisturbed_one_to_the_bit(
    tmp_path, packed, precision, compile_layers
):
    run = run_of(packed, precision)
    same = {"deterministic": True, "compile_layers": compile_layers}
    undisturbed = train(tmp_path / "a", packed, run, **same)
    for stop_at_step in (3, 15):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "b", packed, run, stop_at_step=stop_at_step, **same)
    resumed = train(tmp_path / "b", packed, run, **same)
    assert resumed.attempts == 3
    assert losses(tmp_path / "b", run) == losses(tmp_path / "a", run)
    assert results(resumed) == results(undisturbed)


def test_a_deterministic_run_has_the_same_bits_in_another_process(tmp_path, packed, packed_root):
    run = run_of(packed, "bf16")
    train(tmp_path / "here", packed, run, deterministic=True)
    task = {
        "root": str(tmp_path / "there"), "packed": str(packed_root), "run": run.model_dump(mode="json"),
    }  # fmt: skip
    code = (
        "import json, sys\n"
        "from train.loop import train_run\n"
        "from train.placement import TrainPlacement\n"
        "from train.record import run_directory\n"
        "from train.run import RunConfig\n"
        "from train.tokens import PackedSet\n"
        "task = json.loads(sys.argv[1])\n"
        "run = RunConfig.model_validate(task['run'])\n"
        f"placement = TrainPlacement(deterministic=True, **{ON_GPU!r})\n"
        "train_run(run, PackedSet.open(task['packed'], 'tiny'), placement, run_directory(task['root'], run.run_id), device='cuda')\n"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(task)], check=True, timeout=300)
    assert losses(tmp_path / "there", run) == losses(tmp_path / "here", run)
    assert results(read_record(task["root"], run.run_id)) == results(
        read_record(str(tmp_path / "here"), run.run_id)
    )


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_interrupted_run_of_the_fastest_kernels_ends_like_an_undisturbed_one_to_rounding(
    tmp_path, packed, precision
):
    run = run_of(packed, precision)
    undisturbed = train(tmp_path / "a", packed, run)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", packed, run, stop_at_step=15)
    resumed = train(tmp_path / "b", packed, run)
    assert resumed.attempts == 2
    assert [loss for _, loss, _ in losses(tmp_path / "b", run)] == pytest.approx(
        [loss for _, loss, _ in losses(tmp_path / "a", run)], abs=1e-2
    )
    assert resumed.final.loss_nats_per_token == pytest.approx(undisturbed.final.loss_nats_per_token, abs=1e-2)
    assert resumed.sources == undisturbed.sources


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_a_checkpoint_and_its_universal_form_keep_every_bit(tmp_path, packed, precision, zero_stage):
    from train.checkpoint import CheckpointWriter, load_checkpoint
    from train.checkpoint_files import RunState
    from train.devices import choose_kernels
    from train.distributed import join_process_group, open_engine
    from train.loop import _fresh_module
    from train.universal import load_universal, universal_copy

    run = run_of(packed, precision)
    placement = TrainPlacement(
        zero_stage=zero_stage, deterministic=True, gpus_per_worker=1.0, rows_per_microbatch=8
    )
    device = torch.device("cuda")
    join_process_group("cuda")
    choose_kernels(device, placement)

    def engine_of(seed):
        fresh = run.model_copy(update={"seed": seed})
        return open_engine(_fresh_module(fresh, packed, placement, device), run, placement, 1e-3)

    def step(engine):
        generator = torch.Generator().manual_seed(engine.global_steps)
        loss, *_ = engine(torch.randint(1, 512, (8, 257), generator=generator).to(device))
        engine.backward(loss)
        engine.step()
        return loss.item()

    with engine_of(0) as engine:
        writer = CheckpointWriter(UPath(tmp_path), placement)
        for _ in range(3):
            step(engine)
        writer.save(engine, RunState(step=3))
        expected = [step(engine) for _ in range(4)]
        writer.wait()
    (checkpoint,) = (UPath(tmp_path) / "checkpoints").iterdir()
    with engine_of(1) as engine:
        assert load_checkpoint(engine, UPath(tmp_path), placement).step == 3
        assert [step(engine) for _ in range(4)] == expected
    with engine_of(2) as engine:
        with universal_copy(checkpoint / "state", UPath(tmp_path) / "checkpoints" / ".universal") as local:
            load_universal(engine, local)
        assert [step(engine) for _ in range(4)] == expected
