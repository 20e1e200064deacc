"""The paper's claims in the report: from a study to what they are tested on, and the table of verdicts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tune.claim_data import ClaimData, ClaimRun
from tune.claim_roles import Roles, roles_of
from tune.claims import check_claims
from tune.report.inputs import Study, StudyRun
from tune.report.table import Column, Table
from tune.report.tables import search_runs
from tune.unigrams import mixture_divergences

CLAIM_COLUMNS = (
    Column("number", "No.", "count"),
    Column("claim", "Claim", "prose"),
    Column("verdict", "Verdict", "verdict"),
    Column("value", "Statistic", "number"),
    Column("statistic", "What it is, and where the claim says it lies", "prose"),
    Column("part_verdict", "There?", "verdict"),
    Column("reason", "On what", "prose"),
)

_THERE = {"supported": "yes", "not supported": "no", "not testable with these runs": "open"}


def claims_table(data: ClaimData) -> Table:
    """Return all claims: a row for each statistic with its interval, the verdict of the whole claim on the first."""
    results = check_claims(data)
    rows = []
    for each in results:
        for place, part in enumerate(each.parts):
            whole: dict[str, Any] = {"number": each.number, "claim": each.claim, "verdict": each.verdict}
            if place > 0:
                whole = dict.fromkeys(whole, "")
            found = {name: getattr(part, name) for name in ("value", "statistic", "reason")}
            rows.append(whole | found | {"part_verdict": _THERE[part.verdict]})
    counts = Counter(each.verdict for each in results)
    caption = (
        f"{counts['supported']} supported, {counts['not supported']} not supported, "
        f"{counts['not testable with these runs']} not testable with these runs"
    )
    return Table("claims", caption, CLAIM_COLUMNS, tuple(rows), data.roles.notes)


def claim_data(study: Study) -> ClaimData:
    """Return what the claims are tested on: every complete run of the plan and the searches, laws, optima."""
    runs = {run.run_id: run for run in (*study.runs, *(run for _, run in search_runs(study)))}
    found = tuple(_claim_run(run) for run in runs.values() if run.loss is not None)
    divergences: dict[str, float] = {}
    planned = [run.record.config for run in study.runs if run.record is not None]
    if planned and (natural := _natural(study)) is not None:
        mixtures = {(run.synthetic if run.share else None, run.share) for run in study.runs}
        divergences = mixture_divergences(
            study.config.root, planned[0].packed, natural, sorted(mixtures, key=str)
        )
    return ClaimData(found, study.laws, study.optima, study_roles(study), divergences)


def study_roles(study: Study) -> Roles:
    """Return who plays which part. Raises UserError when the configuration names a source that no run has."""
    runs = {run.run_id: run for run in (*study.runs, *(run for _, run in search_runs(study)))}
    counts = Counter(run.synthetic for run in runs.values() if run.synthetic)
    return roles_of({str(name): count for name, count in counts.items()}, study.made, study.config.claims)


def _natural(study: Study) -> str | None:
    """Return the source of natural text: the only one of a run without synthetic tokens."""
    pure = (run.record for run in study.runs if run.share == 0.0 and run.record is not None)
    return next((next(iter(record.sources)) for record in pure if len(record.sources) == 1), None)


def _claim_run(run: StudyRun) -> ClaimRun:
    assert run.record is not None
    assert run.record.final is not None
    final = run.record.final
    return ClaimRun(
        synthetic=run.synthetic if run.share > 0 else None,
        share=run.share,
        num_params=float(run.num_params),
        train_tokens=float(run.train_tokens),
        loss=final.loss_nats_per_token,
        seed=run.seed,
        domains={name: each.loss_nats_per_token for name, each in final.domains.items()},
    )
