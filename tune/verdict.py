"""Whether a share is worth it: tokens to the loss of natural text, and the verdict once generation is charged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synth.percentage import percentage
from tune.config import RecommendConfig
from tune.costs import Costs, Generation, Training, costs_of
from tune.evidence import Evidence
from tune.laws.fitted import interval_from
from tune.results import EqualLoss, Interval
from tune.share_at_target import ShareAtTarget, percent

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """Whether a share reaches its loss for less than natural text alone does, its generation charged to it."""

    pays: Literal["yes", "no", "unclear"]
    reason: str
    natural_cost_ratio: Interval | None = None
    """What natural text alone costs to lose as little, over what the share costs; None where either is not known."""


def equal_losses(config: RecommendConfig, evidence: Evidence) -> Iterator[EqualLoss]:
    """Yield, for every trained mixture that gets there, the tokens to the loss natural text has at the target."""
    natural = evidence.natural
    for mixture in evidence.mixtures[1:]:
        if mixture.knows_tokens:
            tokens, samples = mixture.tokens_to(natural.loss.value, natural.losses, config.num_params)
            if np.isfinite(tokens):
                yield _equal_loss(mixture.group, config.train_tokens, tokens, samples, evidence.confidence)


def equal_loss_at(there: ShareAtTarget, group: str, confidence: float) -> EqualLoss | None:
    """Return the tokens after which any share loses what natural text has at the target.

    None for natural text itself, and where it never does.
    """
    if there.share == 0.0 or not there.knows_tokens:
        return None
    tokens, samples = there.tokens_to_natural_loss()
    return (
        _equal_loss(group, there.train_tokens, tokens, samples, confidence) if np.isfinite(tokens) else None
    )


def _equal_loss(
    group: str, train_tokens: float, tokens: float, samples: Floats, confidence: float
) -> EqualLoss:
    return EqualLoss(
        group=group,
        tokens=interval_from(tokens, samples, confidence),
        speed_up=interval_from(train_tokens / tokens, train_tokens / samples, confidence),
    )


def verdict_on(
    config: RecommendConfig,
    there: ShareAtTarget,
    generation: Generation,
    training: Training,
    confidence: float,
) -> Verdict:
    """Say whether a share pays, in money where all prices are known, else in FLOP.

    `yes` and `no` need the whole interval, of the gain and of the law of natural text together.
    """
    if there.share == 0.0:
        return Verdict("no", "natural text alone is the best there is: nothing is generated")
    if not there.natural.knows_tokens:
        return Verdict("unclear", "the law of natural text does not say how the loss falls with tokens")
    n, d = config.num_params, config.train_tokens
    cost = costs_of(n, d, there.share * d, config.prices, generation, training)
    natural_cost = costs_of(
        n, 1.0, 0.0, config.prices, generation, training
    )  # of one token: costs are linear in them
    with_share, per_token, unit = _in_one_unit(cost, natural_cost)
    if with_share is None or per_token is None:
        return Verdict("unclear", f"what generation costs is not known: {'; '.join(generation.unknown)}")
    tokens, samples = there.natural_tokens
    value, ratios = per_token * tokens / with_share, per_token * samples / with_share
    says = (
        f"a share of {percent(there.share)} reaches its loss for {with_share:.3g} {unit}, generation included; natural text alone "
        f"would need {_times_as_much(value)}"
    )
    if not len(ratios):
        return Verdict("unclear", f"{says}, but the laws have no intervals")
    ratio = interval_from(value, ratios, confidence)
    low, high = (float("inf") if end is None else end for end in (ratio.low, ratio.high))
    interval = f"{percentage(confidence)} interval {_times_as_much(low)} to {_times_as_much(high)}"
    pays: Literal["yes", "no", "unclear"] = "yes" if low > 1.0 else "no" if high < 1.0 else "unclear"
    return Verdict(pays, f"{says} ({interval})", ratio if np.isfinite(value) else None)


def _in_one_unit(share: Costs, natural: Costs) -> tuple[float | None, float | None, str]:
    if share.money is not None and natural.money:
        return share.money, natural.money, "in money"
    return share.flops, natural.flops, "FLOP"


def _times_as_much(ratio: float) -> str:
    return f"{ratio:.3g} times as much" if np.isfinite(ratio) else "more than any budget"
