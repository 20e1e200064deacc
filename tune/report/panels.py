"""Which runs go into which figure: from a study to the typed panels of `tune.report.figures`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tune.laws.fitted import FittedLaw
from tune.observations import mixture_label
from tune.report.figures import (
    CellPanel,
    HeatMap,
    LawCurve,
    LawPanel,
    LawSeries,
    SharePoint,
)
from tune.report.figures_training import CurvesPanel, TrainingCurve
from tune.report.format import amount
from tune.report.inputs import Study, StudyRun
from tune.report.tables import search_runs

CURVE_POINTS = 80
BEYOND_DATA = 2.0
"""Curves are drawn this many times beyond the data on either axis: far enough to see where they go, no further."""


def synthetic_sources(study: Study) -> list[str]:
    """Return the synthetic sources of the plan and the searches, sorted."""
    planned = {run.synthetic for run in study.runs if run.synthetic is not None}
    return sorted(planned | {optimum.synthetic for optimum in study.optima})


def all_shares(study: Study) -> list[float]:
    """Return the shares of the plan, ascending."""
    return sorted({run.share for run in study.runs})


# --- loss against share ----------------------------------------------------------------------------------------


def cell_panels(study: Study) -> list[CellPanel]:
    """Return every (N, D) cell with at least two measured shares or a search, smallest first."""
    panels = []
    searched = [run for _, run in search_runs(study)]
    optima = {(o.model, o.train_tokens) for o in study.optima}
    for model, tokens in sorted({*_cells(study.runs), *optima}, key=lambda cell: _size(study, cell)):
        cell = (model, tokens)
        points = [
            *(p for run in study.runs if _cell(run) == cell for p in _share_points(run, "grid")),
            *(p for run in searched if _cell(run) == cell for p in _share_points(run, "search")),
        ]
        if len({point.share for point in points}) < 2:
            continue
        panels.append(
            CellPanel(
                name=f"loss-by-share-{model}-{tokens}".replace(".", "-"),
                model=model,
                num_params=_size(study, cell)[0],
                train_tokens=tokens,
                points=tuple(_once_each(points)),
                optima=tuple(o for o in study.optima if (o.model, o.train_tokens) == cell),
            )
        )
    return panels


def _share_points(run: StudyRun, origin: str) -> Iterator[SharePoint]:
    if run.loss is not None:
        source = run.synthetic if run.share > 0 else None
        yield SharePoint(source, run.share, run.loss, run.run_id, origin)


def _once_each(points: Iterable[SharePoint]) -> list[SharePoint]:
    """Keep one point per run: a trial that the plan had trained already counts as the plan's."""
    kept: dict[str, SharePoint] = {}
    for point in points:
        kept.setdefault(point.run_id, point)
    return list(kept.values())


def _cell(run: StudyRun) -> tuple[str, int]:
    return run.model, run.train_tokens


def _cells(runs: Iterable[StudyRun]) -> set[tuple[str, int]]:
    return {_cell(run) for run in runs}


def _size(study: Study, cell: tuple[str, int]) -> tuple[int, int]:
    sizes = {run.model: run.num_params for run in study.runs} | {o.model: o.num_params for o in study.optima}
    return sizes[cell[0]], cell[1]


# --- laws ------------------------------------------------------------------------------------------------------


def law_panels(study: Study, on_tokens: bool) -> list[LawPanel]:
    """Return one panel per synthetic source and fixed value of the other axis: natural text and its mixtures."""
    found = [fit for fitted in study.laws if (fit := _mixture_fit(study, fitted, on_tokens)) is not None]
    # Where a rectified law was fitted beside a data law, the paper's form is the one that is drawn.
    found.sort(key=lambda fit: fit.fitted.record.law not in ("data", "model"))
    fits = list({(fit.source, fit.share, fit.fixed): fit for fit in reversed(found)}.values())
    panels = []
    for fixed in sorted({fit.fixed for fit in fits}):
        here = sorted(
            (fit for fit in fits if fit.fixed == fixed), key=lambda fit: (fit.share, fit.source or "")
        )
        sources: list[str | None] = [*sorted({fit.source for fit in here if fit.source is not None})]
        panels += [
            _law_panel(study, source, fixed, [f for f in here if f.source in (None, source)], on_tokens)
            for source in sources or [None]
        ]
    return panels


@dataclass(frozen=True)
class _MixtureFit:
    """A one-axis law of one mixture."""

    source: str | None
    share: float
    fixed: tuple[tuple[str, float], ...]
    fitted: FittedLaw


def _mixture_fit(study: Study, fitted: FittedLaw, on_tokens: bool) -> _MixtureFit | None:
    """Return the fit with its mixture; None for the other axis and for rows that say nothing of a mixture."""
    if fitted.record.axis != ("tokens" if on_tokens else "params"):
        return None
    row = _fitted_rows(study, fitted)[0]
    if row.get("share") is None:
        return None
    return _MixtureFit(
        row["synthetic"], float(row["share"]), tuple(sorted(fitted.record.fixed.items())), fitted
    )


