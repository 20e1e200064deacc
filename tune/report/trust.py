"""Tables on how far to trust the laws and the answer: what it hangs on, what to train next, how laws were chosen, what the
rows put limits on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from synth.errors import UserError
from tune.laws import Isoflop, isoflop
from tune.laws.identify import NEGLIGIBLE_SHARE
from tune.report.inputs import Study
from tune.report.tables import Column, Table
from tune.results import Interval, Recommendation, Selection

AS_RECOMMENDED = "as recommended"

# --- the answer ------------------------------------------------------------------------------------------------

SENSITIVITY_COLUMNS = (
    Column("recommendation", "Recommendation"),
    Column("what", "If", "prose"),
    Column("synthetic", "From"),
    Column("best_share", "Best share", "percent"),
    Column("predicted_loss", "Loss there", "loss"),
    Column("gain_nats", "Gain on natural text, nats", "loss"),
    Column("pays", "Pays", "verdict"),
)
NEXT_COLUMNS = (
    Column("recommendation", "Recommendation"),
    Column("place", "Order", "count"),
    Column("model", "Model"),
    Column("num_params", "N", "amount"),
    Column("train_tokens", "D", "amount"),
    Column("runs", "Runs", "count"),
    Column("flops", "6 N D", "flops"),
    Column("expected_interval_width", "Expected width of the interval then", "percent"),
)


def sensitivity_rows(recommendations: dict[str, Recommendation]) -> list[dict[str, Any]]:
    """Return the answer as it stands and what it would be had one thing been different, by recommendation."""
    rows = []
    for name, each in sorted(recommendations.items()):
        if not each.sensitivity:
            continue
        rows.append({
            "recommendation": name, "what": AS_RECOMMENDED, "synthetic": each.synthetic, "best_share": each.best_share,
            "predicted_loss": each.predicted_loss, "pays": each.pays,
            "gain_nats": each.natural_only_loss.value - each.predicted_loss.value,
        })  # fmt: skip
        rows += [
            {"recommendation": name} | {key: getattr(other, key) for key in _keys(SENSITIVITY_COLUMNS)}
            for other in each.sensitivity
        ]
    return rows


def next_rows(recommendations: dict[str, Recommendation]) -> list[dict[str, Any]]:
    """Return the cells worth training next, in their order, by recommendation."""
    return [
        {"recommendation": name, "place": place}
        | {key: getattr(cell, key) for key in _keys(NEXT_COLUMNS) if key != "place"}
        for name, each in sorted(recommendations.items())
        for place, cell in enumerate(each.next_cells, start=1)
    ]


def answer_tables(study: Study) -> list[Table]:
    """Return two tables per recommendation: what the answer hangs on, and what to train next."""
    found = []
    for name, each in sorted(study.recommendations.items()):
        if rows := sensitivity_rows({name: each}):
            caption = f"The answer had one thing been different ({name})"
            found.append(Table(f"sensitivity-{name}", caption, SENSITIVITY_COLUMNS[1:], tuple(rows)))
        if rows := next_rows({name: each}):
            width = _width(each.best_share)
            note = (
                "Each cell is trained with every share and seed of the plan, after those above it"
                + (f"; the interval is {width:.0%} wide now" if width is not None else "")
                + f". The plan that trains them: pretrain_models --config recommendations/{name}.next.toml."
            )
            caption = (
                f"What to train next: the cells that are expected to narrow the laws' interval most ({name})"
            )
            found.append(Table(f"next-{name}", caption, NEXT_COLUMNS[1:], tuple(rows), (note,)))
    return found


def _width(share: Interval) -> float | None:
    return None if share.low is None or share.high is None else share.high - share.low


def _keys(columns: Sequence[Column]) -> list[str]:
    return [column.key for column in columns if column.key != "recommendation"]


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
        hidden = {"compared"} | {
            column.key for column in SELECTION_COLUMNS if all(row.get(column.key) is None for row in mine)
        }
        columns = tuple(column for column in SELECTION_COLUMNS if column.key not in hidden)
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
        caption = f"Profile likelihood: values of one parameter that fit about equally well when all others follow it ({confidence:.0%})"
        tables.append(Table("profiles", caption, PROFILE_COLUMNS, tuple(rows)))
    return tables
