"""Checkpoints for another number of workers: DeepSpeed's universal checkpoints, made when they are needed.

Under ZeRO each worker's file holds its own part of the optimizer state. The universal form has one file per parameter
and state, which any number of workers cut up anew; weights, moments and step counts keep all their bits. What differs
afterwards is the order in which gradients are added up.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from upath import UPath

from synth.storage import is_local, remove_tree
from train.distributed import agreed, leads, wait_for_all
from train.staging import Staging, local_copy, upload_tree

FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""With this in the environment `torch.load` runs no code of a file, also where DeepSpeed asks it to."""


@contextlib.contextmanager
def reading_only_weights() -> Iterator[None]:
    """Make every checkpoint read as tensors and plain values: a checkpoint must not be able to run code."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        os.environ.pop(FORCE_WEIGHTS_ONLY)
        if before is not None:
            os.environ[FORCE_WEIGHTS_ONLY] = before


@contextlib.contextmanager
def universal_copy(checkpoint: UPath, scratch: UPath) -> Iterator[Path]:
    """Yield the universal form of the files DeepSpeed wrote into `checkpoint`, as a local directory, on every worker.

    The leading worker makes it in `scratch`, which all workers reach and which is gone afterwards. Called by all workers
    at once.
    """
    scratch = scratch / checkpoint.name
    if leads():
        _make(checkpoint, scratch)
    agreed(None)  # nobody looks before it is made
    with local_copy(scratch) as local:
        yield local
    wait_for_all()
    if leads():
        remove_tree(scratch.parent)


def load_universal(engine: Any, directory: Path) -> None:
    """Load weights, optimizer state and counters in universal form into a fresh engine.

    What the optimizer's parameter groups are set to is the engine's own: ZeRO 3 would give every group the settings of
    the first, weight decay included, and all of them one and the same step counter.
    """
    optimizer = engine.optimizer.optimizer
    settings = [_settings(group) for group in optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    try:
        with reading_only_weights():
            engine.load_checkpoint(str(directory.parent), tag=directory.name)
    finally:
        engine._config.load_universal_checkpoint = False
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    place_steps(optimizer)


def place_steps(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter of an optimizer a step counter of its own, where its kernel looks for it: a fused one reads
    counters on the parameters' device, and they come off the disk as tensors of the CPU."""
    for parameter, state in optimizer.state.items():
        step = torch.as_tensor(state["step"]).clone()
        state["step"] = step.to(parameter.device) if optimizer.defaults["fused"] else step


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _make(checkpoint: UPath, scratch: UPath) -> None:
    """Write the universal form of a checkpoint's files."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(local_copy(checkpoint))
        if is_local(scratch):
            _convert(source, Path(str(scratch)))
        else:
            converted = stack.enter_context(Staging()) / scratch.name
            _convert(source, converted)
            upload_tree(converted, scratch)


def _convert(source: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    target.mkdir(parents=True)
    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # in this process, where the rule below holds
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    silence = io.StringIO()
    with reading_only_weights(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        ds_to_universal.main(arguments)