def _law_panel(
    study: Study,
    source: str | None,
    fixed: tuple[tuple[str, float], ...],
    fits: list[_MixtureFit],
    on_tokens: bool,
) -> LawPanel:
    symbols = {"num_params": "N", "train_tokens": "D"}
    held = ", ".join(f"{symbols.get(name, name)} = {amount(value)}" for name, value in fixed)
    slug = "-".join(
        ["law", "d" if on_tokens else "n", source or "natural", *(str(round(value)) for _, value in fixed)]
    )
    return LawPanel(
        name=slug.replace(".", "-"),
        title=f"natural + {source}, {held}" if source else f"natural only, {held}",
        x_label="training tokens D" if on_tokens else "non-embedding parameters N",
        on_tokens=on_tokens,
        series=tuple(_series(study, fit, on_tokens) for fit in fits),
    )


def _fitted_rows(study: Study, fitted: FittedLaw) -> list[dict[str, Any]]:
    used = set(fitted.record.rows_used)
    group = fitted.record.group
    return [row for row in study.laws.file.rows if row["run_id"] in used and row["group"] == group]


def _series(study: Study, fit: _MixtureFit, on_tokens: bool) -> LawSeries:
    column = "train_tokens" if on_tokens else "num_params"
    fitted = fit.fitted
    rows = _fitted_rows(study, fitted)
    points = tuple(sorted((float(row[column]), float(row["loss"]), str(row["run_id"])) for row in rows))
    x = np.geomspace(points[0][0], points[-1][0] * BEYOND_DATA, CURVE_POINTS)
    loss, low, high = fitted.curve({column: x})
    curve = LawCurve(x.tolist(), loss.tolist(), _listed(low), _listed(high))
    held_out = fitted.record.hold_out.points if fitted.record.hold_out else ()
    return LawSeries(mixture_label(fit.source, fit.share), fit.share, points, held_out, curve)


def _listed(values: Any) -> list[float] | None:
    return None if values is None else values.tolist()


# --- domains and training --------------------------------------------------------------------------------------


def domain_heat_map(study: Study) -> HeatMap | None:
    """Return the heat map of the largest cell that the most mixtures share; None without two mixtures anywhere."""
    cells: dict[tuple[str, int], dict[tuple[str, float], StudyRun]] = {}
    for run in sorted(study.runs, key=lambda run: (run.seed, run.run_id)):
        if run.record is not None and run.record.final is not None:
            cells.setdefault(_cell(run), {}).setdefault((run.synthetic or "", run.share), run)
    if not cells:
        return None
    cell = max(cells, key=lambda cell: (len(cells[cell]), *_size(study, cell)))
    columns = [run for _, run in sorted(cells[cell].items(), key=lambda item: (item[0][1] > 0, item[0]))]
    if len(columns) < 2:
        return None
    finals = [run.record.final for run in columns if run.record and run.record.final]
    domains = sorted({domain for final in finals for domain in final.domains})
    values = tuple(
        tuple(final.domains[domain].bits_per_byte if domain in final.domains else None for final in finals)
        for domain in domains
    )
    title = f"Bits per byte, {cell[0]} parameters, {amount(cell[1])} tokens"
    mixtures = tuple(run.mixture for run in columns)
    return HeatMap(title, tuple(domains), mixtures, values, tuple(run.run_id for run in columns), reference=0)


def training_panels(study: Study) -> list[CurvesPanel]:
    """Return one panel per synthetic source of the plan and model size, natural-only runs in each."""
    first_seed = min((run.seed for run in study.runs), default=0)
    runs = [run for run in study.runs if run.seed == first_seed]
    sources: list[str | None] = [*sorted({run.synthetic for run in runs if run.synthetic is not None})]
    models = sorted({run.model: run.num_params for run in runs}.items(), key=lambda item: item[1])
    panels = []
    for source in sources or [None]:
        for model, _ in models:
            chosen = [run for run in runs if run.model == model and run.synthetic in (None, source)]
            ordered = sorted(chosen, key=lambda run: (run.share, run.train_tokens))
            curves = tuple(curve for run in ordered if (curve := _training_curve(study, run)).tokens)
            if any(len(curve.tokens) > 1 for curve in curves):
                name = f"training-{source or 'natural'}-{model}".replace(".", "-")
                title = (
                    f"natural + {source}, {model} parameters" if source else f"natural, {model} parameters"
                )
                panels.append(CurvesPanel(name, title, curves))
    return panels


def _training_curve(study: Study, run: StudyRun) -> TrainingCurve:
    logged = [step for step in study.training.get(run.run_id, ()) if step.loss_nats_per_token is not None]
    evaluations = run.record.evaluations if run.record else ()
    return TrainingCurve(
        run_id=run.run_id,
        label=run.mixture,
        share=run.share,
        tokens=[step.train_tokens for step in logged],
        loss=[step.loss_nats_per_token for step in logged if step.loss_nats_per_token is not None],
        evaluated_tokens=[evaluation.train_tokens for evaluation in evaluations],
        evaluated_loss=[evaluation.loss_nats_per_token for evaluation in evaluations],
    )
