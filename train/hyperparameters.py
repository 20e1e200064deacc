"""Learning rate and batch of a run as stated functions of its size and budget, each with its source. No torch.

A template says where the two numbers come from: written down, scaled by a power of N, a published rule, or a sweep of
one's own (`train.rate_sweep`). Of a rule or a sweep a run holds the number alone, so two templates that come to the same
number are the same run; the power of N it holds as it was written (`train.schedule.peak_learning_rate`).
"""

from __future__ import annotations

import math

from train.flops import train_flops_6nd
from train.rates import read_rates
from train.run import HyperparameterRule, ModelConfig, OptimizerConfig, RunTemplate
from train.schedule import peak_learning_rate


def ruled_learning_rate(rule: HyperparameterRule, num_params: int, train_tokens: int) -> float:
    """Return the peak learning rate a published rule gives for N non-embedding parameters and D tokens.

    `step_law`: 1.79 N^-0.713 D^0.307 (Li et al. 2025, arXiv 2503.04715). `deepseek`: 0.3118 C^-0.125 (Bi et al. 2024,
    arXiv 2401.02954), with C = 6 N D; the paper counts the FLOP of attention too, which changes the rate by an eighth of
    attention's part in them.
    """
    if rule == "step_law":
        return float(1.79 * num_params**-0.713 * train_tokens**0.307)
    return float(0.3118 * train_flops_6nd(num_params, train_tokens) ** -0.125)


def ruled_batch_tokens(rule: HyperparameterRule, num_params: int, train_tokens: int) -> float:
    """Return the tokens of an optimiser step by the same rules: `step_law` 0.58 D^0.571, `deepseek` 0.292 C^0.3271."""
    if rule == "step_law":
        return float(0.58 * train_tokens**0.571)
    return float(0.2920 * train_flops_6nd(num_params, train_tokens) ** 0.3271)


def rows_per_step_of(template: RunTemplate, num_params: int, train_tokens: int, sequence_length: int) -> int:
    """Return the rows of an optimiser step of a run: those of the template, or the power of two nearest to its rule.

    Powers of two, because workers and microbatches must divide them.
    """
    if template.batch_rule is None:
        return template.rows_per_step
    rows = ruled_batch_tokens(template.batch_rule, num_params, train_tokens) / sequence_length
    return int(2 ** max(0, round(math.log2(rows))))


def optimizer_of(
    template: RunTemplate, model: ModelConfig, num_params: int, train_tokens: int, root: str
) -> OptimizerConfig:
    """Return the optimizer of a run, with the number its template stands for.

    Raises UserError when the sweep it names has no rate for this size, IncompleteArtefact when it is not finished.
    """
    asked = template.optimizer
    numbers = {name: getattr(asked, name) for name in OptimizerConfig.model_fields}
    if asked.learning_rates is not None:
        numbers["peak_learning_rate"] = read_rates(root, asked.learning_rates).rate_of(model, num_params)
    elif asked.learning_rate_rule is not None:
        rate = ruled_learning_rate(asked.learning_rate_rule, num_params, train_tokens)
        numbers["peak_learning_rate"] = _rounded(rate)
    return OptimizerConfig(**numbers)


def middle_rate(template: RunTemplate, num_params: int, train_tokens: int) -> float:
    """Return the peak rate a sweep of this template starts around."""
    rule = template.optimizer.learning_rate_rule
    if rule is not None:
        return ruled_learning_rate(rule, num_params, train_tokens)
    return peak_learning_rate(template.optimizer, num_params)


def _rounded(rate: float) -> float:
    """Four digits, so that the last bit of a power function on another machine does not make another run."""
    return float(f"{rate:.4g}")
