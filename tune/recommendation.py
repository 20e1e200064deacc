"""`recommend_mixture`: from laws and searches to one share for a target (N, D), its loss, its cost, and the doubts."""

from __future__ import annotations

from upath import UPath

from synth.errors import IdentityMismatch
from synth.identity import artefact_hash, provenance
from synth.plan import Plan
from synth.progress import Progress
from synth.storage import read_json, study_path, write_json_atomic
from tune.at_target import combine_shares, curve_at_target
from tune.config import RecommendConfig
from tune.costs import Generation, costs_of, generation_of, training_of
from tune.evidence import Evidence, evidence_lines, read_evidence, scale_warnings, summary, warnings_of
from tune.results import Recommendation
from tune.verdict import equal_losses, verdict_on

KIND = "recommendation"


def plan_recommend(config: RecommendConfig) -> Plan:
    """Return what would be recommended from; nothing is written.

    Raises IncompleteArtefact when the laws or a search are not finished, UserError when they cannot answer at the
    target, IdentityMismatch when the name is taken by another recommendation.
    """
    evidence = read_evidence(config)
    finished = _read_finished(config, _identity(config, evidence), evidence) is not None
    facts: dict[str, object] = {
        "target N, parameters": config.target_num_params,
        "target D, tokens": config.target_train_tokens,
        "mixtures with a law at the target": ", ".join(each.group for each in evidence.mixtures),
        "cells searched": len(evidence.cells),
    }
    return Plan(
        "recommend_mixture", str(_path(config)), finished, facts, tuple(scale_warnings(config, evidence))
    )


def recommend_mixture(config: RecommendConfig) -> Recommendation:
    """Write `recommendations/<name>.json`, print it in short, and return it; only read it when it is there.

    Raises as `plan_recommend` does.
    """
    evidence = read_evidence(config)
    identity = _identity(config, evidence)
    found = _read_finished(config, identity, evidence)
    if found is None:
        found = recommend(config, evidence, identity)
        write_json_atomic(_path(config), found.model_dump(mode="json"))
    progress = Progress("recommend_mixture", 1, "recommendations")
    for line in summary(found):
        progress.say(line)
    return found


def recommend(config: RecommendConfig, evidence: Evidence, identity: str) -> Recommendation:
    """Return the recommendation: the share and source of the lowest predicted loss at the target.

    The share is that of the curve through the laws' predictions at the target, moved towards what searches of the
    same source found (`tune.at_target.combine_shares`). Both losses are read off that curve, so that their difference
    means something; tokens to equal loss come from the mixtures' own laws.
    """
    n, d = config.target_num_params, config.target_train_tokens
    curves = {
        source: curve_at_target(evidence.of(source), evidence.confidence) for source in evidence.sources
    }
    source = min(curves, key=lambda name: curves[name].best_loss().value)
    curve, mixtures = curves[source], evidence.of(source)
    cells = [cell for cell in evidence.cells if cell.synthetic == source]
    share = combine_shares(curve.best_share(), cells, n, d, evidence.confidence)
    nearest = min(mixtures, key=lambda each: abs(each.share - share.value))
    plan = evidence.laws.file.recipe.get("plan")
    generation = (
        generation_of(config.root, plan, source, config.prices)
        if isinstance(plan, str)
        else Generation(unknown=("the laws are of a table of runs, so what generation took is not known",))
    )
    training = training_of(config.root, nearest.fitted.record.rows_used, config.prices)
    synthetic_tokens = share.value * d
    costs = costs_of(n, d, synthetic_tokens, config.prices, generation, training)
    pays, pays_reason = verdict_on(config, evidence.natural, nearest, generation, training)
    return Recommendation(
        hash=identity,
        recipe=config.identity(),
        parents=evidence.parents,
        target_num_params=n,
        target_train_tokens=d,
        best_share=share,
        best_group=nearest.group,
        synthetic=source,
        predicted_loss=curve.at(share.value),
        natural_only_loss=curve.at(0.0),
        equal_loss=tuple(equal_losses(config, evidence)),
        synthetic_tokens=synthetic_tokens,
        training_flops=costs.training_flops,
        generation_flops=costs.generation_flops,
        training_device_hours=costs.training_device_hours,
        generation_device_hours=costs.generation_device_hours,
        cost=costs.money,
        pays=pays,
        pays_reason=pays_reason,
        evidence=tuple(evidence_lines(config, evidence, source, curves, generation, training)),
        warnings=tuple(warnings_of(config, evidence, source, curve, generation)),
        provenance=provenance(),
    )


# --- identity --------------------------------------------------------------------------------------------------


def _path(config: RecommendConfig) -> UPath:
    return study_path(config.root, "recommendations", f"{config.name}.json")


def _identity(config: RecommendConfig, evidence: Evidence) -> str:
    return artefact_hash(KIND, config.identity(), evidence.parents)


def _read_finished(config: RecommendConfig, identity: str, evidence: Evidence) -> Recommendation | None:
    """Return the recommendation that is there, None when there is none. Raises IdentityMismatch when it is another."""
    try:
        found = Recommendation.model_validate(read_json(_path(config)))
    except FileNotFoundError:
        return None
    if found.hash == identity:
        return found
    there = {**found.recipe, **{f"parents.{role}": value for role, value in found.parents.items()}}
    asked = {**config.identity(), **{f"parents.{role}": value for role, value in evidence.parents.items()}}
    differences = {
        field: (there.get(field), asked.get(field))
        for field in sorted(there.keys() | asked.keys())
        if there.get(field) != asked.get(field)
    }
    raise IdentityMismatch(str(_path(config)), differences)
