"""Devices by name, and the peak that utilisation is measured against: known, configured, or none."""

import pytest
import torch

from train.devices import device_name, memory_in_use, peak_flops
from train.placement import TrainPlacement

ANY = TrainPlacement()


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("AMD EPYC", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_the_peak_of_a_known_gpu_is_its_data_sheets_and_of_anything_else_unknown(name, peak):
    assert peak_flops(name, "bf16", ANY) == peak
    assert peak_flops(name, "fp32", ANY) is None


def test_a_configured_peak_counts_first():
    placement = TrainPlacement(peak_flops_per_device=1e12)
    assert peak_flops("NVIDIA H200", "bf16", placement) == 1e12
    assert peak_flops("AMD EPYC", "fp32", placement) == 1e12


def test_a_cpu_has_a_name_and_a_resident_set():
    cpu = torch.device("cpu")
    assert device_name(cpu)
    before = memory_in_use(cpu)
    ballast = torch.ones(30_000_000)
    assert memory_in_use(cpu) - before > 80_000_000
    assert ballast.numel()
