"""Checkpoints: the newest whole one counts, wherever it lies; half ones and foreign ones do not; they run no code."""

import asyncio
import contextlib
import json
import logging
import pickle
import shutil
import threading

import pytest
import s3fs
import torch
from fsspec.asyn import sync_wrapper
from upath import UPath

from synth import storage
from synth.storage import study_path
from tests.assets.object_store import failing_store, object_store
from tests.assets.packed_set import TINY, run_on, write_packed_set
from train.checkpoint import CheckpointWriter, load_checkpoint
from train.checkpoint_files import RunState, newest_step, remove_checkpoints
from train.placement import TrainPlacement
from train.universal import load_universal, place_steps, universal_copy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_on(write_packed_set(tmp_path_factory.mktemp("packed")))


def engine_of(run, placement, seed=0):
    from train.distributed import join_process_group, open_engine
    from train.model import Pretrainer, Vocabulary, build_llama

    join_process_group("cpu")
    return open_engine(Pretrainer(build_llama(TINY, Vocabulary(64, 0), 32, seed), 0), run, placement, 1e-3)


def step(engine):
    rows = torch.randint(1, 64, (8, 33), generator=torch.Generator().manual_seed(engine.global_steps))
    losses = []
    for part in rows.split(engine.train_micro_batch_size_per_gpu()):
        loss, _ = engine(part)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def weights(engine):
    return [parameter.detach().clone() for parameter in engine.module.parameters()]


def saved(directory, run, steps=(1, 2), placement=TrainPlacement()):  # noqa: B008
    """Train and save after each of these steps; return the weights after the last one and the losses of two more."""
    with engine_of(run, placement) as engine:
        writer = CheckpointWriter(directory, placement)
        for number in steps:
            step(engine)
            writer.save(engine, RunState(step=number, window_losses=(1 / 3,)))
        expected = weights(engine), [step(engine), step(engine)]
        writer.wait()
        return expected


@pytest.fixture(params=["local", "memory", "s3"])
def directory(request, tmp_path):
    """Where a run may keep its checkpoints."""
    with object_store() if request.param == "s3" else contextlib.nullcontext():
        yield {
            "local": UPath(tmp_path),
            "memory": UPath(f"memory://{tmp_path.name}/run"),
            "s3": study_path("s3://bucket", tmp_path.name, "run"),
        }[request.param]


@pytest.fixture
def bucket(tmp_path):
    with object_store():
        yield study_path("s3://bucket", tmp_path.name, "run")


def before_each_put(monkeypatch, action):
    """Have `async action()` called before anything is put into an object store by this process."""
    call = s3fs.S3FileSystem._call_s3

    async def call_after_action(self, method, *arguments, **options):
        if method == "put_object":
            await action()
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call_after_action)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", sync_wrapper(call_after_action))


def test_a_checkpoint_brings_back_weights_optimizer_and_state(directory, run):
    expected, losses = saved(directory, run)
    (name,) = (path.name for path in (directory / "checkpoints").iterdir())
    assert name.startswith("step-00000002-")
    with engine_of(run, TrainPlacement(), seed=1) as engine:
        assert load_checkpoint(engine, directory, TrainPlacement()) == RunState(
            step=2, window_losses=(1 / 3,)
        )
        assert all(torch.equal(one, two) for one, two in zip(weights(engine), expected, strict=True))
        assert [step(engine), step(engine)] == losses
    remove_checkpoints(directory)
    assert not (directory / "checkpoints").exists()


