"""`recommend_mixture`: from laws and searches to one share for a target (N, D), its loss, its cost, and the doubts."""

from __future__ import annotations

from typing import Any

from upath import UPath

from synth.errors import IdentityMismatch
from synth.identity import artefact_hash, provenance
from synth.plan import Plan
from synth.progress import Progress
from synth.storage import read_json, study_path, write_json_atomic, write_text_atomic
from tune.answer import answer_at, sensitivity_of
from tune.config import RecommendConfig
from tune.costs import costs_of
from tune.evidence import Evidence, evidence_lines, read_evidence, scale_warnings, summary, warnings_of
from tune.next_runs import next_cells, next_plan
from tune.results import Recommendation
from tune.share_at_target import percent
from tune.split import split_warnings, splits_at
from tune.verdict import equal_loss_at, equal_losses

KIND = "recommendation"
FORMAT = 2
"""Raised whenever the same configuration would answer otherwise; part of the identity."""


def plan_recommend(config: RecommendConfig) -> Plan:
    """Return what would be recommended from; nothing is written.

    Raises IncompleteArtefact when the laws or a search are not finished, UserError when they cannot answer at the
    target, IdentityMismatch when the name is taken by another recommendation.
    """
    evidence = read_evidence(config)
    finished = _read_finished(config, _identity(config, evidence), evidence) is not None
    facts: dict[str, object] = {
        "target N, parameters": evidence.target.num_params,
        "target D, tokens": evidence.target.train_tokens,
        "mixtures with a law at the target": ", ".join(each.group for each in evidence.mixtures),
        "cells searched": len(evidence.cells),
    }
    return Plan(
        "recommend_mixture",
        str(_path(config)),
        finished,
        facts,
        tuple(scale_warnings(evidence.target, evidence)),
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
        plan = _plan_name(evidence)
        if found.next_cells and plan is not None:
            text = next_plan(config.root, plan, found.next_cells, f"{plan}-next")
            write_text_atomic(study_path(config.root, "recommendations", f"{config.name}.next.toml"), text)
        write_json_atomic(_path(config), found.model_dump(mode="json"))
    progress = Progress("recommend_mixture", 1, "recommendations")
    for line in summary(found):
        progress.say(line)
    return found


def recommend(config: RecommendConfig, evidence: Evidence, identity: str) -> Recommendation:
    """Return the recommendation: the share and source of the lowest predicted loss at the target.

    The share is that of the curve through the laws' predictions at the target, moved towards what searches of the
    same source found (`tune.at_target.combine_shares`), and up to where the natural tokens there are suffice. Its loss
    and that of natural text are read off that one curve, and what follows from them is of this share itself.
    """
    asked, config = config, evidence.target
    answer = answer_at(config, evidence)
    n, d, share = config.num_params, config.train_tokens, answer.share
    synthetic_tokens = share.value * d
    costs = costs_of(n, d, synthetic_tokens, config.prices, answer.generation, answer.training)
    available = config.natural_tokens_available
    plan = _plan_name(evidence)
    cells = next_cells(config.root, plan, answer, config.next_cells) if plan else ()
    splits = tuple(splits_at(evidence.cells, n, d, evidence.confidence))
    return Recommendation(
        hash=identity,
        recipe=_recipe(asked),
        parents=evidence.parents,
        target_num_params=n,
        target_train_tokens=d,
        best_share=share,
        best_group=answer.nearest.group,
        synthetic=answer.source,
        headline=answer.headline(),
        predicted_loss=answer.curve.at(share.value),
        natural_only_loss=answer.curve.at(0.0),
        gain=answer.there.gain,
        least_share=answer.least_share,
        equally_good_shares=answer.equally_good,
        equal_loss=tuple(equal_losses(config, evidence)),
        equal_loss_at_best_share=equal_loss_at(
            answer.there, f"{answer.source} {percent(share.value)}", evidence.confidence
        ),
        synthetic_tokens=synthetic_tokens,
        training_flops=costs.training_flops,
        generation_flops=costs.generation_flops,
        training_device_hours=costs.training_device_hours,
        generation_device_hours=costs.generation_device_hours,
        cost=costs.money,
        pays=answer.verdict.pays,
        pays_reason=answer.verdict.reason,
        natural_cost_ratio=answer.verdict.natural_cost_ratio,
        natural_passes=None if available is None else (1.0 - share.value) * d / available,
        splits=splits,
        sensitivity=tuple(sensitivity_of(config, evidence, answer)),
        next_cells=cells,
        evidence=tuple(
            evidence_lines(config, evidence, answer.source, answer.curves, answer.generation, answer.training)
        ),
        warnings=(
            *answer.warnings,
            *split_warnings(splits),
            *warnings_of(
                config, evidence, answer.source, answer.there, answer.equally_good, answer.generation
            ),
        ),
        provenance=provenance(),
    )


def _plan_name(evidence: Evidence) -> str | None:
    plan = evidence.laws.file.recipe.get("plan")
    return plan if isinstance(plan, str) else None


# --- identity --------------------------------------------------------------------------------------------------


def _path(config: RecommendConfig) -> UPath:
    return study_path(config.root, "recommendations", f"{config.name}.json")


def _recipe(config: RecommendConfig) -> dict[str, Any]:
    return {**config.identity(), "format": FORMAT}


def _identity(config: RecommendConfig, evidence: Evidence) -> str:
    return artefact_hash(KIND, _recipe(config), evidence.parents)


def _read_finished(config: RecommendConfig, identity: str, evidence: Evidence) -> Recommendation | None:
    """Return the recommendation that is there, None when there is none. Raises IdentityMismatch when it is another."""
    try:
        found = Recommendation.model_validate(read_json(_path(config)))
    except FileNotFoundError:
        return None
    if found.hash == identity:
        return found
    there = {**found.recipe, **{f"parents.{role}": value for role, value in found.parents.items()}}
    asked = {**_recipe(config), **{f"parents.{role}": value for role, value in evidence.parents.items()}}
    differences = {
        field: (there.get(field), asked.get(field))
        for field in sorted(there.keys() | asked.keys())
        if there.get(field) != asked.get(field)
    }
    raise IdentityMismatch(str(_path(config)), differences)
