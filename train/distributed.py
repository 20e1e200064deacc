"""The workers of one run: joining their process group, and opening and closing a DeepSpeed engine over it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed

from train.config import OptimizerConfig, RunConfig, TrainPlacement
from train.deepspeed_config import deepspeed_config
from train.model import Pretrainer


def join_process_group(device: str) -> None:
    """Make this process ready for DeepSpeed: as the only worker, or as a member of the group it is already in.

    Inside a Ray Train worker the group exists and is taken as it is. May be called again before every run.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)  # read when deepspeed is first imported
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not torch.distributed.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even when there is one worker
    if not deepspeed.comm.is_initialized():
        # DeepSpeed would compile this C++ op for minutes on a first start; only inference all-reduces use it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def rank() -> int:
    """Return this worker's rank."""
    return torch.distributed.get_rank()


def world_size() -> int:
    """Return the number of workers."""
    return torch.distributed.get_world_size()


def average(values: torch.Tensor) -> torch.Tensor:
    """Average a tensor over the workers, in place; return it."""
    torch.distributed.all_reduce(values)
    return values.div_(world_size())


@contextlib.contextmanager
def open_engine(module: Pretrainer, run: RunConfig, placement: TrainPlacement, peak_rate: float) -> Iterator[Any]:
    """Yield a DeepSpeed engine that trains the module; leave nothing of it behind, so that runs can follow each other.

    Losses of a later run are bit-identical to those in a fresh process. ZeRO stage 3 leaks inside DeepSpeed (about
    14 MiB a run for a small model): use it for models that need it, and start workers anew from time to time.
    """
    import deepspeed

    num_params = sum(parameter.numel() for parameter in module.parameters())
    optimizer = torch.optim.AdamW(_parameter_groups(module, run.optimizer), lr=peak_rate, **_adam_arguments(run.optimizer))
    config = deepspeed_config(run, placement, world_size(), num_params)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    try:
        yield engine
    finally:
        engine.destroy()
        if placement.zero_stage == 3:
            vars(engine.optimizer).clear()
            vars(engine).clear()
        del engine, optimizer, module
        gc.collect()


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def _parameter_groups(module: torch.nn.Module, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    parameters = list(module.parameters())
    return [
        {"params": [item for item in parameters if item.ndim >= 2], "weight_decay": optimizer.weight_decay},
        {"params": [item for item in parameters if item.ndim < 2], "weight_decay": 0.0},
    ]


def _adam_arguments(optimizer: OptimizerConfig) -> dict[str, Any]:
    return {"betas": (optimizer.beta1, optimizer.beta2), "eps": optimizer.epsilon}
