"""What a recommendation is made from: the laws at the target and the searches, and what there is to doubt in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from synth.errors import UserError
from synth.identity import read_manifest
from synth.percentage import percentage
from synth.storage import read_json, study_path
from train.record import records_of
from tune.at_target import MixtureAtTarget, mixtures_at_target, with_target
from tune.config import RecommendConfig
from tune.costs import Generation, Training
from tune.laws import SavedLaws, load_fit
from tune.laws.fitted import FIXED_TOLERANCE
from tune.optimum import Curve
from tune.results import CellOptimum, Interval, NextCell, Recommendation
from tune.search import BEST_FILE
from tune.share_at_target import ShareAtTarget, percent, percent_between

FAR = 10.0
"""A target more than this many times beyond the data is called far outside it."""
SMALL_PARAMS = 100_000_000
"""The paper's smallest model; what holds below it need not hold above."""
FLAT = 0.5
"""Shares this far apart that are equally good are called a flat optimum."""
BETWEEN = 0.05
"""A share further than this from every trained one is the curve's reading, not a run's."""
DISAGREEMENT = 0.15
"""Best shares of laws and searches further apart than this, outside each other's interval, are called at odds."""


@dataclass(frozen=True)
class Evidence:
    """Everything a recommendation is made from."""

    laws: SavedLaws
    mixtures: tuple[MixtureAtTarget, ...]
    cells: tuple[CellOptimum, ...]
    parents: dict[str, str]
    """Role -> hash."""
    target: RecommendConfig
    """The configuration with the target's N and D worked out."""

    @property
    def natural(self) -> MixtureAtTarget:
        """Natural text alone."""
        return self.mixtures[0]

    @property
    def sources(self) -> tuple[str, ...]:
        """Synthetic sources with a law at the target."""
        return tuple(dict.fromkeys(each.synthetic for each in self.mixtures if each.synthetic))

    def of(self, source: str) -> tuple[MixtureAtTarget, ...]:
        """Return natural text and the mixtures of one source, by share."""
        return (self.natural, *(each for each in self.mixtures if each.synthetic == source))

    @property
    def confidence(self) -> float:
        """Level of the laws' intervals."""
        return self.natural.fitted.record.confidence


def read_evidence(config: RecommendConfig) -> Evidence:
    """Read laws and searches. Raises as `plan_recommend` does."""
    laws = load_fit(config.root, config.laws)
    config = with_target(config, laws)
    mixtures = mixtures_at_target(laws, config.num_params, config.train_tokens)
    parents = {"laws": laws.file.hash}
    cells: list[CellOptimum] = []
    for name in config.searches:
        directory = study_path(config.root, "searches", name)
        manifest = read_manifest(directory, "search_mixture")
        parents[f"search.{name}"] = manifest["hash"]
        cells += [
            CellOptimum.model_validate(read_json(directory / cell / BEST_FILE)) for cell in manifest["cells"]
        ]
    evidence = Evidence(laws, mixtures, tuple(cells), parents, config)
    if not evidence.sources:
        raise UserError(
            f"laws/{config.laws} has no mixture with synthetic tokens that answers at the target: train shares above 0 with "
            "pretrain_models and fit again."
        )
    return evidence


# --- what is said about it -------------------------------------------------------------------------------------


def summary(recommendation: Recommendation) -> list[str]:
    """Return the recommendation in a few lines for a person."""
    r = recommendation
    lines = [
        f"target N = {r.target_num_params:,} parameters, D = {r.target_train_tokens:,} tokens",
        r.headline,
        f"best share of {r.synthetic}: {percent_between(r.best_share)}; nearest mixture trained: {r.best_group}",
        f"predicted loss {_shown(r.predicted_loss)} nats per token, natural text alone {_shown(r.natural_only_loss)}"
        + ("" if r.gain is None else f"; gain {_shown(r.gain)}"),
        *(
            f"{each.group} reaches the natural loss with {_shown(each.tokens)} tokens: speed-up {_shown(each.speed_up)}"
            for each in (*([r.equal_loss_at_best_share] if r.equal_loss_at_best_share else []), *r.equal_loss)
        ),
        f"synthetic tokens {r.synthetic_tokens:.3g}; training {r.training_flops:.3g} FLOP, generation "
        + ("not known" if r.generation_flops is None else f"{r.generation_flops:.3g} FLOP"),
        f"pays: {r.pays} ({r.pays_reason})",
        *(f"several sources together: {each.headline}" for each in r.splits),
    ]
    lines += [
        f"if {each.what}: share of {each.synthetic} {percent_between(each.best_share)}, loss {-each.gain_nats:+.3g} nats against natural "
        f"text, pays: {each.pays}"
        + (
            f", natural text alone costs {_shown(each.natural_cost_ratio)} times as much"
            if each.natural_cost_ratio
            else ""
        )
        for each in r.sensitivity
    ]
    lines += [
        f"train next: {_proposed(each)}, {each.runs} runs, {each.flops:.3g} FLOP; expected width of the best share's interval then "
        f"{percentage(each.expected_interval_width)}"
        for each in r.next_cells
    ]
    if r.cost is not None:
        lines.append(f"cost at the given prices: {r.cost:,.2f}")
    return lines + [f"! {warning}" for warning in r.warnings]


