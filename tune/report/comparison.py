"""Two studies side by side: what differs between them, and paired differences of what they found, with intervals.

Pairs of runs (`tune.report.pairs`) of one (N, D) cell are averaged over seeds first: cells, not runs, are what the interval
counts as independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from synth.errors import UserError
from tune.claim_statistics import mean_of
from tune.config import CompareConfig
from tune.report.inputs import StudyRun, read_optima, read_runs
from tune.report.pairs import Pair, log_ratio, matched_sources, paired_runs
from tune.report.study_differences import differing_fields, generation_of_sets, packed_set, texts_differ
from tune.results import CellOptimum, Interval

FEW_PAIRS = 3
"""With fewer cells than this an interval says little, and the comparison says so."""


@dataclass(frozen=True)
class Difference:
    """B against A in one respect, over all (N, D) cells both have."""

    what: str
    """The sources, or natural text alone."""
    share: float | None
    """Synthetic share; None for all shares together."""
    cells: int
    pairs: int
    relative: Interval
    """Mean of ln(loss of B / loss of A): below 0, B is better."""
    verdict: str
    """`B is better`, `A is better` or `not told apart`."""
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class ShareDifference:
    """Best share of B less that of A in one cell."""

    what: str
    model: str
    train_tokens: int
    a: Interval
    b: Interval
    difference: Interval


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison says."""

    config: CompareConfig
    measure: str
    """`loss_nats_per_token`, or `bits_per_byte` where the tokenizers differ."""
    texts: str | None
    """How the held-out texts of the two differ, in words; None when both are measured on the same text."""
    differing: tuple[dict[str, Any], ...]
    """Fields in which the recipes of the two studies differ: `artefact`, `field`, `a`, `b`."""
    by_share: tuple[Difference, ...]
    gains: tuple[Difference, ...]
    """The same after each study's own natural text is taken off: what the synthetic text alone is worth."""
    by_domain: tuple[Difference, ...]
    best_shares: tuple[ShareDifference, ...]
    generation: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]


def compare(config: CompareConfig) -> Comparison:
    """Compare two studies. Raises UserError when they have no pair of runs, IncompleteArtefact without a plan."""
    runs_a, runs_b = read_runs(config.study_a, config.plan_a), read_runs(config.study_b, config.plan_b)
    pairs = paired_runs(runs_a, runs_b, matched_sources(config, runs_a, runs_b))
    if not pairs:
        plans = f"plans {config.plan_a!r} of {config.study_a} and {config.plan_b!r} of {config.study_b}"
        if {run.run_id for run in runs_a} == {run.run_id for run in runs_b}:
            raise UserError(f"{plans} hold the same runs: there is nothing to compare.")
        raise UserError(
            f"{plans} have no two finished runs of the same size, budget, share and seed: compare plans that share a cell, or "
            "name the sources in pairs."
        )
    packed = [packed_set(root, runs) for root, runs in ((config.study_a, runs_a), (config.study_b, runs_b))]
    same_tokens = packed[0].get("tokenizer_hash") == packed[1].get("tokenizer_hash")
    measure = "loss_nats_per_token" if same_tokens else "bits_per_byte"
    by_share = tuple(_by_share(pairs, measure, config.confidence))
    texts = texts_differ(*packed)
    return Comparison(
        config=config,
        measure=measure,
        texts=texts,
        differing=tuple(differing_fields(config, pairs)),
        by_share=by_share,
        gains=tuple(_gains(pairs, measure, config.confidence)),
        by_domain=tuple(_by_domain(pairs, config.confidence)),
        best_shares=tuple(_best_shares(config)),
        generation=tuple(generation_of_sets(config, pairs)),
        warnings=tuple(_warnings(texts, same_tokens, by_share)),
    )


# --- differences -----------------------------------------------------------------------------------------------


def _by_share(pairs: Sequence[Pair], measure: str, confidence: float) -> Iterable[Difference]:
    for label in dict.fromkeys(pair.label for pair in pairs):
        mine = [pair for pair in pairs if pair.label == label]
        shares = sorted({pair.a.share for pair in mine})
        for share in shares:
            here = [(pair, log_ratio(pair, measure)) for pair in mine if pair.a.share == share]
            yield _difference(label, share, here, confidence)
        if len(shares) > 1:
            yield _difference(label, None, [(pair, log_ratio(pair, measure)) for pair in mine], confidence)


