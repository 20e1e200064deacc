"""What decides a pre-training run: model, mixture, budget, optimizer; and the template a plan makes its runs from."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from synth.config import Config, Fraction, Name
from synth.identity import content_hash

Mixture = dict[Name, Fraction]
"""Share of the training tokens drawn from each source, by token; the shares sum to 1."""


class ModelConfig(Config):
    """Shape of a Llama-3-style decoder. The named sizes are in `train.sizes`."""

    num_layers: int = Field(ge=1)
    """Transformer blocks."""
    hidden_size: int = Field(ge=8)
    """Width of the residual stream."""
    num_heads: int = Field(ge=1)
    """Query heads; the hidden size is divisible by it."""
    num_kv_heads: int = Field(ge=1)
    """Key and value heads (grouped-query attention); divides num_heads."""
    intermediate_size: int = Field(ge=8)
    """Width of the gated feed-forward layer."""
    tie_embeddings: bool = True
    """Share the input embedding with the output projection."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary position embedding."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"num_heads = {self.num_heads} must divide hidden_size = {self.hidden_size} evenly"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads = {self.num_kv_heads} must divide num_heads = {self.num_heads}")
        return self


class OptimizerConfig(Config):
    """AdamW with decoupled weight decay on matrices, gradient clipping, and a schedule in tokens."""

    peak_learning_rate: float = Field(default=3e-3, gt=0)
    """Learning rate after warm-up, at `reference_num_params`."""
    reference_num_params: int | None = Field(default=None, ge=1)
    """With it, the rate of a run is scaled by (N / this) ** learning_rate_exponent, N non-embedding parameters."""
    learning_rate_exponent: float = -0.25
    """Exponent of that rule."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of gradients, [0, 1)."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the mean of their squares, [0, 1)."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the latter, in units of a gradient."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of matrices; norms and biases are not decayed."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """`wsd`: warm-up, constant, linear decay to zero; `cosine`: warm-up, cosine to a tenth of the peak."""
    warmup_fraction: Fraction = 0.05
    """Part of the run's tokens spent warming up, [0, 1]."""
    warmup_tokens: int | None = Field(default=None, ge=0)
    """Tokens spent warming up, in place of `warmup_fraction`: the same for every budget, as branching needs it."""
    decay_fraction: Fraction = 0.2
    """Part of the run's tokens spent decaying (wsd only), [0, 1]."""


HyperparameterRule = Literal["step_law", "deepseek"]
"""A published rule for learning rate and batch, see `train.hyperparameters`."""


class TemplateOptimizer(OptimizerConfig):
    """The optimizer of a plan: the numbers themselves, or where each run gets its peak learning rate from."""

    learning_rates: Name | None = None
    """Sweep whose best rate every size takes as its peak, `learning_rates/<name>`, in place of `peak_learning_rate`."""
    learning_rate_rule: HyperparameterRule | None = None
    """Published rule of (N, D) that gives the peak, in place of `peak_learning_rate`: `step_law` (Li et al. 2025) or
    `deepseek` (Bi et al. 2024); both were fitted to models far larger than a demo's."""

    @model_validator(mode="after")
    def _one_source_of_the_rate(self) -> TemplateOptimizer:
        named = [name for name in ("learning_rates", "learning_rate_rule") if getattr(self, name) is not None]
        own = ("peak_learning_rate", "reference_num_params")
        changed = [name for name in own if getattr(self, name) != OptimizerConfig.model_fields[name].default]
        both = [*named, *changed] if named else []
        if len(both) > 1:
            raise ValueError(
                f"{both[0]} and {both[1]} both set the peak learning rate: leave one of them out"
            )
        return self


OF_A_BRANCH = frozenset(
    {
        "train_tokens",
        "decay_fraction",
        "warmup_fraction",
        "max_epochs",
        "max_epochs_by_source",
        "evaluations",
        "branching",
    }
)
"""Fields of a run and of its optimizer that runs of one trunk may differ in."""


def check_branching(run: RunConfig | RunTemplate) -> None:
    """Raise ValueError when a run that branches has no trunk that other budgets could share."""
    if not run.branching:
        return
    if run.optimizer.schedule != "wsd":
        raise ValueError(
            f"branching = true needs optimizer.schedule = 'wsd', not {run.optimizer.schedule!r}, whose rate depends on the "
            "budget from the first step on: set one of the two"
        )
    if isinstance(run, RunTemplate):
        ruled = {
            "batch_rule": run.batch_rule,
            "optimizer.learning_rate_rule": run.optimizer.learning_rate_rule,
        }
        for field, rule in ruled.items():
            if rule is not None:
                raise ValueError(
                    f"branching = true with {field} = {rule!r}, which depends on the budget, and branches of one trunk share "
                    "all but that: give a number or a sweep instead"
                )
    if run.optimizer.warmup_tokens is None:
        raise ValueError(
            "branching = true needs optimizer.warmup_tokens, because all budgets share one warm-up: set it, for instance "
            "to a twentieth of the shortest budget"
        )
    if run.evaluations != 1:
        raise ValueError(
            f"branching = true with evaluations = {run.evaluations}: a branch is evaluated at its end alone, since what is "
            "before it belongs to all budgets; set evaluations = 1 and add budgets instead"
        )


