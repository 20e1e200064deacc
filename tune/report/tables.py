"""The tables of the report: rows straight from the records, one definition for the page, the Markdown and the CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tune.report.format import amount, percent, show_interval
from tune.report.inputs import Study, StudyRun
from tune.report.table import Column, Table
from tune.results import CellOptimum, LawFit, Recommendation

SHORT_ID = 8
"""Digits of a run id shown; the appendix gives it whole."""


# --- runs and evaluations --------------------------------------------------------------------------------------

RUN_COLUMNS = (
    Column("run_id", "Run", "run"),
    Column("mixture", "Mixture"),
    Column("synthetic_share", "Share", "percent"),
    Column("model", "Model"),
    Column("num_params_non_embedding", "N", "amount"),
    Column("num_params_total", "N with embeddings", "amount"),
    Column("train_tokens", "D", "amount"),
    Column("seed", "Seed", "count"),
    Column("origin", "Made for"),
    Column("status", "Status", "verdict"),
    Column("loss_nats_per_token", "Loss, nats/token", "loss"),
    Column("macro_loss_nats_per_token", "Macro loss, nats/token", "loss"),
    Column("bits_per_byte", "Bits/byte", "bpb"),
    Column("unique_synthetic_tokens", "Unique synthetic tokens", "amount"),
    Column("repeated_tokens", "Repeated tokens", "amount"),
    Column("train_flops", "FLOP", "flops"),
    Column("train_flops_6nd", "6 N D", "flops"),
    Column("tokens_per_second", "Tokens/s", "count"),
    Column("wall_seconds", "Wall", "seconds"),
    Column("device_seconds", "Device", "seconds"),
    Column("attempts", "Attempts", "count"),
    Column("reason", "Reason", "prose"),
)


def run_rows(study: Study) -> tuple[dict[str, Any], ...]:
    """Return one row per run of the plan and of the searches, planned runs without a record included."""
    planned = [_run_row(run, "grid") for run in study.runs]
    seen = {run.run_id for run in study.runs}
    searched = [_run_row(run, f"search {name}") for name, run in search_runs(study) if run.run_id not in seen]
    rows = {row["run_id"]: row for row in [*planned, *searched]}
    return tuple(sorted(rows.values(), key=lambda row: (
        row["num_params_non_embedding"], row["train_tokens"], row["mixture"], row["synthetic_share"], row["run_id"]
    )))  # fmt: skip


def search_runs(study: Study) -> list[tuple[str, StudyRun]]:
    """Return the trials of every search as runs, with the name of their search."""
    return [
        (
            optimum.search,
            StudyRun(
                run_id=trial.run_id,
                model=optimum.model,
                num_params=optimum.num_params,
                train_tokens=optimum.train_tokens,
                synthetic=optimum.synthetic,
                share=trial.share,
                seed=study.trial_records[trial.run_id].config.seed
                if trial.run_id in study.trial_records
                else 0,
                record=study.trial_records.get(trial.run_id),
            ),
        )
        for optimum in study.optima
        for trial in optimum.trials
    ]


def _run_row(run: StudyRun, origin: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run_id": run.run_id,
        "mixture": run.mixture,
        "synthetic_share": run.share,
        "model": run.model,
        "num_params_non_embedding": run.num_params,
        "train_tokens": run.train_tokens,
        "seed": run.seed,
        "origin": origin,
        "status": "not trained",
        "reason": "no record.json: pretrain_models has not finished it",
    }
    record = run.record
    if record is None:
        return row
    row |= {
        "status": record.status,
        "reason": record.reason,
        "repeated_tokens": sum(use.repeated_tokens for use in record.sources.values()),
        "unique_synthetic_tokens": sum(
            use.unique_tokens for name, use in record.sources.items() if name in run.synthetic_sources
        ),
    }
    copied = ("num_params_non_embedding", "num_params_total", "train_tokens", "train_flops", "train_flops_6nd",
              "tokens_per_second", "wall_seconds", "device_seconds", "attempts")  # fmt: skip
    row |= {name: getattr(record, name) for name in copied}
    if record.final is not None:
        measured = ("loss_nats_per_token", "macro_loss_nats_per_token", "bits_per_byte")
        row |= {name: getattr(record.final, name) for name in measured}
    return row


EVALUATION_COLUMNS = tuple(
    Column(key, key)
    for key in ("run_id", "mixture", "synthetic_share", "model", "num_params_non_embedding", "train_tokens",
                "evaluated_at_tokens", "domain", "loss_nats_per_token", "bits_per_byte", "tokens", "bytes")
)  # fmt: skip


def evaluation_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row per run, evaluation and held-out domain."""
    rows = []
    for run in run_rows(study):
        record = study.records.get(run["run_id"])
        for evaluation in record.evaluations if record else ():
            for domain, loss in sorted(evaluation.domains.items()):
                described = {c.key: run.get(c.key) for c in EVALUATION_COLUMNS[:6]}
                at = {"evaluated_at_tokens": evaluation.train_tokens, "domain": domain}
                rows.append(described | at | loss.model_dump())
    return rows