@pytest.mark.parametrize(
    ("zero_stage", "precision"), [(1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
)
def test_the_universal_form_of_a_checkpoint_keeps_every_bit(tmp_path, run, zero_stage, precision):
    optimizer = run.optimizer.model_copy(update={"weight_decay": 10.0})  # a wrong group would show at once
    run = run.model_copy(update={"precision": precision, "optimizer": optimizer})
    placement = TrainPlacement(zero_stage=zero_stage)
    saved(UPath(tmp_path), run, steps=(1, 2, 3), placement=placement)
    (checkpoint,) = (UPath(tmp_path) / "checkpoints").iterdir()
    losses = []
    for scratch in (None, UPath(tmp_path) / "checkpoints" / ".universal"):
        with engine_of(run, placement, seed=1) as engine:
            if scratch is None:
                load_checkpoint(engine, UPath(tmp_path), placement)
            else:
                with universal_copy(checkpoint / "state", scratch) as local:
                    load_universal(engine, local)
            losses.append([step(engine) for _ in range(6)])
    assert losses[0] == losses[1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [checkpoint.name]


@pytest.mark.parametrize("zero_stage", [1, 2])
@pytest.mark.parametrize(("written", "read"), [(8, 4), (4, 8)])
def test_gradients_may_be_accumulated_otherwise_after_a_resume(tmp_path, run, zero_stage, written, read):
    run = run.model_copy(update={"precision": "bf16"})
    place = {
        rows: TrainPlacement(zero_stage=zero_stage, rows_per_microbatch=rows) for rows in (written, read)
    }
    saved(UPath(tmp_path), run, steps=(1, 2), placement=place[written])
    with engine_of(run, place[written], seed=1) as engine:
        load_checkpoint(engine, UPath(tmp_path), place[written])
        expected = weights(engine), [step(engine) for _ in range(5)]
    with engine_of(run, place[read], seed=2) as engine:
        assert load_checkpoint(engine, UPath(tmp_path), place[read]).step == 2
        assert all(torch.equal(one, two) for one, two in zip(weights(engine), expected[0], strict=True))
        assert [step(engine) for _ in range(5)] == pytest.approx(expected[1], abs=2e-2)


@pytest.mark.parametrize("cut_after", range(5))
def test_an_upload_that_breaks_off_anywhere_leaves_the_checkpoint_before(bucket, run, monkeypatch, cut_after):
    left = iter(range(cut_after))

    async def break_off():
        if next(left, None) is None:
            raise OSError("connection lost")

    saved(bucket, run, steps=(1,))
    with engine_of(run, TrainPlacement()) as engine:
        before_each_put(monkeypatch, break_off)
        writer = CheckpointWriter(bucket, TrainPlacement())
        writer.save(engine, RunState(step=2))
        whole = cut_after == 4  # model, optimizer, the worker's part, the word that it is whole
        with contextlib.nullcontext() if whole else pytest.raises(OSError, match="connection lost"):
            writer.wait()
    monkeypatch.undo()
    assert newest_step(bucket) == (2 if whole else 1)


def test_a_store_that_is_away_while_checkpoints_are_made_costs_time_and_nothing_else(run, monkeypatch):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (0.1,) * 100)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client's own attempts would only take time here
    with failing_store() as store, engine_of(run, TrainPlacement()) as engine:
        directory = study_path("s3://bucket/run")
        writer = CheckpointWriter(directory, TrainPlacement())
        for number in (1, 2):
            store.down()
            writer.save(engine, RunState(step=number))
            threading.Timer(0.3, store.up).start()
            writer.wait()
            assert newest_step(directory) == number
        assert len(storage.list_names(directory / "checkpoints")) == 1
        store.down()
        threading.Timer(0.3, store.up).start()
        assert load_checkpoint(engine, directory, TrainPlacement()).step == 2
        store.down()
        threading.Timer(0.3, store.up).start()
        remove_checkpoints(directory)
        assert newest_step(directory) == 0


def test_training_goes_on_while_a_checkpoint_is_uploaded(bucket, run, monkeypatch):
    gate = threading.Event()

    async def wait_at_gate():
        while not gate.is_set():
            await asyncio.sleep(0.01)

    saved(bucket, run, steps=(1,))
    before_each_put(monkeypatch, wait_at_gate)
    with engine_of(run, TrainPlacement()) as engine:
        writer = CheckpointWriter(bucket, TrainPlacement())
        step(engine)
        writer.save(engine, RunState(step=2))
        at_save = weights(engine)
        step(engine)
        assert writer.busy
        assert not torch.equal(weights(engine)[0], at_save[0])
        assert newest_step(bucket) == 1
        gate.set()
        writer.wait()
    assert newest_step(bucket) == 2
    with engine_of(run, TrainPlacement(), seed=1) as engine:
        load_checkpoint(engine, bucket, TrainPlacement())
        assert all(torch.equal(one, two) for one, two in zip(weights(engine), at_save, strict=True))


def test_what_is_not_needed_any_more_is_not_waited_for(bucket, run):
    with engine_of(run, TrainPlacement()) as engine:
        writer = CheckpointWriter(bucket, TrainPlacement())
        writer.abandon()
        writer.save(engine, RunState(step=1))
        writer.abandon()
        assert not writer.busy
    assert newest_step(bucket) == 0


def test_a_half_written_checkpoint_is_passed_over(tmp_path, run):
    saved(UPath(tmp_path), run, steps=(1,))
    home = tmp_path / "checkpoints"
    (whole,) = home.iterdir()
    shutil.copytree(whole, home / "step-00000009-a")
    (home / "step-00000009-a" / "complete.json").unlink()
    shutil.copytree(whole, home / "step-00000010-b")
    cut_short = next((home / "step-00000010-b" / "state").glob("*optim_states.pt"))
    cut_short.write_bytes(cut_short.read_bytes()[:-100])
    with engine_of(run, TrainPlacement()) as engine:
        assert load_checkpoint(engine, UPath(tmp_path), TrainPlacement()).step == 1


def test_without_a_checkpoint_a_run_starts_at_its_beginning(tmp_path, run):
    with engine_of(run, TrainPlacement()) as engine:
        before = weights(engine)
        assert load_checkpoint(engine, UPath(tmp_path), TrainPlacement()) == RunState()
        assert all(torch.equal(one, two) for one, two in zip(weights(engine), before, strict=True))


@pytest.mark.parametrize(("written", "read"), [(1, 2), (2, 1)])
def test_zero_stages_1_and_2_go_on_from_each_other(tmp_path, run, written, read):
    _, losses = saved(UPath(tmp_path), run, placement=TrainPlacement(zero_stage=written))
    placement = TrainPlacement(zero_stage=read)
    with engine_of(run, placement, seed=1) as engine:
        assert load_checkpoint(engine, UPath(tmp_path), placement).step == 2
        assert [step(engine), step(engine)] == pytest.approx(losses, abs=2e-6)


@pytest.mark.parametrize(("written", "read"), [(0, 2), (2, 0), (1, 3), (3, 1)])
def test_between_other_stages_there_is_no_way_and_that_is_said(tmp_path, run, caplog, written, read):
    saved(UPath(tmp_path), run, steps=(1,), placement=TrainPlacement(zero_stage=written))
    placement = TrainPlacement(zero_stage=read)
    with engine_of(run, placement) as engine, caplog.at_level(logging.WARNING, logger="train.checkpoint"):
        before = weights(engine)
        assert load_checkpoint(engine, UPath(tmp_path), placement) == RunState()
        assert all(torch.equal(one, two) for one, two in zip(weights(engine), before, strict=True))
    assert "what it is ahead is trained again" in caplog.text


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the checkpoint ran code')",))


@pytest.mark.parametrize("universal", [False, True])
def test_a_checkpoint_cannot_run_code(tmp_path, run, universal):
    saved(UPath(tmp_path), run, steps=(1,))
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    states = checkpoint / "state" / "mp_rank_00_model_states.pt"
    torch.save({"module": Payload()}, states)
    marker = checkpoint / "complete.json"
    complete = json.loads(marker.read_text())
    complete["files"][states.name] = states.stat().st_size
    complete["world_size"] += universal
    marker.write_text(json.dumps(complete))
    with (
        engine_of(run, TrainPlacement()) as engine,
        pytest.raises(pickle.UnpicklingError, match="Weights only"),
    ):
        load_checkpoint(engine, UPath(tmp_path), TrainPlacement())


def test_a_fused_optimizer_has_its_step_counters_where_its_kernel_reads_them():
    """They come out of a universal checkpoint on the CPU, or as one tensor for all; a kernel of a GPU reads GPU memory."""
    parameters = [torch.nn.Parameter(torch.zeros(2, device="meta")) for _ in range(2)]
    for fused, device in ((True, "meta"), (None, "cpu")):
        optimizer = torch.optim.AdamW(parameters, fused=fused)
        loaded = torch.tensor(7.0)
        for parameter in parameters:
            optimizer.state[parameter]["step"] = loaded
        place_steps(optimizer)
        one, other = (optimizer.state[parameter]["step"] for parameter in parameters)
        assert (one.device.type, other.device.type) == (device, device)
        assert one is not other
        assert loaded is not one