def _proposed(cell: NextCell) -> str:
    if cell.what == "share":
        return f"a share of {percent(cell.share or 0.0)} in every cell"
    return (
        f"{cell.model} on {cell.train_tokens:,} tokens"
        if cell.what == "cell"
        else f"seed {cell.seed} in every cell"
    )


def _shown(interval: Interval) -> str:
    if interval.low is None and interval.high is None:
        return f"{interval.value:.4g}"
    low, high = ("unbounded" if end is None else f"{end:.4g}" for end in (interval.low, interval.high))
    return f"{interval.value:.4g} ({low} to {high})"


def evidence_lines(
    config: RecommendConfig,
    evidence: Evidence,
    source: str,
    curves: dict[str, Curve],
    generation: Generation,
    training: Training,
) -> Iterator[str]:
    """Say what each number of a recommendation rests on."""
    yield (
        f"best share: minimum of a curve through the laws' predictions at the target ({curves[source].method}), combined with the "
        "cells searched by a linear model of the best share in log N and log D, each by its standard error"
    )
    for name, curve in curves.items():
        best, loss = curve.least_best_share(), curve.best_loss()
        yield f"laws/{config.laws}: best share of {name} at the target {percent_between(best)}, loss {_shown(loss)}"
    for cell in evidence.cells:
        other = (
            "several sources: see splits" if cell.best_shares else "another source: not used for the share"
        )
        used = "" if cell.synthetic == source else f" ({other})"
        yield f"searches/{cell.search}: {cell.synthetic} at N = {cell.num_params:,}, D = {cell.train_tokens:,}: best share {percent_between(cell.best_share)}{used}"
    for each in evidence.mixtures:
        record = each.fitted.record
        held_out = (
            f", held-out error {percentage(record.hold_out.mean_absolute_relative_error, 2)}"
            if record.hold_out
            else ""
        )
        yield f"laws/{config.laws}: {record.law} law of {each.group}, {len(record.rows_used)} runs{held_out}: loss {_shown(each.loss)}"
    yield from generation.evidence
    yield training.evidence


def warnings_of(
    config: RecommendConfig,
    evidence: Evidence,
    source: str,
    there: ShareAtTarget,
    equally_good: tuple[float, float],
    generation: Generation,
) -> Iterator[str]:
    """Say what there is to doubt: scale, repetition, flatness, disagreement, the laws' own warnings, what is not known."""
    yield from scale_warnings(config, evidence)
    yield from _repetition_warnings(config, evidence.of(source))
    yield from _share_warnings(evidence, source, there, equally_good)
    yield from _cell_warnings(evidence, source, there.curve.least_best_share())
    for mixture in evidence.mixtures:
        if mixture.share == 0.0 or mixture.synthetic == source:
            yield from (
                f"{mixture.fitted.record.law} law of {mixture.group}: {each}"
                for each in mixture.fitted.record.warnings
            )
        if mixture.knows_tokens and mixture.share > 0.0:
            tokens, _ = mixture.tokens_to(evidence.natural.loss.value, np.empty(0), config.num_params)
            if not np.isfinite(tokens):
                yield f"{mixture.group} never reaches the loss of natural text at the target"
    yield from generation.unknown
    yield "loss on the study's held-out text is all that is predicted; nothing here was measured on downstream tasks"