def _gains(pairs: Sequence[Pair], measure: str, confidence: float) -> Iterable[Difference]:
    natural = {_cell(pair): log_ratio(pair, measure) for pair in pairs if pair.a.share == 0}
    mixed = [pair for pair in pairs if pair.a.share > 0 and _cell(pair) in natural]
    for label in dict.fromkeys(pair.label for pair in mixed):
        for share in sorted({pair.a.share for pair in mixed if pair.label == label}):
            here = [
                (pair, log_ratio(pair, measure) - natural[_cell(pair)])
                for pair in mixed
                if pair.label == label and pair.a.share == share
            ]
            yield _difference(label, share, here, confidence)


def _by_domain(pairs: Sequence[Pair], confidence: float) -> Iterable[Difference]:
    mixed = [pair for pair in pairs if pair.a.share > 0] or list(pairs)
    domains = [set(_domains(run)) for pair in mixed for run in (pair.a, pair.b)]
    for domain in sorted(set.intersection(*domains)):
        here = [(pair, math.log(_domains(pair.b)[domain] / _domains(pair.a)[domain])) for pair in mixed]
        yield _difference(domain, None, here, confidence)


def _domains(run: StudyRun) -> dict[str, float]:
    assert run.record is not None
    assert run.record.final is not None
    return {name: loss.bits_per_byte for name, loss in run.record.final.domains.items()}


def _cell(pair: Pair) -> tuple[int, int, int]:
    return pair.a.num_params, pair.a.train_tokens, pair.a.seed


def _difference(
    what: str, share: float | None, values: Sequence[tuple[Pair, float]], confidence: float
) -> Difference:
    cells: dict[tuple[int, int], list[float]] = {}
    for pair, value in values:
        cells.setdefault(_cell(pair)[:2], []).append(value)
    relative = mean_of([float(np.mean(each)) for each in cells.values()], confidence)
    ids = tuple(run.run_id for pair, _ in values for run in (pair.a, pair.b))
    return Difference(what, share, len(cells), len(values), relative, verdict_of(relative), ids)


def verdict_of(relative: Interval) -> str:
    """Return which study is better, when the whole interval says so."""
    if relative.high is not None and relative.high < 0:
        return "B is better"
    if relative.low is not None and relative.low > 0:
        return "A is better"
    return "not told apart"


def _best_shares(config: CompareConfig) -> Iterable[ShareDifference]:
    optima_a, optima_b = (
        read_optima(config.study_a, config.searches_a),
        read_optima(config.study_b, config.searches_b),
    )
    there = {(o.synthetic, o.num_params, o.train_tokens): o for o in optima_b}
    for mine in optima_a:
        source = config.pairs.get(mine.synthetic, mine.synthetic)
        other = there.get((source, mine.num_params, mine.train_tokens))
        if other is not None:
            label = mine.synthetic if source == mine.synthetic else f"{mine.synthetic} against {source}"
            yield ShareDifference(
                label, mine.model, mine.train_tokens, mine.best_share, other.best_share,
                _share_difference(mine, other, config.confidence),
            )  # fmt: skip


def _share_difference(a: CellOptimum, b: CellOptimum, confidence: float) -> Interval:
    """Return b - a; the two searches are independent, so their variances add."""
    value = b.best_share.value - a.best_share.value
    if a.best_share.standard_error is None or b.best_share.standard_error is None:
        return Interval(value=value)
    error = math.hypot(a.best_share.standard_error, b.best_share.standard_error)
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    return Interval(value=value, low=value - reach, high=value + reach, standard_error=error)


def _warnings(texts: str | None, same_tokens: bool, by_share: Sequence[Difference]) -> Iterable[str]:
    if not same_tokens:
        yield "the tokenizers differ, so losses per token do not compare: differences are of bits per byte"
    if texts is not None:
        yield (
            f"{texts}, so a difference is of texts as much as of models: give both studies the same corpora in evaluate_on and "
            "room for all of their held-out text; the table of gains takes each study's own natural text off"
        )
    few = [each for each in by_share if each.cells < FEW_PAIRS]
    if few:
        yield f"{len(few)} of {len(by_share)} differences rest on fewer than {FEW_PAIRS} cells: their intervals say little"
