"""The answer at one target: source, share, what it costs, whether it pays; and how it changes with the assumptions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from synth.errors import UserError
from tune.at_target import MixtureAtTarget, combine_shares, curve_at_target, mixtures_at_target
from tune.config import RecommendConfig
from tune.costs import Generation, Training, generation_of, training_of
from tune.evidence import Evidence
from tune.optimum import Curve
from tune.results import Interval, Sensitivity
from tune.verdict import verdict_on

FACTOR = 2.0
"""Targets are varied by this factor either way, the generator by its square."""


@dataclass(frozen=True)
class Answer:
    """What is recommended at a target."""

    source: str
    share: Interval
    curves: dict[str, Curve]
    mixtures: tuple[MixtureAtTarget, ...]
    """Natural text and the source's mixtures."""
    nearest: MixtureAtTarget
    generation: Generation
    training: Training
    pays: Literal["yes", "no", "unclear"]
    pays_reason: str
    warnings: tuple[str, ...]

    @property
    def curve(self) -> Curve:
        """The curve of the source."""
        return self.curves[self.source]


def answer_at(config: RecommendConfig, evidence: Evidence) -> Answer:
    """Return the answer at the target of a configuration whose N and D are known."""
    n, d = config.num_params, config.train_tokens
    curves = {
        source: curve_at_target(evidence.of(source), evidence.confidence) for source in evidence.sources
    }
    source = min(curves, key=lambda name: curves[name].best_loss().value)
    curve, mixtures = curves[source], evidence.of(source)
    cells = [cell for cell in evidence.cells if cell.synthetic == source]
    share = combine_shares(curve.best_share(), cells, n, d, evidence.confidence)
    share, warnings = _within_supply(config, share)
    nearest = min(mixtures, key=lambda each: abs(each.share - share.value))
    plan = evidence.laws.file.recipe.get("plan")
    generation = (
        generation_of(config.root, plan, source, config.prices)
        if isinstance(plan, str)
        else Generation(unknown=("the laws are of a table of runs, so what generation took is not known",))
    )
    training = training_of(config.root, nearest.fitted.record.rows_used, config.prices)
    pays, reason = verdict_on(config, evidence.natural, nearest, generation, training)
    return Answer(source, share, curves, mixtures, nearest, generation, training, pays, reason, warnings)


def _within_supply(config: RecommendConfig, share: Interval) -> tuple[Interval, tuple[str, ...]]:
    """Return the share raised to where the natural tokens suffice, and what is to be said of it."""
    if config.natural_tokens_available is None:
        return share, ()
    supply = config.max_natural_passes * config.natural_tokens_available
    least = max(0.0, 1.0 - supply / config.train_tokens)
    if share.value >= least:
        return share, ()
    said = (
        f"the best share is {share.value:.0%}, but {config.natural_tokens_available:,} natural tokens passed over "
        f"{config.max_natural_passes:g} times are {supply:,.0f} of the target's {config.train_tokens:,}: the share is raised to {least:.0%}"
    )
    high = None if share.high is None else max(share.high, least)
    low = None if share.low is None else max(share.low, least)
    return Interval(value=least, low=low, high=high, standard_error=share.standard_error), (said,)


def sensitivity_of(config: RecommendConfig, evidence: Evidence, base: Answer) -> Iterator[Sensitivity]:
    """Yield the answer for targets twice and half as large, and for a generator four times dearer and cheaper."""
    n, d = config.num_params, config.train_tokens
    for symbol, field, value in (("N", "target_num_params", n), ("D", "target_train_tokens", d)):
        for factor in (1.0 / FACTOR, FACTOR):
            changed = config.model_copy(update={field: max(1, round(value * factor))})
            try:
                mixtures = mixtures_at_target(evidence.laws, changed.num_params, changed.train_tokens)
            except UserError:  # a one-axis law says nothing beside its axis
                continue
            there = replace(evidence, mixtures=mixtures, target=changed)
            if there.sources:
                yield _row(f"{symbol} were {factor:g} times as large", changed, there)
    if base.generation.flops_per_token:
        for factor in (1.0 / FACTOR**2, FACTOR**2):
            generation = _scaled(base.generation, factor)
            pays, _ = verdict_on(config, evidence.natural, base.nearest, generation, base.training)
            yield _of(f"generation cost {factor:g} times as much", base, evidence, pays)


def _scaled(generation: Generation, factor: float) -> Generation:
    seconds = generation.seconds_per_token
    return replace(
        generation,
        flops_per_token=(generation.flops_per_token or 0.0) * factor,
        seconds_per_token=None if seconds is None else seconds * factor,
    )


def _row(what: str, config: RecommendConfig, evidence: Evidence) -> Sensitivity:
    answer = answer_at(config, evidence)
    return _of(what, answer, evidence, answer.pays)


def _of(what: str, answer: Answer, evidence: Evidence, pays: Literal["yes", "no", "unclear"]) -> Sensitivity:
    loss = answer.curve.at(answer.share.value)
    return Sensitivity(
        what=what,
        synthetic=answer.source,
        best_share=answer.share,
        predicted_loss=loss,
        gain_nats=evidence.natural.loss.value - loss.value,
        pays=pays,
    )
