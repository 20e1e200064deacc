"""Whether a mixture is worth it: tokens to the loss of natural text, and the verdict once generation is charged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from tune.at_target import MixtureAtTarget
from tune.config import RecommendConfig
from tune.costs import Costs, Generation, Training, costs_of
from tune.evidence import Evidence
from tune.laws.fitted import interval_from
from tune.results import EqualLoss


def equal_losses(config: RecommendConfig, evidence: Evidence) -> Iterator[EqualLoss]:
    """Yield, for every mixture that gets there, the tokens to the loss natural text has at the target."""
    natural = evidence.natural
    for mixture in evidence.mixtures[1:]:
        if not mixture.knows_tokens:
            continue
        tokens, samples = mixture.tokens_to(natural.loss.value, natural.losses, config.num_params)
        if np.isfinite(tokens):
            yield EqualLoss(
                group=mixture.group,
                tokens=interval_from(tokens, samples, evidence.confidence),
                speed_up=interval_from(
                    config.train_tokens / tokens,
                    config.train_tokens / samples,
                    evidence.confidence,
                ),
            )


def verdict_on(
    config: RecommendConfig,
    natural: MixtureAtTarget,
    mixture: MixtureAtTarget,
    generation: Generation,
    training: Training,
) -> tuple[Literal["yes", "no", "unclear"], str]:
    """Say whether the mixture reaches its loss for less than natural text alone does, its generation charged to it.

    It counts in money where all prices are known, else in FLOP. `yes` and `no` need the whole interval of the laws.
    """
    if mixture.share == 0.0:
        return "no", "the mixture nearest to the best share is natural text alone"
    if not natural.knows_tokens:
        return "unclear", "the law of natural text does not say how the loss falls with tokens"
    n, d = config.num_params, config.train_tokens
    cost = costs_of(n, d, mixture.share * d, config.prices, generation, training)
    natural_cost = costs_of(
        n, 1.0, 0.0, config.prices, generation, training
    )  # of one token: costs are linear in them
    with_mixture, per_token, unit = _in_one_unit(cost, natural_cost)
    if with_mixture is None or per_token is None:
        return "unclear", f"what generation costs is not known: {'; '.join(generation.unknown)}"
    tokens, samples = natural.tokens_to(mixture.loss.value, mixture.losses, n)
    value, ratios = per_token * tokens / with_mixture, per_token * samples / with_mixture
    says = (
        f"{mixture.group} reaches its loss for {with_mixture:.3g} {unit}, generation included; natural text alone would need "
        f"{_times_as_much(value)}"
    )
    if not len(ratios):
        return "unclear", f"{says}, but the laws have no intervals"
    low, high = np.quantile(
        ratios, ((1 - _level(mixture)) / 2, (1 + _level(mixture)) / 2), method="inverted_cdf"
    )
    interval = f"{_level(mixture):.0%} interval {_times_as_much(float(low))} to {_times_as_much(float(high))}"
    verdict: Literal["yes", "no", "unclear"] = "yes" if low > 1.0 else "no" if high < 1.0 else "unclear"
    return verdict, f"{says} ({interval})"


def _in_one_unit(mixture: Costs, natural: Costs) -> tuple[float | None, float | None, str]:
    if mixture.money is not None and natural.money:
        return mixture.money, natural.money, "in money"
    return mixture.flops, natural.flops, "FLOP"


def _times_as_much(ratio: float) -> str:
    return f"{ratio:.3g} times as much" if np.isfinite(ratio) else "more than any budget"


def _level(mixture: MixtureAtTarget) -> float:
    return mixture.fitted.record.confidence
