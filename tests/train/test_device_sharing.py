"""Small models on one GPU: each process keeps to its part of the memory."""

import pytest
import torch

from train.distributed import share_device

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("device", "gpus_per_worker", "limits"),
    [
        ("cuda:0", 0.25, [(0.25, "cuda:0")]),
        ("cuda:1", 0.5, [(0.5, "cuda:1")]),
        ("cuda:0", 1.0, []),
        ("cpu", 0.0, []),
    ],
)
def test_a_worker_with_a_part_of_a_gpu_is_held_to_that_part(monkeypatch, device, gpus_per_worker, limits):
    told = []
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda fraction, device: told.append((fraction, device)),
    )
    share_device(device, gpus_per_worker)
    assert told == limits