def failures_table(study: Study) -> Table:
    """Return every run that is not complete, with its reason."""
    keys = ("run_id", "mixture", "model", "train_tokens", "origin", "status", "reason")
    rows = tuple(row for row in run_rows(study) if row["status"] != "complete")
    return Table("failures", "Runs without a result, and why", _columns(RUN_COLUMNS, keys), rows)


def runs_table(study: Study) -> Table:
    """Return all runs, the columns that fit a page."""
    keys = ("run_id", "mixture", "model", "num_params_non_embedding", "train_tokens", "seed", "origin", "status",
            "loss_nats_per_token", "bits_per_byte", "repeated_tokens", "wall_seconds")  # fmt: skip
    return Table("runs", "All runs; runs.csv has every field", _columns(RUN_COLUMNS, keys), run_rows(study))


def _columns(columns: Sequence[Column], keys: Sequence[str]) -> tuple[Column, ...]:
    by_key = {column.key: column for column in columns}
    return tuple(by_key[key] for key in keys)


# --- laws ------------------------------------------------------------------------------------------------------

_FIT_PLACE_COLUMNS = (Column("law", "Law"), Column("group", "Mixture"), Column("fixed", "At"))
_FIT_QUALITY_COLUMNS = (
    Column("objective", "Objective"),
    Column("objective_value", "Objective value", "scientific"),
    Column("gradient_norm", "Gradient", "scientific"),
    Column("converged", "Converged", "verdict"),
    Column("num_starts", "Starts", "count"),
    Column("starts_followed", "Starts followed", "count"),
    Column("starts_at_optimum_fraction", "Starts that reach it", "percent"),
    Column("confidence", "Level", "percent"),
    Column("interval_method", "Interval by"),
    Column("hold_out_error", "Hold-out error", "percent"),
    Column("runs_used", "Runs used", "count"),
    Column("runs_excluded", "Runs left out", "count"),
)
_PARAMETER_ORDER = ("A", "alpha", "B", "beta", "gamma", "E")


def fit_columns(fits: Iterable[LawFit]) -> tuple[Column, ...]:
    """Return the columns of a table of fits: the parameters are those that any of them has."""
    names = list(dict.fromkeys(name for fit in fits for name in fit.parameters))
    known = [name for name in _PARAMETER_ORDER if name in names]
    parameters = [*known, *(name for name in names if name not in known)]
    return (
        *_FIT_PLACE_COLUMNS,
        *(Column(name, name, "number") for name in parameters),
        *_FIT_QUALITY_COLUMNS,
    )


def fit_rows(fits: Iterable[LawFit]) -> list[dict[str, Any]]:
    """Return one row per fit."""
    return [_fit_row(fit) for fit in fits]


def _fit_row(fit: LawFit) -> dict[str, Any]:
    delta = f", delta {fit.huber_delta:g}" if fit.huber_delta is not None else ""
    symbols = {"num_params": "N", "train_tokens": "D"}
    copied = ("law", "group", "objective_value", "gradient_norm", "converged", "num_starts",
              "starts_followed", "starts_at_optimum_fraction", "confidence", "interval_method")  # fmt: skip
    return {name: getattr(fit, name) for name in copied} | {
        **fit.parameters,
        "fixed": ", ".join(
            f"{symbols.get(name, name)} = {amount(value)}" for name, value in sorted(fit.fixed.items())
        ),
        "objective": fit.objective + delta,
        "hold_out_error": fit.hold_out.mean_absolute_relative_error if fit.hold_out else None,
        "runs_used": len(fit.rows_used),
        "runs_excluded": len(fit.rows_excluded),
    }


def fit_tables(study: Study) -> list[Table]:
    """Return one table per law, with that law's parameters and its fits' warnings."""
    found = {fit.law for fit in study.laws.file.fits}
    ordered = [law for law in ("data", "model") if law in found] + sorted(found - {"data", "model"})
    return [_fit_table(law, [fit for fit in study.laws.file.fits if fit.law == law]) for law in ordered]


def _fit_table(law: str, fits: Sequence[LawFit]) -> Table:
    rows = fit_rows(fits)
    columns = fit_columns(fits)
    fixed = sorted({row["fixed"] for row in rows})
    hidden = {
        "law",
        "objective",
        "gradient_norm",
        "num_starts",
        "starts_followed",
        "confidence",
        "interval_method",
        "runs_excluded",
    }
    hidden |= {"fixed"} if len(fixed) == 1 else set()
    hidden |= {"converged"} if all(fit.converged for fit in fits) else set()
    at = f", at {fixed[0]}" if len(fixed) == 1 and fixed[0] else ""
    intervals = f"{percent(fits[0].confidence)} intervals" if fits[0].bootstrap_samples else "no intervals"
    return Table(
        name=f"fits-{law.replace('_', '-')}",
        caption=f"{fits[0].formula}{at}. Objective {rows[0]['objective']}; {intervals}.",
        columns=tuple(column for column in columns if column.key not in hidden),
        rows=tuple(rows),
        notes=tuple(note for fit in fits for note in _fit_notes(fit)),
    )