def scale_warnings(config: RecommendConfig, evidence: Evidence) -> Iterator[str]:
    """Say how far the target lies beyond the runs behind the laws."""
    used = [row for row in evidence.laws.file.rows if row["used"]]
    targets = {
        "num_params": ("N", config.num_params),
        "train_tokens": ("D", config.train_tokens),
    }
    for name, (symbol, target) in targets.items():
        trained = [float(row[name]) for row in used if row[name] is not None]
        if not trained:
            continue
        beyond, below = target / max(trained), min(trained) / target
        if max(beyond, below) <= 1.0 + FIXED_TOLERANCE:
            continue
        end, times, which = (
            (max(trained), beyond, "largest") if beyond > 1.0 else (min(trained), below, "smallest")
        )
        where = "beyond" if beyond > 1.0 else "below"
        far = ": far outside the data, take the numbers as a direction at most" if times > FAR else ""
        yield f"target {symbol} = {target:,} is {times:,.3g} times {where} the {which} trained ({end:,.0f}){far}"
    largest = max((float(row["num_params"]) for row in used if row["num_params"] is not None), default=0.0)
    if 0.0 < largest < SMALL_PARAMS:
        yield (
            f"the largest model behind the laws has {largest:,.0f} parameters: best shares are known to move with scale, so "
            "this rehearses the method and does not answer for models of a useful size"
        )


def _repetition_warnings(config: RecommendConfig, mixtures: tuple[MixtureAtTarget, ...]) -> Iterator[str]:
    """Say how often the runs behind the laws passed over their sources."""
    run_ids = {run_id for mixture in mixtures for run_id in mixture.fitted.record.rows_used}
    most: dict[str, float] = {}
    for record in records_of(config.root, run_ids).values():
        for name, use in record.sources.items():
            most[name] = max(most.get(name, 0.0), use.epochs)
    for name, epochs in sorted(most.items()):
        if epochs > 1.0:
            yield (
                f"runs behind the laws passed over {name} up to {epochs:.3g} times: at the target, tokens that are all new may "
                "do better than predicted, and more passes worse"
            )


def _share_warnings(
    evidence: Evidence, source: str, there: ShareAtTarget, equally_good: tuple[float, float]
) -> Iterator[str]:
    """Say how flat the curve is, and where it, and not a run, is what speaks for the share."""
    low, high = equally_good
    if high - low >= FLAT:
        yield f"flat optimum: shares of {source} from {percent(low)} to {percent(high)} have the same predicted loss within its error"
    if there.share > there.above.share:
        yield (
            f"no share above {percent(there.above.share)} of {source} was trained: the loss given for {percent(there.share)} is that "
            f"of {percent(there.above.share)}"
        )
    elif there.shares_from_trained > BETWEEN:
        yield (
            f"{percent(there.share)} of {source} lies between {percent(there.below.share)} and {percent(there.above.share)}, which were "
            "trained: its loss is the curve's reading between shares, and not measured"
        )
    beside = [each for each in (there.below, there.above) if each.share > 0.0]
    if there.share > 0.0 and all(each.loss.value >= evidence.natural.loss.value for each in beside):
        yield (
            "no gain was measured: "
            + " and ".join(f"the law of {each.group} predicts {each.loss.value:.4g}" for each in beside)
            + f" nats per token at the target and that of natural text {evidence.natural.loss.value:.4g}"
        )


def _cell_warnings(evidence: Evidence, source: str, from_laws: Interval) -> Iterator[str]:
    """Say where searches and laws are at odds."""
    cells = [cell for cell in evidence.cells if cell.synthetic == source]
    for cell in cells:
        best = cell.best_share
        apart = abs(best.value - from_laws.value) > DISAGREEMENT
        if apart and (_outside(best.value, from_laws) or _outside(from_laws.value, best)):
            yield (
                f"searches/{cell.search} found {percent_between(best)} at N = {cell.num_params:,}, D = {cell.train_tokens:,} and the "
                f"laws give {percent_between(from_laws)} at the target: the best share moves with scale, or one of them is wrong"
            )
    alone = {cell.synthetic for cell in evidence.cells if not cell.best_shares}
    others = sorted(alone - set(evidence.sources))
    for name in others:
        yield f"{name} was searched but has no laws, so its loss at the target is not predicted and it was not considered"


def _outside(value: float, interval: Interval) -> bool:
    return (
        interval.low is not None and interval.high is not None and not interval.low <= value <= interval.high
    )
