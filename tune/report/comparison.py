"""Two studies side by side: what differs between them, and paired differences of what they found, with intervals.

Runs are paired when they agree in size, budget, share and seed and in everything the studies have in common; a pair
reads the same natural text in the same order, so its difference is less noisy than either loss. Pairs of one (N, D)
cell are averaged over seeds first: cells, not runs, are what the interval counts as independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from synth.errors import UserError
from synth.identity import RECIPE_FILE
from synth.storage import MARKER, read_json, study_path
from tune.claim_statistics import mean_of
from tune.config import CompareConfig
from tune.report.inputs import StudyRun, read_optima, read_runs
from tune.results import CellOptimum, Interval

NATURAL = "natural text alone"
FEW_PAIRS = 3
"""With fewer cells than this an interval says little, and the comparison says so."""


@dataclass(frozen=True)
class Pair:
    """Two runs that differ in nothing but the study."""

    a: StudyRun
    b: StudyRun

    @property
    def label(self) -> str:
        """What was mixed in, in words: the two sources, or one name where they share it."""
        if self.a.share == 0:
            return NATURAL
        names = [str(self.a.synthetic), str(self.b.synthetic)]
        return names[0] if names[0] == names[1] else " against ".join(names)


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
    pairs = paired_runs(runs_a, runs_b, _matched(config, runs_a, runs_b))
    if not pairs:
        plans = f"plans {config.plan_a!r} of {config.study_a} and {config.plan_b!r} of {config.study_b}"
        if {run.run_id for run in runs_a} == {run.run_id for run in runs_b}:
            raise UserError(f"{plans} hold the same runs: there is nothing to compare.")
        raise UserError(
            f"{plans} have no two finished runs of the same size, budget, share and seed: compare plans that share a cell, or "
            "name the sources in pairs."
        )
    packed = [_packed(root, runs) for root, runs in ((config.study_a, runs_a), (config.study_b, runs_b))]
    same_tokens = packed[0].get("tokenizer_hash") == packed[1].get("tokenizer_hash")
    measure = "loss_nats_per_token" if same_tokens else "bits_per_byte"
    by_share = tuple(_by_share(pairs, measure, config.confidence))
    texts = texts_differ(*packed)
    return Comparison(
        config=config,
        measure=measure,
        texts=texts,
        differing=tuple(_differing(config, pairs)),
        by_share=by_share,
        gains=tuple(_gains(pairs, measure, config.confidence)),
        by_domain=tuple(_by_domain(pairs, config.confidence)),
        best_shares=tuple(_best_shares(config)),
        generation=tuple(_generation(config, pairs)),
        warnings=tuple(_warnings(texts, same_tokens, by_share)),
    )


# --- pairs -----------------------------------------------------------------------------------------------------


def _matched(config: CompareConfig, runs_a: Sequence[StudyRun], runs_b: Sequence[StudyRun]) -> dict[str, str]:
    there_a, there_b = ({run.synthetic for run in runs if run.synthetic} for runs in (runs_a, runs_b))
    for field, names, there in (("a", config.pairs.keys(), there_a), ("b", config.pairs.values(), there_b)):
        if unknown := sorted(set(names) - there):
            raise UserError(
                f"pairs names {unknown[0]!r}, which is no synthetic source of study {field} (it has "
                f"{', '.join(sorted(there)) or 'none'}): correct the name."
            )
    return dict(config.pairs) or {name: name for name in sorted(there_a & there_b)}


def paired_runs(
    runs_a: Iterable[StudyRun], runs_b: Iterable[StudyRun], matched: dict[str, str]
) -> tuple[Pair, ...]:
    """Return the pairs of finished runs of the same size, budget, share and seed, natural text first."""
    there = {_place(run): run for run in runs_b if run.loss is not None}
    pairs = []
    for run in runs_a:
        if run.loss is None or (run.share > 0 and run.synthetic not in matched):
            continue
        source = matched[str(run.synthetic)] if run.share > 0 else None
        other = there.get((run.num_params, run.train_tokens, run.seed, round(run.share, 9), source))
        if other is not None and other.run_id != run.run_id:
            pairs.append(Pair(run, other))
    return tuple(
        sorted(pairs, key=lambda p: (p.a.share > 0, p.label, p.a.share, p.a.num_params, p.a.train_tokens))
    )


def _place(run: StudyRun) -> tuple[Any, ...]:
    return (
        run.num_params,
        run.train_tokens,
        run.seed,
        round(run.share, 9),
        run.synthetic if run.share > 0 else None,
    )


def _log_ratio(pair: Pair, measure: str) -> float:
    return math.log(_measured(pair.b, measure) / _measured(pair.a, measure))


def _measured(run: StudyRun, measure: str) -> float:
    assert run.record is not None
    assert run.record.final is not None
    return float(getattr(run.record.final, measure))


# --- differences -----------------------------------------------------------------------------------------------


def _by_share(pairs: Sequence[Pair], measure: str, confidence: float) -> Iterable[Difference]:
    for label in dict.fromkeys(pair.label for pair in pairs):
        mine = [pair for pair in pairs if pair.label == label]
        shares = sorted({pair.a.share for pair in mine})
        for share in shares:
            here = [(pair, _log_ratio(pair, measure)) for pair in mine if pair.a.share == share]
            yield _difference(label, share, here, confidence)
        if len(shares) > 1:
            yield _difference(label, None, [(pair, _log_ratio(pair, measure)) for pair in mine], confidence)


def _gains(pairs: Sequence[Pair], measure: str, confidence: float) -> Iterable[Difference]:
    natural = {_cell(pair): _log_ratio(pair, measure) for pair in pairs if pair.a.share == 0}
    mixed = [pair for pair in pairs if pair.a.share > 0 and _cell(pair) in natural]
    for label in dict.fromkeys(pair.label for pair in mixed):
        for share in sorted({pair.a.share for pair in mixed if pair.label == label}):
            here = [
                (pair, _log_ratio(pair, measure) - natural[_cell(pair)])
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


# --- what the studies are --------------------------------------------------------------------------------------


def _packed(root: str, runs: Sequence[StudyRun]) -> dict[str, Any]:
    names = {run.record.config.packed for run in runs if run.record is not None}
    return _json(root, "packed", sorted(names)[0], MARKER) if names else {}


def _json(root: str, *parts: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(study_path(root, *parts))
    except FileNotFoundError:
        return {}
    return found


def _synthetic_of(root: str, run: StudyRun) -> tuple[str, dict[str, Any]]:
    """Return the name and the manifest of the synthetic set behind a run's source; empty where it is not under the root."""
    assert run.record is not None
    sources = (
        _json(root, "packed", run.record.config.packed, RECIPE_FILE).get("recipe", {}).get("sources", {})
    )
    name = str(sources.get(run.synthetic, {}).get("synthetic") or "")
    return name, _json(root, "synthetic", name, MARKER) if name else {}


