"""The learning rate of each step, as pure functions of tokens: nothing to checkpoint, nothing to restore.

A step takes the rate at the middle of its tokens, so that neither the first step (warm-up from zero) nor the last one
(decay to zero) is spent at a rate of zero.
"""

from __future__ import annotations

import math

from synth.errors import UserError
from train.run import OptimizerConfig, RunConfig

COSINE_FLOOR = 0.1
"""The cosine ends at this fraction of the peak."""


def peak_learning_rate(optimizer: OptimizerConfig, num_params_non_embedding: int) -> float:
    """Return the rate after warm-up: the configured one, scaled by (N / reference) ** exponent when that is asked for."""
    if optimizer.reference_num_params is None:
        return optimizer.peak_learning_rate
    scale = num_params_non_embedding / optimizer.reference_num_params
    return float(optimizer.peak_learning_rate * scale**optimizer.learning_rate_exponent)


def check_schedule(run: RunConfig) -> None:
    """Raise UserError when warm-up and decay together are longer than the run."""
    optimizer, total_tokens = run.optimizer, run.num_steps * run.tokens_per_step
    decay = optimizer.decay_fraction if optimizer.schedule == "wsd" else 0.0
    if optimizer.warmup_tokens is not None:
        if optimizer.warmup_tokens + decay * total_tokens > total_tokens * (1 + 1e-9):
            raise UserError(
                f"optimizer.warmup_tokens = {optimizer.warmup_tokens:,} and optimizer.decay_fraction = {decay} do not fit "
                f"into a run of {total_tokens:,} tokens: lower one, or leave the shortest budget out."
            )
    elif optimizer.warmup_fraction + decay > 1 + 1e-9:
        raise UserError(
            f"optimizer.warmup_fraction = {optimizer.warmup_fraction} and optimizer.decay_fraction = "
            f"{optimizer.decay_fraction} add up to more than the whole run: lower one so that they sum to at most 1."
        )


def rate_factor(optimizer: OptimizerConfig, tokens: float, total_tokens: float) -> float:
    """Return the fraction of the peak rate, [0, 1], at a point of a run given in tokens.

    `wsd` (warm-up, stable, decay; Hu et al. 2024, MiniCPM): linear from 0, constant, linear to 0. `cosine`: linear
    from 0, then half a cosine wave down to a tenth (Hoffmann et al. 2022).
    """
    warmup_tokens = _warmup_tokens(optimizer, total_tokens)
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


def trunk_steps(run: RunConfig) -> int:
    """Return how many steps at the start of a `wsd` run have a rate that does not depend on its budget.

    Rounded down by up to one step, so that rounding errors of the decay's start never count as shared.
    """
    return max(0, math.floor(run.num_steps * (1 - run.optimizer.decay_fraction) - 0.5))


def _warmup_tokens(optimizer: OptimizerConfig, total_tokens: float) -> float:
    if optimizer.warmup_tokens is not None:
        return optimizer.warmup_tokens
    return optimizer.warmup_fraction * total_tokens
