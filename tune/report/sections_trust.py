"""The sections on how far to trust the answer and the laws behind it."""

from __future__ import annotations

from collections.abc import Iterator

from tune.report.figures_trust import ForestRow, draw_errors, draw_forest
from tune.report.inputs import Study
from tune.report.section import Section
from tune.report.svg import Drawing
from tune.report.trust import (
    answer_tables,
    isoflop_note,
    profile_rows,
    selections,
    sensitivity_rows,
    trust_tables,
)
from tune.results import Interval

_PAYS_ROLES = {"yes": "better", "no": "worse"}
_PARAMETER_TITLES = {
    "alpha": "alpha, exponent of N",
    "beta": "beta, exponent of D",
    "gamma": "gamma, exponent of both",
    "E": "E, irreducible loss",
}


def what_if(study: Study) -> Section:
    """Return what the answer hangs on and what to train next."""
    name, title = "what-if", "What would change the answer"
    tables = answer_tables(study)
    if not tables:
        line = "No recommendation of this report has a sensitivity table: run recommend_mixture and name it in recommendations."
        return Section(name, title, "", absent=line)
    lead = (
        "The same answer with one thing different at a time: the target twice and half as large, generation dearer and cheaper. "
        "Where the best share moves or the verdict turns, that thing is worth knowing better. Blue pays, orange does not."
    )
    return Section(name, title, lead, drawings=tuple(_sensitivities(study)), tables=tuple(tables))


def _sensitivities(study: Study) -> Iterator[Drawing]:
    runs = [run.run_id for run in study.runs if run.loss is not None]
    for name in study.recommendations:
        rows = sensitivity_rows({name: study.recommendations[name]})
        if rows:
            forest = [
                _forest_row(
                    f"{row['what']}",
                    row["best_share"],
                    _PAYS_ROLES.get(row["pays"], "muted"),
                    f"pays: {row['pays']}",
                )
                for row in rows
            ]
            drawing_name = f"sensitivity-{name}".replace(".", "-")
            title = f"Best share had one thing been different ({name})"
            yield draw_forest(
                drawing_name, title, "best synthetic share", forest, "percent", runs, (0.0, 1.0)
            )


def _forest_row(label: str, interval: Interval, role: str, tip: str) -> ForestRow:
    has = interval.low is not None or interval.high is not None
    return ForestRow(label, interval.value, interval.low, interval.high, role, tip, has)


def trust(study: Study) -> Section:
    """Return how the laws were chosen, their exponents, and what the rows put limits on."""
    name, title = "trust", "How far to trust the laws"
    tables = trust_tables(study)
    notes = (*study.laws.file.notes, *isoflop_note(study))
    if not tables:
        line = "These fits have neither a comparison of laws nor a profile: too few runs for either."
        return Section(name, title, "", absent=line, notes=notes)
    lead = (
        "Which law predicts best what it has not seen; how compute should be split between size and data; and which parameters "
        "the runs put limits on. A parameter that is only weakly identified says little by itself, however small the error of "
        "the curve. Blue is identified, orange is not."
    )
    drawings = (*_choices(study), *_profiles(study))
    return Section(name, title, lead, drawings=drawings, tables=tuple(tables), notes=notes, collapsed=True)


def _choices(study: Study) -> Iterator[Drawing]:
    for place, (_, selection) in enumerate(selections(study), start=1):
        errors = [(score.law, score.held_out) for score in selection.scores if any(score.held_out.values())]
        if len(errors) > 1:
            fits = [fit for fit in study.laws.file.fits if fit.selection == selection]
            runs = [run_id for fit in fits for run_id in fit.rows_used]
            title = f"Error on what was held out: {' or '.join(law for law, _ in errors)}"
            yield draw_errors(
                f"extrapolation-{place}",
                title if len(title) < 60 else "Error on what was held out",
                errors,
                runs,
            )


def _profiles(study: Study) -> Iterator[Drawing]:
    rows = profile_rows(study)
    for parameter, title in _PARAMETER_TITLES.items():
        mine = [row for row in rows if row["parameter"] == parameter]
        if not mine:
            continue
        forest = [
            ForestRow(f"{row['law']} · {row['group']}", row["value"], row["low"], row["high"],
                      "better" if row["identified"] == "yes" else "worse", f"identified: {row['identified']}, run {row['run_ids'][0]}")
            for row in mine
        ]  # fmt: skip
        runs = [run_id for row in mine for run_id in row["run_ids"]]
        label = f"{parameter}: values that fit about equally well"
        yield draw_forest(f"profiles-{parameter}", title, label, forest, "number", runs)
