"""What a sweep of learning rates leaves behind, and what a plan reads of it. No Ray, no torch.

learning_rates/<name>/recipe.json    what was asked for, and of which packed set
learning_rates/<name>/rates.json     the best rate of every size, with all that was tried
learning_rates/<name>/manifest.json  written last
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from upath import UPath

from synth.errors import UserError
from synth.identity import read_manifest
from synth.storage import read_json, study_path
from train.record import Record
from train.run import ModelConfig, OptimizerConfig, RunTemplate
from train.sizes import SIZES

MADE_BY = "sweep_learning_rates"
RATES_FILE = "rates.json"

FAR_BUDGET = 4.0
"""Budgets this many times the sweep's are warned about."""


class RateTrial(Record):
    """One run of a sweep."""

    learning_rate: float
    """Peak learning rate."""
    seed: int
    run_id: str
    status: Literal["complete", "diverged", "failed"]
    loss_nats_per_token: float | None
    """Held-out loss at the end; null unless complete."""
    reason: str | None
    """Why it is not complete."""


class BestRate(Record):
    """The best peak learning rate of one size at the budget of the sweep."""

    model: str
    """Size by name."""
    num_params_non_embedding: int
    learning_rate: float
    """Minimum of a parabola in the logarithm of the rate through the losses around the lowest one."""
    low: float | None
    """Lower end of its interval; null: none could be computed (`method` says why), or there is no limit on that side."""
    high: float | None
    """Upper end, likewise."""
    confidence: float
    """Level of the interval, (0, 1)."""
    loss_nats_per_token: float
    """Loss of the parabola there."""
    close_low: float
    """Lowest end of the unbroken stretch of rates tried around the best whose losses are within half a per cent of its."""
    close_high: float
    """Highest end of it."""
    edge: Literal["lowest", "highest"] | None
    """The end of the rates tried that the lowest loss lies at: the best rate may lie beyond it. Null: it is enclosed."""
    method: str
    """How rate and interval were found, in words."""
    trials: tuple[RateTrial, ...]


class RateLaw(Record):
    """Best rate = coefficient N ** exponent, through the sizes whose best rate is enclosed."""

    coefficient: float
    exponent: float
    exponent_low: float | None
    """Lower end of its interval; null with two sizes, which a line fits exactly."""
    exponent_high: float | None
    sizes: tuple[str, ...]
    """Sizes it goes through."""


class SweptRates(Record):
    """Contents of `rates.json`."""

    name: str
    hash: str
    """Identity of the sweep."""
    train_tokens: int
    """Budget of every run, tokens."""
    template: RunTemplate
    """What the runs had in common besides."""
    sizes: tuple[BestRate, ...]
    law: RateLaw | None
    """Null with fewer than two sizes with an enclosed optimum."""

    def found(self, model: ModelConfig) -> BestRate | None:
        """Return the best rate of a size, None when it was not in the sweep."""
        return next((each for each in self.sizes if SIZES[each.model] == model), None)

    def rate_of(self, model: ModelConfig, num_params_non_embedding: int) -> float:
        """Return the rate of a size: its own, else the law's. Raises UserError when there is neither."""
        if (own := self.found(model)) is not None:
            return own.learning_rate
        if self.law is None:
            raise UserError(
                f"learning_rates/{self.name} has rates for {', '.join(each.model for each in self.sizes)}, not for the size of "
                f"{num_params_non_embedding:,} parameters, and fewer than two enclosed optima to draw a law through: sweep that "
                "size too."
            )
        return float(f"{self.law.coefficient * num_params_non_embedding**self.law.exponent:.4g}")


def rates_directory(root: str, name: str) -> UPath:
    """Return `learning_rates/<name>` under the study root."""
    return study_path(root, "learning_rates", name)


def read_rates(root: str, name: str) -> SweptRates:
    """Return the rates a finished sweep has found. Raises IncompleteArtefact when there is none of this name."""
    directory = rates_directory(root, name)
    read_manifest(directory, MADE_BY)
    return SweptRates.model_validate(read_json(directory / RATES_FILE))


def rate_parents(root: str, template: RunTemplate) -> dict[str, str]:
    """Return what a plan with this template is computed from besides its packed set: the sweep it names, by hash."""
    name = template.optimizer.learning_rates
    return {} if name is None else {"learning_rates": read_rates(root, name).hash}


def rate_facts(root: str, template: RunTemplate, models: Iterable[str]) -> dict[str, object]:
    """Return, for a plan, the swept rate of each size."""
    name = template.optimizer.learning_rates
    if name is None:
        return {}
    rates = read_rates(root, name)
    facts: dict[str, object] = {}
    for model in dict.fromkeys(models):
        own = rates.found(SIZES[model])
        facts[f"learning rate of {model}"] = (
            f"{own.learning_rate:.3g} {_interval(own.low, own.high)}, the best of learning_rates/{name}"
            if own
            else f"by the law of learning_rates/{name}"
        )
    return facts


def rate_warnings(
    root: str, template: RunTemplate, models: Iterable[str], longest_tokens: int
) -> Iterator[str]:
    """Say where a plan uses swept rates for what they were not swept for."""
    name = template.optimizer.learning_rates
    if name is None:
        return
    rates = read_rates(root, name)
    for model in dict.fromkeys(models):
        own = rates.found(SIZES[model])
        if own is None:
            yield f"{model} is not in learning_rates/{name}: its rate is the law's, through {', '.join(rates.law.sizes) if rates.law else 'no size'}"
        elif own.edge is not None:
            yield f"the best rate of {model} in learning_rates/{name} is the {own.edge} of those tried: it may lie beyond"
    if longest_tokens > FAR_BUDGET * rates.train_tokens:
        yield (
            f"learning_rates/{name} was swept at {rates.train_tokens:,} tokens and the longest run has {longest_tokens:,}: best "
            "rates fall with the budget (Bjorck et al. 2024, arXiv 2409.19913), so sweep nearer to it"
        )
    for field, (there, here) in _differences(rates.template, template).items():
        yield f"learning_rates/{name} was swept with run.{field} = {there!r}, and this plan has {here!r}"


def _differences(swept: RunTemplate, template: RunTemplate) -> dict[str, tuple[Any, Any]]:
    """Return the fields that move the best rate and differ: the batch, and the optimizer but for its rate."""
    of_the_rate = {"peak_learning_rate", "reference_num_params", "learning_rate_exponent"}
    fields = {f"optimizer.{name}" for name in OptimizerConfig.model_fields if name not in of_the_rate}
    found = {}
    for field in sorted(fields | {"rows_per_step", "batch_rule"}):
        owner, _, name = field.rpartition(".")
        there, here = (getattr(each.optimizer if owner else each, name) for each in (swept, template))
        if there != here:
            found[field] = (there, here)
    return found


def _interval(low: float | None, high: float | None) -> str:
    return f"[{'?' if low is None else f'{low:.3g}'}, {'?' if high is None else f'{high:.3g}'}]"
