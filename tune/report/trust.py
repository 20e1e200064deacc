"""Tables on how far to trust the laws and the answer: what it hangs on, what to train next, how laws were chosen, what the
rows put limits on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from synth.errors import UserError
from synth.percentage import percentage
from tune.laws import Isoflop, isoflop
from tune.laws.identify import NEGLIGIBLE_SHARE
from tune.report.format import percent
from tune.report.inputs import Study
from tune.report.table import Column, Table
from tune.results import Interval, Recommendation, Selection, Sensitivity, ShareByLaw

AS_RECOMMENDED = "as recommended"

# --- the answer ------------------------------------------------------------------------------------------------

SENSITIVITY_COLUMNS = (
    Column("recommendation", "Recommendation"),
    Column("what", "If", "prose"),
    Column("synthetic", "From"),
    Column("best_share", "Best share", "percent"),
    Column("predicted_loss", "Loss there", "loss"),
    Column("gain_nats", "Gain on natural text, nats", "loss"),
    Column("natural_cost_ratio", "Natural text alone costs", "times"),
    Column("pays", "Pays", "verdict"),
)
NEXT_COLUMNS = (
    Column("recommendation", "Recommendation"),
    Column("place", "Order", "count"),
    Column("what", "Add a"),
    Column("model", "Model"),
    Column("num_params", "N", "amount"),
    Column("train_tokens", "D", "amount"),
    Column("share", "Share", "percent"),
    Column("seed", "Seed", "count"),
    Column("runs", "Runs", "count"),
    Column("flops", "6 N D", "flops"),
    Column("expected_interval_width", "Expected width of the interval then", "percent"),
)


def sensitivity_rows(recommendations: dict[str, Recommendation]) -> list[dict[str, Any]]:
    """Return the answer as it stands and what it would be had one thing been different, by recommendation."""
    rows = []
    for name, each in recommendations.items():
        if not each.sensitivity:
            continue
        gain = each.natural_only_loss.value - each.predicted_loss.value
        rows.append(_sensitivity_row(name, AS_RECOMMENDED, each, gain))
        rows += [_sensitivity_row(name, other.what, other, other.gain_nats) for other in each.sensitivity]
    return rows


def _sensitivity_row(
    name: str, what: str, answer: Recommendation | Sensitivity, gain: float
) -> dict[str, Any]:
    copied = ("synthetic", "best_share", "predicted_loss", "natural_cost_ratio", "pays")
    return {key: getattr(answer, key) for key in copied} | {
        "recommendation": name,
        "what": what,
        "gain_nats": answer.gain or Interval(value=gain),
    }


def next_rows(recommendations: dict[str, Recommendation]) -> list[dict[str, Any]]:
    """Return what is worth adding to the plan next, in order, by recommendation."""
    return [
        {"recommendation": name, "place": place}
        | {column.key: getattr(cell, column.key) for column in NEXT_COLUMNS[2:]}
        for name, each in recommendations.items()
        for place, cell in enumerate(each.next_cells, start=1)
    ]


def answer_tables(study: Study) -> list[Table]:
    """Return two tables per recommendation: what the answer hangs on, and what to train next."""
    found = []
    for name, each in study.recommendations.items():
        if rows := sensitivity_rows({name: each}):
            caption = f"The answer had one thing been different ({name})"
            columns = _with_values(SENSITIVITY_COLUMNS[1:], rows)
            notes = (_COST_NOTE,) if any(column.key == "natural_cost_ratio" for column in columns) else ()
            found.append(Table(f"sensitivity-{name}", caption, columns, tuple(rows), notes))
        if rows := next_rows({name: each}):
            caption = (
                f"What to train next: what is expected to narrow the interval of the best share most ({name})"
            )
            columns = _with_values(NEXT_COLUMNS[1:], rows)
            found.append(Table(f"next-{name}", caption, columns, tuple(rows), (_next_note(name, each),)))
    return found


_COST_NOTE = (
    "Natural text alone costs: what it takes to lose as little, over what the share takes with its generation. The share pays "
    "where the whole interval is above 1. A dash where a cost is not known, or natural text never gets there."
)


def _next_note(name: str, recommendation: Recommendation) -> str:
    width = _width(recommendation.best_share)
    now = f" The interval is {percent(width)} wide now." if width is not None else ""
    return (
        "A cell is trained with every share and seed of the plan, a share or a seed in every cell of it; each is added to those "
        f"above it.{now} The plan that trains them, and the command: recommendations/{name}.next.toml."
    )


def _with_values(columns: Sequence[Column], rows: Iterable[dict[str, Any]]) -> tuple[Column, ...]:
    """Return the columns that any of the rows has a value for."""
    rows = list(rows)
    return tuple(column for column in columns if any(row.get(column.key) is not None for row in rows))


def _width(share: Interval) -> float | None:
    return None if share.low is None or share.high is None else share.high - share.low


# --- how the laws were chosen ----------------------------------------------------------------------------------

SELECTION_COLUMNS = (
    Column("compared", "Compared"),
    Column("law", "Law"),
    Column("chosen", "Chosen", "verdict"),
    Column("num_parameters", "Parameters", "count"),
    Column("num_params", "Largest N", "error"),
    Column("train_tokens", "Largest D", "error"),
    Column("compute", "Largest 6 N D", "error"),
    Column("in_sample", "Objective in sample", "scientific"),
    Column("reason", "Why not compared", "prose"),
)


def selections(study: Study) -> list[tuple[str, Selection]]:
    """Return every comparison of laws once, with the laws that took part in words."""
    found: list[Selection] = []
    for fit in study.laws.file.fits:
        if fit.selection is not None and fit.selection not in found:
            found.append(fit.selection)
    return [(" or ".join(score.law for score in each.scores), each) for each in found]


def selection_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row per law compared: the errors of predicting what was held out, best first."""
    return [
        {
            "compared": name,
            "law": score.law,
            "chosen": "yes" if score.law == selection.law else None,
            "num_parameters": score.num_parameters,
            "in_sample": score.in_sample,
            "reason": score.reason,
        }
        | score.held_out
        for name, selection in selections(study)
        for score in selection.scores
    ]