class TrainingRules(Config):
    """What a run and the template it is made from both say, field by field."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of weights and activations in the forward and backward pass; the master copy is float32."""
    max_epochs: float | None = Field(default=1.0, gt=0)
    """Most passes over any source; 1 refuses to repeat, null allows any number."""
    max_epochs_by_source: dict[Name, PositiveFloat] = Field(default_factory=dict)
    """Most passes over single sources, in place of max_epochs for them."""
    evaluations: int = Field(default=1, ge=1)
    """Evaluations on every held-out domain, evenly spaced over the run, the last one at its end."""


class RunConfig(TrainingRules):
    """Everything that decides one run's weights and losses: its hash is the run's id.

    A run is a pure function of this and of the packed set it names; where it runs is a `TrainPlacement`.
    """

    packed: Name
    """Packed set, `packed/<packed>` under the study root."""
    packed_hash: str
    """Identity of that packed set, so that a run is never resumed on other tokens."""
    model: ModelConfig
    mixture: Mixture
    train_tokens: int = Field(ge=1)
    """Training budget D, tokens; rounded down to whole optimiser steps (`num_steps`)."""
    rows_per_step: int = Field(default=8, ge=1)
    """Rows of the packed sequence length in one optimiser step: the global batch."""
    sequence_length: int = Field(ge=8)
    """Row length of the packed set, tokens."""
    optimizer: OptimizerConfig = OptimizerConfig()
    branching: bool = False
    """Share the part before the decay with runs that differ only in budget (`train.trunk`): what one of them has
    trained, the next goes on from. Weights and losses are those of a run of its own, bit by bit."""
    seed: int = 0
    """Seed of the initial weights and of the data order; runs that differ only in share see the same order."""

    @model_validator(mode="after")
    def _sensible(self) -> RunConfig:
        check_branching(self)
        total = math.fsum(self.mixture.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"mixture shares sum to {total:.6g}; they must sum to 1")
        if self.train_tokens < self.tokens_per_step:
            raise ValueError(
                f"train_tokens = {self.train_tokens} is less than one step of {self.tokens_per_step} tokens "
                "(rows_per_step x sequence_length): raise train_tokens or lower rows_per_step"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimiser step."""
        return self.rows_per_step * self.sequence_length

    @property
    def num_steps(self) -> int:
        """Optimiser steps in the run."""
        return self.train_tokens // self.tokens_per_step

    @property
    def run_id(self) -> str:
        """Identity of the run, 16 hex digits; the name of its directory under `runs/`."""
        return content_hash({"kind": "run", "recipe": self.identity()})

    @property
    def trunk_id(self) -> str | None:
        """Identity of the trunk this run branches off, 16 hex digits; null without branching.

        It is the hash of all that decides the weights before the decay: everything but the budget and the decay.
        """
        if not self.branching:
            return None
        recipe = self.identity()
        optimizer = {name: value for name, value in recipe["optimizer"].items() if name not in OF_A_BRANCH}
        shared = {name: value for name, value in recipe.items() if name not in OF_A_BRANCH}
        return content_hash({"kind": "trunk", "recipe": shared | {"optimizer": optimizer}})


class RunTemplate(TrainingRules):
    """What all runs of a plan share: the one protocol that makes them comparable."""

    rows_per_step: int = Field(default=8, ge=1)
    """Rows in one optimiser step: the global batch."""
    batch_rule: HyperparameterRule | None = None
    """Published rule of (N, D) that gives the rows of a step, to the nearest power of two, in place of `rows_per_step`."""
    optimizer: TemplateOptimizer = TemplateOptimizer()
    branching: bool = False
    """Train budgets of the same model, mixture and seed as branches of one trunk, each with its own decay: the largest
    budget and the decays instead of the sum of all. Needs schedule `wsd`, `optimizer.warmup_tokens`, one evaluation."""

    @model_validator(mode="after")
    def _sensible(self) -> RunTemplate:
        check_branching(self)
        if (
            self.batch_rule is not None
            and self.rows_per_step != RunTemplate.model_fields["rows_per_step"].default
        ):
            raise ValueError(
                "batch_rule and rows_per_step both set the rows of a step: leave one of them out"
            )
        return self
