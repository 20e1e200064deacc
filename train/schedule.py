"""The learning rate of each step, as pure functions of tokens: nothing to checkpoint, nothing to restore.

A step takes the rate at the middle of its tokens, so that neither the first step (warm-up from zero) nor the last one
(decay to zero) is spent at a rate of zero.
"""

from __future__ import annotations

import math

from synth.errors import UserError
from train.config import OptimizerConfig, RunConfig

COSINE_FLOOR = 0.1
"""The cosine ends at this fraction of the peak."""


def peak_learning_rate(optimizer: OptimizerConfig, num_params_non_embedding: int) -> float:
    """Return the rate after warm-up: the configured one, scaled by (N / reference) ** exponent when that is asked for."""
    if optimizer.reference_num_params is None:
        return optimizer.peak_learning_rate
    scale = num_params_non_embedding / optimizer.reference_num_params
    return float(optimizer.peak_learning_rate * scale**optimizer.learning_rate_exponent)


def check_schedule(optimizer: OptimizerConfig) -> None:
    """Raise UserError when warm-up and decay together are longer than the run."""
    total = optimizer.warmup_fraction + optimizer.decay_fraction
    if optimizer.schedule == "wsd" and total > 1 + 1e-9:
        raise UserError(
            f"optimizer.warmup_fraction = {optimizer.warmup_fraction} and optimizer.decay_fraction = "
            f"{optimizer.decay_fraction} add up to more than the whole run: lower one so that they sum to at most 1."
        )


def rate_factor(optimizer: OptimizerConfig, tokens: float, total_tokens: float) -> float:
    """Return the fraction of the peak rate, [0, 1], at a point of a run given in tokens.

    `wsd` (warm-up, stable, decay; Hu et al. 2024, MiniCPM): linear from 0, constant, linear to 0. `cosine`: linear
    from 0, then half a cosine wave down to a tenth (Hoffmann et al. 2022).
    """
    warmup_tokens = optimizer.warmup_fraction * total_tokens
    if tokens < warmup_tokens:
        return tokens / warmup_tokens
    if optimizer.schedule == "wsd":
        decay_tokens = optimizer.decay_fraction * total_tokens
        left = total_tokens - tokens
        return max(0.0, left / decay_tokens) if left < decay_tokens else 1.0
    progress = min(1.0, (tokens - warmup_tokens) / (total_tokens - warmup_tokens))
    return COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate(run: RunConfig, peak: float, step: int) -> float:
    """Return the rate of one step of a run, counted from 0."""
    middle = (step + 0.5) * run.tokens_per_step
    return peak * rate_factor(run.optimizer, middle, run.num_steps * run.tokens_per_step)