def _selection_tables(study: Study) -> Iterable[Table]:
    rows = selection_rows(study)
    for place, (name, selection) in enumerate(selections(study)):
        mine = tuple(row for row in rows if row["compared"] == name)
        columns = _with_values(SELECTION_COLUMNS[1:], mine)
        caption = f"Laws compared by their error on what they had not seen: {name}"
        yield Table(
            f"selection-{place + 1}",
            caption,
            columns,
            mine,
            (f"Chosen: {selection.law}, {selection.reason}.",),
        )


# --- compute-optimal exponents ---------------------------------------------------------------------------------

FRONTIER_COLUMNS = (
    Column("law", "Law"),
    Column("group", "Mixture"),
    Column("num_params_exponent", "a in N* ~ C^a", "number"),
    Column("train_tokens_exponent", "b in D* ~ C^b", "number"),
    Column("compute_flops", "At a budget of", "flops"),
    Column("num_params", "N*", "amount"),
    Column("train_tokens", "D*", "amount"),
    Column("tokens_per_param", "D*/N*", "number"),
    Column("loss", "Loss", "loss"),
)
ISOFLOP_COLUMNS = (
    Column("group", "Mixture"),
    Column("exponent", "a in N* ~ C^a", "number"),
    Column("tokens_exponent", "b in D* ~ C^b", "number"),
    Column("budgets", "Budgets with an optimum inside", "count"),
    Column("reason", "Why there is none", "prose"),
)


def frontier_rows(study: Study) -> list[dict[str, Any]]:
    """Return compute-optimal sizes and budgets by law, mixture and compute; exponents on the first row of each."""
    rows = []
    for fit in study.laws.file.fits:
        for place, point in enumerate(fit.frontier.points if fit.frontier else ()):
            row: dict[str, Any] = {"law": fit.law, "group": fit.group}
            row |= {key: getattr(point, key) for key in ("compute_flops", "num_params", "train_tokens", "tokens_per_param", "loss")}  # fmt: skip
            if place == 0 and fit.frontier is not None:
                row["num_params_exponent"] = fit.frontier.num_params_exponent
                row["train_tokens_exponent"] = fit.frontier.train_tokens_exponent
            rows.append(row)
    return rows


SHARE_BY_LAW_COLUMNS = (
    Column("law", "Law"),
    Column("group", "Source"),
    Column("num_params", "N, parameters", "amount"),
    Column("train_tokens", "D, tokens", "amount"),
    Column("best_share", "Best share", "percent"),
)


