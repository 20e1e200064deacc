"""The answer at one target: source, share, what it costs, whether it pays; and how it changes with the assumptions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from synth.errors import UserError
from tune.at_target import MixtureAtTarget, combine_shares, curve_at_target, mixtures_at_target
from tune.config import RecommendConfig
from tune.costs import Generation, Training, generation_of, training_of
from tune.evidence import Evidence
from tune.optimum import Curve
from tune.results import CellOptimum, Interval, Sensitivity
from tune.share_at_target import ShareAtTarget, percent, share_at_target
from tune.verdict import Verdict, verdict_on

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
    there: ShareAtTarget
    """The recommended share."""
    generation: Generation
    training: Training
    verdict: Verdict
    warnings: tuple[str, ...]
    cells: tuple[CellOptimum, ...] = ()
    """Searched cells of the source."""
    least_share: float | None = None
    """Lowest share with which the natural tokens suffice; None where they do without any synthetic ones."""

    @property
    def curve(self) -> Curve:
        """The curve of the source."""
        return self.curves[self.source]

    @property
    def nearest(self) -> MixtureAtTarget:
        """The trained mixture whose share is nearest."""
        return min(self.mixtures, key=lambda each: abs(each.share - self.share.value))

    @property
    def equally_good(self) -> tuple[float, float]:
        """The lowest and highest share that may lose as little as the recommended one, of those with which the text suffices."""
        low, high = self.curve.not_worse_than(self.share.value)
        least = self.least_share or 0.0
        return max(low, least), max(high, least)

    @property
    def gain_is_shown(self) -> bool:
        """Whether the recommended share loses less than natural text alone, at the confidence of the intervals."""
        return (self.there.gain.low or 0.0) > 0.0

    def width_when(self, variance_left: float) -> float:
        """Return the width of the best share's interval, were the variance it has by the laws this part of what it is."""
        laws = self.curve.least_best_share()
        narrowed = Interval(
            value=laws.value,
            low=laws.value - (laws.value - (laws.low or 0.0)) * variance_left**0.5,
            high=laws.value + ((laws.high or 0.0) - laws.value) * variance_left**0.5,
            standard_error=(laws.standard_error or 0.0) * variance_left**0.5,
        )
        there = self.there
        best = combine_shares(
            narrowed, self.cells, there.num_params, there.train_tokens, self.curve.confidence
        )
        least = self.least_share or 0.0
        return max(best.high or 0.0, least) - max(best.low or 0.0, least)

    def headline(self) -> str:
        """Return the answer in one sentence."""
        gain, said = self.there.gain, f"{percent(self.share.value)} of {self.source}"
        less = f"{gain.value:.3g} nats per token less than natural text alone ({gain.low or 0.0:.3g} to {gain.high or 0.0:.3g})"
        if self.share.value == self.least_share:
            return f"Mix in {said}, the least with which the natural text suffices: it is predicted to lose {less}."
        if self.gain_is_shown:
            return f"Mix in {said}: it is predicted to lose {less}."
        if self.least_share is not None:
            return (
                f"Mix in {said}: the natural text suffices from {percent(self.least_share)} on, and the best guess is predicted to lose "
                f"{less}."
            )
        high = percent(self.share.value if self.share.high is None else self.share.high)
        if self.share.value == 0.0 and high == percent(0.0):
            return f"Use natural text alone: every share of {self.source} is predicted to lose more."
        best = (
            "none is predicted to lose less"
            if self.share.value == 0.0
            else f"the best guess, {percent(self.share.value)}, is predicted to lose {less}"
        )
        return (
            f"Natural text alone is not shown to be worse: {percent(0.0)} to {high} of {self.source} are equally good as far as these "
            f"runs can tell; {best}."
        )


def answer_at(config: RecommendConfig, evidence: Evidence) -> Answer:
    """Return the answer at the target of a configuration whose N and D are known."""
    n, d = config.num_params, config.train_tokens
    curves = {
        source: curve_at_target(evidence.of(source), evidence.confidence) for source in evidence.sources
    }
    source = min(curves, key=lambda name: curves[name].best_loss().value)
    curve, mixtures = curves[source], evidence.of(source)
    cells = tuple(cell for cell in evidence.cells if cell.synthetic == source)
    share = combine_shares(curve.least_best_share(), cells, n, d, evidence.confidence)
    share, least, warnings = _within_supply(config, share)
    there = share_at_target(share.value, mixtures, curve, n, d)
    plan = evidence.laws.file.recipe.get("plan")
    generation = (
        generation_of(config.root, plan, source, config.prices)
        if isinstance(plan, str)
        else Generation(unknown=("the laws are of a table of runs, so what generation took is not known",))
    )
    rows = (*there.below.fitted.record.rows_used, *there.above.fitted.record.rows_used)
    training = training_of(config.root, rows, config.prices)
    verdict = verdict_on(config, there, generation, training, evidence.confidence)
    return Answer(
        source, share, curves, mixtures, there, generation, training, verdict, warnings, cells, least
    )


def _within_supply(
    config: RecommendConfig, share: Interval
) -> tuple[Interval, float | None, tuple[str, ...]]:
    """Return the share, raised to where the natural tokens suffice; the least such share above 0; what is to be said."""
    if config.natural_tokens_available is None:
        return share, None, ()
    supply = config.max_natural_passes * config.natural_tokens_available
    least = 1.0 - supply / config.train_tokens
    if least <= 0.0:
        return share, None, ()
    raised = Interval(
        value=max(share.value, least),
        low=None if share.low is None else max(share.low, least),
        high=None if share.high is None else max(share.high, least),
        standard_error=share.standard_error,
    )
    if share.value >= least:
        return raised, least, ()
    said = (
        f"the best share is {percent(share.value)}, but {config.natural_tokens_available:,} natural tokens passed over "
        f"{config.max_natural_passes:g} times are {supply:,.0f} of the target's {config.train_tokens:,}: the share is raised to {percent(least)}"
    )
    return raised, least, (said,)


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
                yield _of(f"{symbol} were {factor:g} times as large", answer_at(changed, there))
    if base.generation.flops_per_token:
        for factor in (1.0 / FACTOR**2, FACTOR**2):
            generation = _scaled(base.generation, factor)
            verdict = verdict_on(config, base.there, generation, base.training, evidence.confidence)
            yield _of(f"generation cost {factor:g} times as much", replace(base, verdict=verdict))


def _scaled(generation: Generation, factor: float) -> Generation:
    seconds = generation.seconds_per_token
    return replace(
        generation,
        flops_per_token=(generation.flops_per_token or 0.0) * factor,
        seconds_per_token=None if seconds is None else seconds * factor,
    )


def _of(what: str, answer: Answer) -> Sensitivity:
    return Sensitivity(
        what=what,
        synthetic=answer.source,
        best_share=answer.share,
        predicted_loss=answer.curve.at(answer.share.value),
        gain_nats=answer.there.gain.value,
        gain=answer.there.gain,
        pays=answer.verdict.pays,
        natural_cost_ratio=answer.verdict.natural_cost_ratio,
    )
