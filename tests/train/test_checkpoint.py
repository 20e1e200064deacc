"""Checkpoints: the newest whole one counts, wherever it lies; half ones and foreign ones do not; they run no code."""

import logging
import pickle
import shutil

import pytest
import torch
from upath import UPath

from tests.assets.packed_set import TINY, run_on, write_packed_set
from train.checkpoint import RunState, load_checkpoint, remove_checkpoints, save_checkpoint
from train.config import TrainPlacement

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
    loss, _ = engine(rows)
    engine.backward(loss)
    engine.step()
    return loss.item()


def weights(engine):
    return [parameter.detach().clone() for parameter in engine.module.parameters()]


def saved(directory, run, steps=(1, 2), placement=TrainPlacement()):  # noqa: B008
    """Train and save after each of these steps; return the weights after the last one and the losses of two more."""
    with engine_of(run, placement) as engine:
        for number in steps:
            step(engine)
            save_checkpoint(engine, directory, RunState(step=number, window_losses=(1 / 3,)), placement)
        return weights(engine), [step(engine), step(engine)]


@pytest.mark.parametrize("where", ["local", "object store"])
def test_a_checkpoint_brings_back_weights_optimizer_and_state(tmp_path, run, where):
    directory = UPath(tmp_path) if where == "local" else UPath(f"memory://{tmp_path.name}/run")
    expected, losses = saved(directory, run)
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-00000002"]
    with engine_of(run, TrainPlacement(), seed=1) as engine:
        assert load_checkpoint(engine, directory, TrainPlacement()) == RunState(
            step=2, window_losses=(1 / 3,)
        )
        assert all(torch.equal(one, two) for one, two in zip(weights(engine), expected, strict=True))
        assert [step(engine), step(engine)] == losses
    remove_checkpoints(directory)
    assert not (directory / "checkpoints").exists()


def test_a_half_written_checkpoint_is_passed_over(tmp_path, run):
    saved(UPath(tmp_path), run, steps=(1,))
    home = tmp_path / "checkpoints"
    shutil.copytree(home / "step-00000001", home / "step-00000009")
    (home / "step-00000009" / "complete.json").unlink()
    shutil.copytree(home / "step-00000001", home / "step-00000010")
    cut_short = next((home / "step-00000010" / "state").glob("*optim_states.pt"))
    cut_short.write_bytes(cut_short.read_bytes()[:-100])
    with engine_of(run, TrainPlacement()) as engine:
        assert load_checkpoint(engine, UPath(tmp_path), TrainPlacement()).step == 1


def test_without_a_checkpoint_a_run_starts_at_its_beginning(tmp_path, run):
    with engine_of(run, TrainPlacement()) as engine:
        before = weights(engine)
        assert load_checkpoint(engine, UPath(tmp_path), TrainPlacement()) == RunState()
        assert all(torch.equal(one, two) for one, two in zip(weights(engine), before, strict=True))


def test_a_checkpoint_of_another_zero_stage_is_not_loaded_and_that_is_said(tmp_path, run, caplog):
    saved(UPath(tmp_path), run, steps=(1,))
    placement = TrainPlacement(zero_stage=2)
    with engine_of(run, placement) as engine, caplog.at_level(logging.WARNING, logger="train.checkpoint"):
        before = weights(engine)
        assert load_checkpoint(engine, UPath(tmp_path), placement) == RunState()
        assert all(torch.equal(one, two) for one, two in zip(weights(engine), before, strict=True))
    assert "the run starts over" in caplog.text


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the checkpoint ran code')",))


def test_a_checkpoint_cannot_run_code(tmp_path, run):
    saved(UPath(tmp_path), run, steps=(1,))
    states = tmp_path / "checkpoints" / "step-00000001" / "state" / "mp_rank_00_model_states.pt"
    torch.save({"module": Payload()}, states)
    marker = tmp_path / "checkpoints" / "step-00000001" / "complete.json"
    size = states.stat().st_size
    text = marker.read_text()
    import json

    complete = json.loads(text)
    complete["files"][states.name] = size
    marker.write_text(json.dumps(complete))
    with (
        engine_of(run, TrainPlacement()) as engine,
        pytest.raises(pickle.UnpicklingError, match="Weights only"),
    ):
        load_checkpoint(engine, UPath(tmp_path), TrainPlacement())
