"""`compare_studies`: a comparison as one self-contained page, as Markdown, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter
from pydantic import BaseModel

from synth.percentage import signed_percentage
from synth.plan import Plan
from synth.progress import Progress
from synth.storage import study_path, write_text_atomic
from tune.config import CompareConfig
from tune.report.comparison import Comparison, Difference, compare
from tune.report.format import percent
from tune.report.page import environment_of_report, with_script
from tune.report.style import open_panel, write_heading
from tune.report.svg import PALETTE, Drawing, finish_drawing, house_style, light
from tune.report.table import Column, Table
from tune.results import Interval

MADE_BY = "compare_studies"
PAGE, MARKDOWN, DATA = "index.html", "comparison.md", "comparison.json"

_MEASURES = {
    "loss_nats_per_token": "held-out loss, nats per token",
    "bits_per_byte": "held-out bits per byte",
}
_DIFFERENCE_COLUMNS = (
    Column("what", "Mixed in"),
    Column("share", "Share", "percent"),
    Column("relative", "B against A", "signed_percent"),
    Column("verdict", "Verdict", "verdict"),
    Column("cells", "Cells", "count"),
    Column("pairs", "Pairs", "count"),
)
_DIFFERING_COLUMNS = (Column("artefact", "Artefact"), Column("field", "Field", "code"), Column("a", "A", "prose"), Column("b", "B", "prose"))  # fmt: skip
_SHARE_COLUMNS = (
    Column("what", "Source"),
    Column("model", "Model"),
    Column("train_tokens", "D", "amount"),
    Column("a", "Best share of A", "percent"),
    Column("b", "Best share of B", "percent"),
    Column("difference", "B less A", "signed_percent"),
)
_GENERATION_COLUMNS = (
    Column("study", "Study"),
    Column("synthetic", "Set"),
    Column("model", "Generator"),
    Column("recipes", "Recipes"),
    Column("kept_fraction", "Rows kept", "percent"),
    Column("accepted_tokens", "Tokens accepted", "amount"),
    Column("tokens_per_device_second", "Accepted tokens/s and device", "number"),
    Column("device_hours_per_billion", "Device-hours per billion", "number"),
)


def plan_comparison(config: CompareConfig) -> Plan:
    """Return what `compare_studies` would do. Raises UserError when the studies have nothing to pair."""
    found = compare(config)
    facts: dict[str, object] = {
        "pairs": sum(each.pairs for each in found.by_share if each.share is not None),
        "measure": _MEASURES[found.measure],
        "fields in which the studies differ": len(found.differing),
    }
    return Plan(MADE_BY, str(study_path(config.root, config.name, PAGE)), False, facts, found.warnings)


def write_comparison(config: CompareConfig) -> Comparison:
    """Write page, Markdown and JSON under `<root>/<name>/`; the same studies give the same bytes."""
    found = compare(config)
    contents = render_comparison(found)
    for name, text in contents.items():
        write_text_atomic(study_path(config.root, config.name, name), text)
    Progress(MADE_BY, 1, "comparisons").advance(note=str(study_path(config.root, config.name, PAGE)))
    return found


def render_comparison(found: Comparison) -> dict[str, str]:
    """Return the files of a comparison, name -> text."""
    tables = comparison_tables(found)
    drawing = draw_differences(found)
    context: dict[str, Any] = {
        "found": found, "answer": answer_of(found), "measure": _MEASURES[found.measure], "tables": tables,
        "drawing": drawing, "palette": PALETTE, "title": "Two studies compared", "short": 8, "linked": False,
    }  # fmt: skip
    environment = environment_of_report()
    context = with_script(environment, context)
    return {
        PAGE: environment.get_template("comparison.html.j2").render(context),
        MARKDOWN: environment.get_template("comparison.md.j2").render(context),
        DATA: json.dumps(_plain(found), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
    }


def answer_of(found: Comparison) -> str:
    """Return in one sentence what was found."""
    whole = [each for each in found.by_share if each.share is None] or list(found.by_share)
    says = "; ".join(
        f"{each.what}: {each.verdict} ({_shown(each.relative)}, {each.cells} cells)" for each in whole
    )
    return f"{says}." if found.texts is None else f"On different held-out texts, {says}."


def _shown(relative: Interval) -> str:
    ends = "" if relative.low is None or relative.high is None else (
        f" [{signed_percentage(math.expm1(relative.low))}, {signed_percentage(math.expm1(relative.high))}]"
    )  # fmt: skip
    return f"{signed_percentage(math.expm1(relative.value))}{ends}"


def comparison_tables(found: Comparison) -> list[Table]:
    """Return all tables in reading order; empty ones are left out."""
    measure = _MEASURES[found.measure]
    tables = [
        Table("by-share", f"Relative difference of {measure}, B against A, paired by cell and seed; below 0 B is better",
              _DIFFERENCE_COLUMNS, _rows(found.by_share)),
        Table("gains", "The same with each study's own natural text taken off: what the synthetic text alone is worth",
              _DIFFERENCE_COLUMNS, _rows(found.gains)),
        Table("by-domain", "Relative difference of bits per byte by held-out domain, all shares together",
              (Column("what", "Domain"), *_DIFFERENCE_COLUMNS[2:]), _rows(found.by_domain, by_share=False)),
        Table("best-shares", "Best share of cells both studies searched", _SHARE_COLUMNS,
              tuple(dataclasses.asdict(each) | {"a": each.a, "b": each.b, "difference": each.difference} for each in found.best_shares)),
        Table("generation", "What the synthetic text took", _GENERATION_COLUMNS, found.generation),
        Table("differing", "Fields of the recipes in which the two differ", _DIFFERING_COLUMNS, found.differing),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


def _rows(differences: Sequence[Difference], by_share: bool = True) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"what": _label(each) if by_share and each.share is None else each.what, "share": each.share, "relative": _relative(each.relative), "verdict": each.verdict,
         "cells": each.cells, "pairs": each.pairs}
        for each in differences
    )  # fmt: skip


def _relative(log_ratio: Interval) -> Interval:
    """Return exp - 1 of a mean log ratio and its ends."""
    low, high = (None if end is None else math.expm1(end) for end in (log_ratio.low, log_ratio.high))
    return Interval(value=math.expm1(log_ratio.value), low=low, high=high)


def draw_differences(found: Comparison) -> Drawing:
    """Draw every difference by share with its interval, one row each; left of the line B is better."""
    rows = list(reversed(found.by_share))
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = open_panel(width=6.2, height=1.1 + 0.36 * len(rows))
        axes.axvline(0.0, color=light("natural"), linewidth=1.2, zorder=1)
        for y, each in enumerate(rows):
            relative = _relative(each.relative)
            role = {"B is better": "better", "A is better": "worse"}.get(each.verdict, "muted")
            if relative.low is not None and relative.high is not None:
                axes.plot(
                    [relative.low, relative.high],
                    [y, y],
                    color=light(role),
                    linewidth=3,
                    alpha=0.55,
                    zorder=2,
                )
            gid = f"difference-{y}"
            axes.plot([relative.value], [y], marker="o", color=light(role), markersize=6.5, linestyle="none", gid=gid, zorder=3)  # fmt: skip
            tips[gid] = [
                f"{_label(each)}: {_shown(each.relative)}, {each.cells} cells, run {each.run_ids[0]}"
            ]
        axes.yaxis.set_major_locator(FixedLocator(range(len(rows))))
        axes.yaxis.set_major_formatter(FixedFormatter([_label(each) for each in rows]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed_percentage(value)))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("loss of B against A")
        write_heading(figure, axes, "Paired differences")
        alt = "Paired differences of loss, B against A: " + "; ".join(
            f"{_label(each)} {_shown(each.relative)}, {each.verdict}" for each in found.by_share
        )
        runs = [run_id for each in found.by_share for run_id in each.run_ids]
        return finish_drawing(figure, "differences", "Paired differences", alt, runs, tips)


def _label(each: Difference) -> str:
    return (
        f"{each.what}, all shares"
        if each.share is None
        else each.what
        if each.share == 0
        else f"{each.what} {percent(each.share)}"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
