"""Cross-entropy of a projection onto the vocabulary, without ever holding all logits.

For a small model the projection and its loss are most of the step, and most of that is memory traffic: logits of a
whole batch are many times the model. Here they live for one block of positions, in the cache, and the gradient is
taken while they are there; the backward pass only scales it.
"""

from __future__ import annotations

from typing import Any

import torch

BLOCK_LOGITS = 2**19
"""Logits held at once on a CPU: 2 MiB in float32, a share of the second and third cache."""

BLOCK_LOGITS_GPU = 2**27
"""The same on a GPU: blocks large enough to fill it."""


def summed_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy in nats, float32 scalar, of logits `hidden @ weight.T` against `targets`.

    hidden [M, H], weight [V, H], targets int64 [M]. Products run in the dtype of `hidden`; softmax, loss and the
    weight's gradient are accumulated in float32.
    """
    loss: torch.Tensor = _SummedCrossEntropy.apply(hidden, weight, targets)
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        gradient = any(ctx.needs_input_grad)
        budget = BLOCK_LOGITS_GPU if hidden.is_cuda else BLOCK_LOGITS
        block = max(1, budget // weight.shape[0])
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if gradient else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if gradient else None
        for start in range(0, hidden.shape[0], block):
            states, wanted = hidden[start : start + block], targets[start : start + block, None]
            log_probabilities = torch.log_softmax(states @ weight.T, dim=-1, dtype=torch.float32)
            total -= log_probabilities.gather(1, wanted).sum(dtype=torch.float64)
            if grad_hidden is not None and grad_weight is not None:
                # d loss / d logits = softmax - one-hot; nothing else of the block is needed afterwards.
                difference = log_probabilities.exp_()
                difference.scatter_add_(1, wanted, difference.new_full((1, 1), -1.0).expand(wanted.shape))
                difference = difference.to(hidden.dtype)
                torch.mm(difference, weight, out=grad_hidden[start : start + block])
                grad_weight += difference.T @ states
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = upstream[0]
        return grad_hidden * scale.to(grad_hidden.dtype), (grad_weight * scale).to(grad_hidden.dtype), None
