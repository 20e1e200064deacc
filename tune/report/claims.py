"""The paper's claims in the report: from a study to what they are tested on, and the table of verdicts."""

from __future__ import annotations

from tune.claim_data import ClaimData, ClaimRun, Roles
from tune.claims import check_claims
from tune.report.inputs import Study, StudyRun
from tune.report.tables import Column, Table, search_runs
from tune.unigrams import mixture_divergences

CLAIM_COLUMNS = (
    Column("number", "No.", "count"),
    Column("claim", "Claim", "prose"),
    Column("verdict", "Verdict", "verdict"),
    Column("value", "Statistic", "number"),
    Column("statistic", "What it is", "prose"),
    Column("reason", "On what", "prose"),
)


def claims_table(data: ClaimData) -> Table:
    """Return all claims with statistic, interval and verdict."""
    results = check_claims(data)
    rows = tuple({column.key: getattr(each, column.key) for column in CLAIM_COLUMNS} for each in results)
    counts = {
        verdict: sum(each.verdict == verdict for each in results)
        for verdict in ("supported", "not supported")
    }
    rest = len(results) - sum(counts.values())
    caption = f"{counts['supported']} supported, {counts['not supported']} not supported, {rest} not testable with these runs"
    return Table("claims", caption, CLAIM_COLUMNS, rows)


def claim_data(study: Study) -> ClaimData:
    """Return what the claims are tested on: every complete run of the plan and the searches, laws, optima."""
    runs = {run.run_id: run for run in (*study.runs, *(run for _, run in search_runs(study)))}
    found = tuple(_claim_run(run) for run in runs.values() if run.loss is not None)
    sources = sorted({run.synthetic for run in found if run.synthetic})
    divergences: dict[str, float] = {}
    planned = [run.record.config for run in study.runs if run.record is not None]
    if planned and (natural := _natural(study)) is not None:
        mixtures = {(run.synthetic if run.share else None, run.share) for run in study.runs}
        divergences = mixture_divergences(
            study.config.root, planned[0].packed, natural, sorted(mixtures, key=str)
        )
    return ClaimData(found, study.laws, study.optima, Roles.by_name(sources), divergences)


def _natural(study: Study) -> str | None:
    """Return the source of natural text: the only one of a run without synthetic tokens."""
    pure = (run.record for run in study.runs if run.share == 0.0 and run.record is not None)
    return next((next(iter(record.sources)) for record in pure if len(record.sources) == 1), None)


def _claim_run(run: StudyRun) -> ClaimRun:
    assert run.record is not None
    assert run.record.final is not None
    return ClaimRun(
        synthetic=run.synthetic if run.share > 0 else None,
        share=run.share,
        num_params=float(run.num_params),
        train_tokens=float(run.train_tokens),
        loss=run.record.final.loss_nats_per_token,
        seed=run.seed,
    )