def _fit_notes(fit: LawFit) -> Iterator[str]:
    if fit.warnings:
        yield f"{fit.group}: {'; '.join(fit.warnings)}."
    if fit.rows_excluded:
        left_out = (f"{row.run_id[:SHORT_ID]} ({row.reason})" for row in fit.rows_excluded)
        yield f"{fit.group}, left out: {', '.join(left_out)}."


# --- optima and equal loss -------------------------------------------------------------------------------------

OPTIMUM_COLUMNS = (
    Column("search", "Search"),
    Column("synthetic", "Synthetic source"),
    Column("model", "Model"),
    Column("num_params", "N", "amount"),
    Column("train_tokens", "D", "amount"),
    Column("best_share", "Best share", "percent"),
    Column("best_loss", "Loss there", "loss"),
    Column("natural_only_loss", "Natural only", "loss"),
    Column("gain_nats", "Gain, nats", "loss"),
    Column("noise_nats", "Noise, nats", "loss"),
    Column("trials", "Runs", "count"),
    Column("trials_failed", "Without a loss", "count"),
    Column("method", "Method", "prose"),
)


def optimum_rows(optima: Iterable[CellOptimum]) -> list[dict[str, Any]]:
    """Return one row per searched cell."""
    return [
        {
            **{c.key: getattr(o, c.key) for c in OPTIMUM_COLUMNS if c.key in CellOptimum.model_fields},
            "gain_nats": None if o.natural_only_loss is None else o.natural_only_loss - o.best_loss.value,
            "trials": len(o.trials),
            "trials_failed": sum(trial.status != "complete" for trial in o.trials),
        }
        for o in optima
    ]


def optima_table(study: Study) -> Table:
    """Return the best share per cell."""
    keys = ("synthetic", "model", "train_tokens", "best_share", "best_loss", "natural_only_loss", "gain_nats",
            "noise_nats", "trials", "search")  # fmt: skip
    notes = [
        f"{o.synthetic}, {o.model}, {amount(o.train_tokens)} tokens: {'; '.join(o.warnings)}."
        for o in study.optima
        if o.warnings
    ]
    notes += split_notes(study.optima)
    methods = sorted({f"Method: {o.method}." for o in study.optima})
    caption = "Best synthetic share of each searched cell: minimum of the smooth fit, with its interval"
    rows = tuple(optimum_rows(study.optima))
    return Table("optima", caption, _columns(OPTIMUM_COLUMNS, keys), rows, tuple(notes + methods))


EQUAL_LOSS_COLUMNS = (
    Column("recommendation", "Recommendation"),
    Column("target_num_params", "Target N", "amount"),
    Column("target_train_tokens", "Target D", "amount"),
    Column("natural_only_loss", "Loss to reach", "loss"),
    Column("group", "Mixture"),
    Column("tokens", "Tokens to reach it", "amount"),
    Column("speed_up", "Speed-up", "times"),
)


def equal_loss_rows(recommendations: dict[str, Recommendation]) -> list[dict[str, Any]]:
    """Return one row per recommendation and mixture."""
    return [
        {
            "recommendation": name,
            "target_num_params": each.target_num_params,
            "target_train_tokens": each.target_train_tokens,
            "natural_only_loss": each.natural_only_loss,
            "group": equal.group,
            "tokens": equal.tokens,
            "speed_up": equal.speed_up,
        }
        for name, each in sorted(recommendations.items())
        for equal in each.equal_loss
    ]


def equal_loss_tables(study: Study) -> list[Table]:
    """Return one table per recommendation."""
    tables = []
    for name, each in sorted(study.recommendations.items()):
        rows = tuple(equal_loss_rows({name: each}))
        caption = f"Tokens each mixture needs for the loss that natural text alone reaches ({name})"
        tables.append(
            Table(
                f"equal-loss-{name}",
                caption,
                _columns(EQUAL_LOSS_COLUMNS, ("group", "tokens", "speed_up")),
                rows,
            )
        )
    return tables


def split_notes(optima: Iterable[CellOptimum]) -> list[str]:
    """Return the best share of every source in words, for searches of several."""
    return [
        f"{o.synthetic}, {o.model}, {amount(o.train_tokens)} tokens: best at "
        + ", ".join(f"{name} {show_interval(share, 'percent')}" for name, share in o.best_shares.items())
        + "."
        for o in optima
        if o.best_shares
    ]
