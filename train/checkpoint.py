"""Checkpoints of a run: `checkpoints/step-00000120/`, whole or not at all, so that a resumed run is the same run.

DeepSpeed writes weights and optimizer state, one file set for all workers; `complete.json` is written last and holds
the loop's own state and the size of every file. The newest complete checkpoint is kept, older ones go.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from upath import UPath

from synth.storage import is_local, list_names, read_json, write_json_atomic
from train.config import TrainPlacement
from train.distributed import agreed, leads, world_size
from train.divergence import WatchState
from train.record import Evaluation, Record

_LOG = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
COMPLETE_FILE = "complete.json"
TAG = "state"
"""DeepSpeed's name for what it writes: the directory of its files inside a checkpoint's."""


class RunState(Record):
    """What the loop must know, besides weights and optimizer state, to go on as if nothing had happened."""

    step: int = 0
    """Finished steps."""
    window_losses: tuple[float, ...] = ()
    """Losses of the steps since the last metrics line, nats per token."""
    window_source_nats: tuple[float, ...] = ()
    """Losses in the same steps by source, in the sampler's order, summed over tokens, nats; empty: none yet."""
    watch: WatchState = WatchState()
    """What the watch for divergence has seen."""
    evaluations: tuple[Evaluation, ...] = ()
    """Evaluations so far."""
    wall_seconds: float = 0.0
    """Wall-clock seconds of training and evaluation so far, all attempts."""
    train_seconds: float = 0.0
    """Of these, seconds in training steps that the weights have profited from."""


class _Complete(Record):
    """Contents of `complete.json`."""

    state: RunState
    world_size: int
    zero_stage: int
    files: dict[str, int]
    """Size of every file of the checkpoint, bytes."""


def save_checkpoint(
    engine: Any, directory: UPath, state: RunState, placement: TrainPlacement, *, keep_older: bool = False
) -> None:
    """Write a checkpoint of the run in this directory, then drop the older ones. Called by all workers at once."""
    name = _name(state.step)
    home = directory / CHECKPOINTS
    if leads():
        _remove_tree(home / name)  # what a killed attempt left half-written
    with _local_twin(home / name) as local:
        engine.save_checkpoint(str(local), tag=TAG, save_latest=False)
        _upload(local / TAG, home / name / TAG)
    torch.distributed.barrier()
    if leads():
        complete = _Complete(
            state=state, world_size=world_size(), zero_stage=placement.zero_stage, files=_sizes(home / name)
        )
        write_json_atomic(home / name / COMPLETE_FILE, complete.model_dump(mode="json"))
        if not keep_older:
            remove_checkpoints(directory, but=state.step)


def load_checkpoint(
    engine: Any, directory: UPath, placement: TrainPlacement, *, up_to_step: int | None = None
) -> RunState:
    """Load the newest complete checkpoint into a fresh engine and return the loop's state; a fresh state without one.

    Called by all workers at once. With `up_to_step`, checkpoints after more steps than that do not count. A checkpoint of another ZeRO stage, or of another number of workers under ZeRO 1-3,
    cannot be loaded as it is: the run then starts over, with a warning, and ends with the same result.
    """
    home = directory / CHECKPOINTS
    found = agreed(_newest(home, up_to_step) if leads() else None)
    if found is None:
        return RunState()
    name, complete = found
    same_workers = complete.world_size == world_size() or complete.zero_stage == 0
    if complete.zero_stage != placement.zero_stage or not same_workers:
        if leads():
            _LOG.warning(
                "%s was written by %d workers under ZeRO %d and cannot be loaded by %d under ZeRO %d: the run starts over",
                home / name, complete.world_size, complete.zero_stage, world_size(), placement.zero_stage,
            )  # fmt: skip
        return RunState()
    with _local_twin(home / name) as local, _weights_only(engine):
        _download(home / name / TAG, local / TAG)
        engine.load_checkpoint(str(local), tag=TAG)
    return complete.state


def newest_step(directory: UPath, up_to_step: int | None = None) -> int:
    """Return the finished steps of the newest complete checkpoint, not above `up_to_step`; 0 without one."""
    found = _newest(directory / CHECKPOINTS, up_to_step)
    return found[1].state.step if found else 0


def remove_checkpoints(directory: UPath, but: int | None = None) -> None:
    """Drop the checkpoints of a directory, all of them or all but the one after so many steps."""
    home = directory / CHECKPOINTS
    if but is None:
        _remove_tree(home)
        return
    for name in list_names(home):
        if name != _name(but):
            _remove_tree(home / name)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _newest(home: UPath, up_to_step: int | None = None) -> tuple[str, _Complete] | None:
    for name in reversed(list_names(home)):
        if up_to_step is not None and name > _name(up_to_step):
            continue
        try:
            complete = _Complete.model_validate(read_json(home / name / COMPLETE_FILE))
        except FileNotFoundError:
            continue
        if _sizes(home / name) == complete.files:
            return name, complete
    return None


def _sizes(checkpoint: UPath) -> dict[str, int]:
    return {child.name: child.stat().st_size for child in (checkpoint / TAG).iterdir()}


@contextlib.contextmanager
def _weights_only(engine: Any) -> Iterator[None]:
    """Make the engine read checkpoints as tensors and plain values: a checkpoint must not be able to run code."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    class WeightsOnly(TorchCheckpointEngine):
        def load(self, path: str, map_location: Any = None) -> Any:
            with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
                return torch.load(path, map_location=map_location, weights_only=True)

    original = engine.checkpoint_engine
    engine.checkpoint_engine = WeightsOnly()
    try:
        yield
    finally:
        engine.checkpoint_engine = original


@contextlib.contextmanager
def _local_twin(directory: UPath) -> Iterator[Path]:
    """Yield the directory itself when it is local, else a temporary one that stands for it on this node."""
    if is_local(directory):
        yield Path(str(directory))
        return
    with tempfile.TemporaryDirectory(prefix="synthscale-checkpoint-") as temporary:
        yield Path(temporary)


def _upload(local: Path, remote: UPath) -> None:
    if is_local(remote):
        return
    for source in sorted(local.iterdir()):
        with source.open("rb") as reader, (remote / source.name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 22)


def _download(remote: UPath, local: Path) -> None:
    if is_local(remote):
        return
    local.mkdir(parents=True)
    for source in remote.iterdir():
        with source.open("rb") as reader, (local / source.name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 22)


def _remove_tree(path: UPath) -> None:
    (path / COMPLETE_FILE).unlink(missing_ok=True)  # first, so that half a removal never looks complete
    if is_local(path):
        shutil.rmtree(str(path), ignore_errors=True)
    elif path.exists():
        path.fs.rm(path.path, recursive=True)
