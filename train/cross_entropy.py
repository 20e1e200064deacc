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

_LEAST_PROBABILITY = torch.finfo(torch.float32).tiny


def summed_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy in nats, float32 scalar, of logits `hidden @ weight.T` against `targets`.

    hidden [M, H], weight [V, H], targets int64 [M]. Products run in the dtype of `hidden`; softmax, loss and the
    weight's gradient are accumulated in float32. Where a gradient is wanted too, no single position counts more than
    87 nats (the least float32 probability); the gradient itself is exact.
    """
    loss, _ = cross_entropy(hidden, weight, targets)
    return loss


def cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same sum, and besides the cross-entropy of each position in nats, float32 [M], without a gradient."""
    loss: torch.Tensor
    nats: torch.Tensor
    # A parameter asks for its gradient in there also where nobody will take it.
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    loss, nats = _SummedCrossEntropy.apply(hidden, weight, targets)
    return loss, nats


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = any(ctx.needs_input_grad)
        budget = BLOCK_LOGITS_GPU if hidden.is_cuda else BLOCK_LOGITS
        block = max(1, budget // weight.shape[0])
        minus_one = torch.full((1, 1), -1.0, device=hidden.device)
        nats = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if gradient else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if gradient else None
        for start in range(0, hidden.shape[0], block):
            states, wanted = hidden[start : start + block], targets[start : start + block, None]
            logits = states @ weight.T
            if grad_hidden is None or grad_weight is None:
                log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
                nats[start : start + block] = log_probabilities.gather(1, wanted)[:, 0].neg_()
                continue
            probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
            likelihood = probabilities.gather(1, wanted)[:, 0].clamp_min_(_LEAST_PROBABILITY)
            nats[start : start + block] = likelihood.log_().neg_()
            # d loss / d logits = softmax - one-hot
            difference = probabilities.scatter_add_(1, wanted, minus_one.expand(wanted.shape)).to(
                hidden.dtype
            )
            torch.mm(difference, weight, out=grad_hidden[start : start + block])
            if hidden.dtype == torch.float32:
                torch.addmm(grad_weight, difference.T, states, out=grad_weight)
            else:
                grad_weight += difference.T @ states
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(nats)
        return nats.sum(dtype=torch.float64).float(), nats

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = upstream[0]
        return grad_hidden * scale.to(grad_hidden.dtype), (grad_weight * scale).to(grad_hidden.dtype), None