def share_by_law_rows(study: Study) -> list[dict[str, Any]]:
    """Return the best share of each cell by each law that knows the share."""
    return [
        {"law": fit.law, "group": fit.group, **{key: getattr(each, key) for key in ShareByLaw.model_fields}}
        for fit in study.laws.file.fits
        for each in fit.best_shares
    ]


def isoflop_rows(study: Study) -> list[dict[str, Any]]:
    """Return the exponents of each mixture without a law, or why its runs give none."""
    rows = [row for row in study.laws.file.rows if row["used"] and row["num_params"] and row["train_tokens"]]
    found = []
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group]
        sizes = [row["num_params"] for row in mine]
        compute = [6.0 * row["num_params"] * row["train_tokens"] for row in mine]
        try:
            found.append(_isoflop_row(group, isoflop(sizes, compute, [row["loss"] for row in mine])))
        except UserError as error:
            found.append({"group": group, "reason": str(error)})
    return found


def _isoflop_row(group: str, found: Isoflop) -> dict[str, Any]:
    used = sum(budget.num_params is not None for budget in found.budgets)
    return {
        "group": group,
        "exponent": found.exponent,
        "tokens_exponent": found.tokens_exponent,
        "budgets": used,
    }


def _exponent_tables(study: Study) -> Iterable[Table]:
    if rows := [row for row in frontier_rows(study) if "num_params_exponent" in row]:
        caption = (
            "Compute-optimal training by the joint laws, C = 6 N D; sizes at the compute of the largest run"
        )
        note = "frontier.csv has ten, a hundred and a thousand times that compute too."
        yield Table("frontier", caption, FRONTIER_COLUMNS, tuple(rows), (note,))
    if rows := share_by_law_rows(study):
        caption = "Best share by the laws that know it, with the interval of their resamples"
        note = "The recommendation does not use them: such a law has one polynomial in the share for all N and D."
        yield Table("share-by-law", caption, SHARE_BY_LAW_COLUMNS, tuple(rows), (note,))
    rows = isoflop_rows(study)
    if any("exponent" in row for row in rows):
        caption = (
            "The same without a law: a parabola in log N through the runs of each compute budget (isoFLOP)"
        )
        yield Table("isoflop", caption, ISOFLOP_COLUMNS, tuple(rows))


def isoflop_note(study: Study) -> tuple[str, ...]:
    """Return why there are no isoFLOP exponents at all; nothing when there are some."""
    rows = isoflop_rows(study)
    if not rows or any("exponent" in row for row in rows):
        return ()
    return (f"No exponents without a law (isoFLOP): {rows[0]['reason']}.",)


# --- what the rows put limits on -------------------------------------------------------------------------------

PROFILE_COLUMNS = (
    Column("law", "Law"),
    Column("group", "Mixture"),
    Column("parameter", "Parameter"),
    Column("value", "Optimum", "number"),
    Column("low", "From", "number"),
    Column("high", "To", "number"),
    Column("identified", "Identified", "verdict"),
    Column("verdict", "In words", "prose"),
)


def profile_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row per fit and parameter: what its profile likelihood says.

    A floor at 0 has a narrow profile, and still the rows show no sign of it: it is called neither identified nor weak.
    """
    losses = [row["loss"] for row in study.laws.file.rows if row["used"]]
    nothing = NEGLIGIBLE_SHARE * min(losses, default=0.0)
    rows = []
    for fit in study.laws.file.fits:
        for name, profile in fit.profiles.items():
            value = fit.parameters[name].value
            known = "at 0" if name == "E" and value < nothing else "weakly" if profile.weak else "yes"
            rows.append({
                "law": fit.law, "group": fit.group, "parameter": name, "value": value, "low": profile.low,
                "high": profile.high, "identified": known, "verdict": profile.verdict, "run_ids": fit.rows_used,
            })  # fmt: skip
    return rows


def trust_tables(study: Study) -> list[Table]:
    """Return everything on how far to trust the laws: choices, exponents, profiles."""
    tables = [*_selection_tables(study), *_exponent_tables(study)]
    if rows := profile_rows(study):
        confidence = study.laws.file.fits[0].confidence
        caption = f"Profile likelihood: values of one parameter that fit about equally well when all others follow it ({percentage(confidence)})"
        tables.append(Table("profiles", caption, PROFILE_COLUMNS, tuple(rows)))
    return tables
