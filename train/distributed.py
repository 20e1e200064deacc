"""The workers of one run: joining their process group, and opening and closing a DeepSpeed engine over it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed

from train.deepspeed_config import deepspeed_config
from train.model import Pretrainer
from train.placement import TrainPlacement
from train.run import RunConfig

Agreed = TypeVar("Agreed")


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
        torch.distributed.init_process_group(
            backend, store=torch.distributed.HashStore(), rank=0, world_size=1
        )
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even when there is one worker
    if not deepspeed.comm.is_initialized():
        # DeepSpeed would compile this C++ op for minutes on a first start; only inference all-reduces use it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        # Collecting garbage after every run would walk the objects of all these libraries: 0.3 s for nothing.
        gc.collect()
        gc.freeze()


def share_device(device: str | torch.device, gpus_per_worker: float) -> None:
    """Keep this process to its part of a GPU it shares with others.

    So a model that is too large for its part is out of memory by itself, and does not take the memory of the model beside
    it. The part does not count the CUDA context of the process, which comes on top.
    """
    if torch.device(device).type == "cuda" and gpus_per_worker < 1:
        torch.cuda.set_per_process_memory_fraction(gpus_per_worker, device)


def rank() -> int:
    """Return this worker's rank."""
    return int(torch.distributed.get_rank())


def world_size() -> int:
    """Return the number of workers."""
    return int(torch.distributed.get_world_size())


def leads() -> bool:
    """Return whether this worker is the one that writes files and speaks for the others."""
    return rank() == 0


def total(values: torch.Tensor) -> torch.Tensor:
    """Add a tensor up over the workers, in place; return it."""
    torch.distributed.all_reduce(values)
    return values


def agreed(value: Agreed) -> Agreed:
    """Return what the leading worker has, on every worker; the others' values do not count."""
    holder = [value]
    torch.distributed.broadcast_object_list(holder, src=0)
    return holder[0]


def wait_for_all() -> None:
    """Return when every worker has got here."""
    torch.distributed.barrier()


@contextlib.contextmanager
def open_engine(
    module: Pretrainer, run: RunConfig, placement: TrainPlacement, peak_rate: float
) -> Iterator[Any]:
    """Yield a DeepSpeed engine that trains the module, and take it down afterwards.

    What is left is garbage in cycles: collect it before the next run. ZeRO stage 3 leaks inside DeepSpeed even then:
    use it for models that need it, and a fresh process for each.
    """
    import deepspeed

    num_params = sum(parameter.numel() for parameter in module.parameters())
    config = deepspeed_config(run, placement, world_size(), num_params)
    on_gpu = placement.gpus_per_worker > 0
    optimizer = _adam(module, run, clips=config["gradient_clipping"] == 0, peak_rate=peak_rate, on_gpu=on_gpu)
    buffers = dict(module.named_buffers())
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )
    for (
        name,
        buffer,
    ) in buffers.items():  # DeepSpeed rounds buffers to bfloat16 too: the rotary frequencies must not be
        owner, _, own_name = name.rpartition(".")
        setattr(module.get_submodule(owner), own_name, buffer.to(engine.device))
    if (
        placement.zero_stage == 3
    ):  # the loss reads this weight itself, so stage 3 must gather it for the whole module
        deepspeed.zero.register_external_parameter(module, module.llama.lm_head.weight)
    try:
        yield engine
    finally:
        engine.destroy()


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def whole_weights(engine: Any, placement: TrainPlacement) -> contextlib.AbstractContextManager[None]:
    """Return a context in which every worker can read all weights, also where ZeRO 3 has taken them apart."""
    import deepspeed

    if placement.zero_stage < 3:
        return contextlib.nullcontext()
    gathered: contextlib.AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
        list(engine.parameters())
    )
    return gathered


class _ClippingAdamW(torch.optim.AdamW):
    """AdamW that clips the gradient itself and keeps its norm, under the name by which DeepSpeed asks for it."""

    max_gradient_norm: float
    _global_grad_norm: torch.Tensor

    def step(self, closure: Any = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
        return super().step(closure)


def _adam(
    module: torch.nn.Module, run: RunConfig, *, clips: bool, peak_rate: float, on_gpu: bool
) -> torch.optim.AdamW:
    settings = run.optimizer
    parameters = list(module.parameters())
    groups = [
        {"params": [item for item in parameters if item.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [item for item in parameters if item.ndim < 2], "weight_decay": 0.0},
    ]
    kind = _ClippingAdamW if clips else torch.optim.AdamW
    optimizer = kind(
        groups,
        lr=peak_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=on_gpu or None,  # one pass over the weights and their moments instead of a dozen
    )
    if isinstance(optimizer, _ClippingAdamW):
        optimizer.max_gradient_norm = settings.max_gradient_norm
    return optimizer
