"""A worker's device: its name, its peak speed by its data sheet, and its memory in use."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from train.placement import TrainPlacement

PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "MI300X": 1307.4e12,
}
"""Part of a GPU's name -> dense bfloat16 matrix products by its data sheet, FLOP/s; the first that fits counts."""


def device_name(device: Any) -> str:
    """Return what a torch device is called: `NVIDIA H200`, `AMD EPYC`."""
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    return _processor()


def peak_flops(name: str, precision: str, placement: TrainPlacement) -> float | None:
    """Return the peak speed of a device, FLOP/s: the placement's, else the data sheet's in bfloat16, else None."""
    if placement.peak_flops_per_device is not None or precision != "bf16":
        return placement.peak_flops_per_device
    words = name.replace("-", " ")
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if f" {part} " in f" {words} "), None)


def memory_in_use(device: Any) -> int:
    """Return bytes: on a GPU the most allocated since the last call, else what the process has resident."""
    if device.type != "cuda":
        return int(psutil.Process().memory_info().rss)
    import torch

    most = int(torch.cuda.max_memory_allocated(device))
    torch.cuda.reset_peak_memory_stats(device)
    return most


def choose_kernels(device: Any, placement: TrainPlacement) -> None:
    """Let this process compute by kernels that add up in a fixed order, or by the fastest, as the placement has it.

    On a CPU they are the same. PyTorch then raises RuntimeError where a GPU has no such kernel for something.
    """
    if device.type != "cuda":
        return
    import torch

    if placement.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else PyTorch refuses matrix products
    torch.use_deterministic_algorithms(placement.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads what it has not written
    if placement.compile_layers:
        import torch._inductor.config

        # Else it times kernels and takes the fastest, which may be another one the next time.
        torch._inductor.config.deterministic = placement.deterministic


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