def _differing(config: CompareConfig, pairs: Sequence[Pair]) -> Iterable[dict[str, Any]]:
    if config.study_a == config.study_b:
        yield from _differing_sets(config, pairs)
        return
    for kind in ("corpora", "synthetic", "packed", "plans"):
        names_a, names_b = (_finished(root, kind) for root in (config.study_a, config.study_b))
        for name in sorted(names_a & names_b):
            old, new = (
                _json(root, kind, name, RECIPE_FILE).get("recipe", {})
                for root in (config.study_a, config.study_b)
            )
            for field, (a, b) in _unequal(old, new).items():
                yield {"artefact": f"{kind}/{name}", "field": field, "a": a, "b": b}
        for name in sorted(names_a ^ names_b):
            yield {"artefact": f"{kind}/{name}", "field": "", "a": "there" if name in names_a else None, "b": "there" if name in names_b else None}  # fmt: skip


def _differing_sets(config: CompareConfig, pairs: Sequence[Pair]) -> Iterable[dict[str, Any]]:
    """Yield what two synthetic sets of one study differ in."""
    done: set[tuple[str, str]] = set()
    for pair in pairs:
        if pair.a.share == 0:
            continue
        (name_a, made_a), (name_b, made_b) = (
            _synthetic_of(config.study_a, pair.a),
            _synthetic_of(config.study_b, pair.b),
        )
        if (name_a, name_b) not in done:
            done.add((name_a, name_b))
            for field, (a, b) in _unequal(made_a.get("recipe", {}), made_b.get("recipe", {})).items():
                yield {"artefact": f"synthetic/{name_a} against {name_b}", "field": field, "a": a, "b": b}


def _finished(root: str, kind: str) -> set[str]:
    directory = study_path(root, kind)
    return (
        {path.name for path in directory.iterdir() if (path / MARKER).exists()}
        if directory.exists()
        else set()
    )


def _unequal(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted(old.keys() | new.keys()):
            found |= _unequal(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return {} if old == new else {prefix: (old, new)}


def _generation(config: CompareConfig, pairs: Sequence[Pair]) -> Iterable[dict[str, Any]]:
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        if pair.a.share == 0:
            continue
        for study, root, run in (("A", config.study_a, pair.a), ("B", config.study_b, pair.b)):
            name, manifest = _synthetic_of(root, run)
            if not manifest or (study, name) in seen:
                continue
            seen.add((study, name))
            yield {
                "study": study,
                "synthetic": name,
                "model": manifest["recipe"]["engine"]["model"],
                "recipes": ", ".join(sorted(manifest["recipes"])),
                "kept_fraction": manifest["kept"] / manifest["rows"] if manifest["rows"] else None,
                "accepted_tokens": manifest["accepted_tokens"],
                "tokens_per_device_second": manifest["accepted_tokens_per_device_second"],
                "device_hours_per_billion": manifest["device_hours_per_billion_accepted_tokens"],
            }


def texts_differ(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """Return how the held-out texts of two packed sets differ, in words; None when they are the same.

    With one tokenizer the tokens tell. With two, the corpora they were drawn from do, and how many bytes of each domain
    were taken: a limit in tokens cuts the same text at another place.
    """
    if a.get("tokenizer_hash") == b.get("tokenizer_hash"):
        shards = [each.get("evaluation_shard", {}).get("sha256") for each in (a, b)]
        return None if shards[0] == shards[1] else "the held-out texts differ"
    corpora = [
        sorted(made for role, made in each.get("parents", {}).items() if role.startswith("evaluate_on."))
        for each in (a, b)
    ]
    if corpora[0] != corpora[1]:
        return "the held-out texts are of different corpora"
    sizes = [
        {
            name: (info["num_documents"], info["num_bytes"])
            for name, info in each.get("evaluation", {}).items()
        }
        for each in (a, b)
    ]
    if sizes[0] == sizes[1]:
        return None
    taken = [sum(size for _, size in each.values()) for each in sizes]
    return (
        f"the held-out texts are of the same corpora but not cut at the same place ({taken[0]:,} bytes of {len(sizes[0])} "
        f"domains against {taken[1]:,} of {len(sizes[1])})"
    )


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
