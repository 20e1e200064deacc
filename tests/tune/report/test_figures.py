"""The pieces a report is made of: SVG that can be inlined, figures with a tooltip on every run, numbers for people."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from pydantic import BaseModel

from synth.documents import DOCUMENT_SCHEMA
from synth.ledger import LedgerEntry, Tally
from synth.rows import REPHRASED_SCHEMA
from train.harness import ModelScores, TaskScore
from train.metrics import StepMetrics
from train.rates import BestRate, RateLaw, RateTrial, SweptRates
from train.record import DeviceUse, DomainLoss, Evaluation, RunRecord, SourceUse
from train.tokens import PackedInfo
from tune.report.figures import (
    CellPanel,
    HeatMap,
    LawCurve,
    LawPanel,
    LawSeries,
    SharePoint,
    draw_domain_heat_map,
    draw_laws,
    draw_loss_by_share,
)
from tune.report.format import amount, flops, percent, show, significant, size
from tune.report.style import share_looks, source_looks
from tune.report.svg import PALETTE, Drawing, finish_drawing, house_style, light
from tune.report.table import Column, to_csv
from tune.results import CellOptimum, FitFile, HeldOutPoint, Interval, LawFit, Recommendation, TrialResult


def line_drawing(
    name: str = "a-line", colour: str = light("natural"), tips: tuple[str, ...] = ("one", "two")
) -> Drawing:
    with house_style():
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot()
        axes.plot([1, 2], [2, 1], marker="o", color=colour, gid="points")
        return finish_drawing(
            figure, name, "A line", "A line that falls.", ["r1", "r2", "r1"], {"points": tips}
        )


def titles(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("title")]


# --- SVG -------------------------------------------------------------------------------------------------------


def test_drawing_is_the_same_every_time_and_carries_nothing_foreign() -> None:
    first, second = line_drawing(), line_drawing()
    assert first == second
    assert first.run_ids == ("r1", "r2")
    assert "http" not in first.inline_svg
    assert "<style" not in first.inline_svg
    assert re.findall('https?://[^"]+', first.file_svg) == ["http://www.w3.org/2000/svg"]


def test_inline_drawing_has_theme_colours_only_and_the_file_light_ones() -> None:
    drawing = line_drawing()
    assert not re.search(r"#[0-9a-f]{6}\b", drawing.inline_svg)
    assert "var(--natural)" in drawing.inline_svg
    assert light("natural") in drawing.file_svg
    assert "var(" not in drawing.file_svg


def test_a_colour_outside_the_palette_is_refused() -> None:
    with pytest.raises(ValueError, match="#123456"):
        line_drawing(colour="#123456")


def test_a_tooltip_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="2 markers and 1 tooltips"):
        line_drawing(tips=("one",))


def test_identifiers_of_two_drawings_never_meet() -> None:
    def identifiers(svg: str) -> set[str]:
        return {value for element in ET.fromstring(svg).iter() if (value := element.get("id"))}

    first, second = (identifiers(line_drawing(name).inline_svg) for name in ("one", "two"))
    assert first
    assert not first & second


def test_palette_roles_differ_in_both_themes() -> None:
    for theme in (0, 1):
        colours = [pair[theme] for pair in PALETTE.values()]
        assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("role", [role for role in PALETTE if role not in ("paper", "line")])
@pytest.mark.parametrize("theme", [0, 1])
def test_every_ink_stands_out_from_its_paper(role: str, theme: int) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(PALETTE[role][theme]), luminance(PALETTE["paper"][theme])), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 3.0  # WCAG 2.1, 1.4.11: graphics


# --- figures ---------------------------------------------------------------------------------------------------


def test_every_run_of_a_cell_has_its_tooltip() -> None:
    points = (
        SharePoint(None, 0.0, 4.0, "run-natural", "grid"),
        SharePoint("hq", 1 / 3, 3.9, "run-hq", "grid"),
        SharePoint("hq", 0.5, 3.95, "run-trial", "search"),
        SharePoint("qa", 1 / 3, 3.8, "run-qa", "grid"),
    )
    drawing = draw_loss_by_share(
        CellPanel("cell", "98k", 97_600, 1_048_576, points, ()), source_looks(["hq", "qa"])
    )
    assert sorted(titles(drawing.file_svg)) == sorted(
        [
            "natural 0 %: 4.0000 nats/token, run run-natural",
            "hq 33 %: 3.9000 nats/token, run run-hq",
            "hq 50 %: 3.9500 nats/token, run run-trial",
            "qa 33 %: 3.8000 nats/token, run run-qa",
        ]
    )
    assert "qa at 33 % with 3.8000" in drawing.alt


def test_laws_show_points_and_what_was_predicted_unseen() -> None:
    held_out = HeldOutPoint(
        run_id="run-c", num_params=None, train_tokens=4e6, loss=3.0, predicted_loss=3.03, relative_error=0.01
    )
    series = LawSeries(
        "hq 33 %", 1 / 3, ((1e6, 4.0, "run-a"), (2e6, 3.5, "run-b"), (4e6, 3.0, "run-c")), (held_out,),
        LawCurve([1e6, 8e6], [4.0, 2.8], [3.9, 2.7], [4.1, 2.9]),
    )  # fmt: skip
    looks = share_looks([0.0, 1 / 3])
    on_tokens = draw_laws(LawPanel("law", "natural + hq", "tokens", True, (series,)), looks)
    assert "hq 33 %: predicted 3.0300 without seeing run run-c (3.0000), +1.00 %" in titles(
        on_tokens.file_svg
    )
    on_params = draw_laws(LawPanel("law", "natural + hq", "parameters", False, (series,)), looks)
    assert len(titles(on_params.file_svg)) == 3  # its N is not known, so it has no place on this axis


def test_heat_map_leaves_out_what_was_not_measured() -> None:
    heat = HeatMap(
        "Bits", ("numpy", "scipy"), ("natural", "hq 33 %"), ((1.0, 0.9), (2.0, None)), ("run-a", "run-b"), 0
    )
    drawing = draw_domain_heat_map(heat)
    assert len(titles(drawing.file_svg)) == 3
    assert "numpy, hq 33 %: 0.9000 bits/byte, -0.1000 against natural, run run-b" in titles(drawing.file_svg)
    assert "cells better than natural: 1, worse: 0" in drawing.alt


def test_shares_and_sources_keep_their_looks() -> None:
    looks = share_looks([0.0, 1 / 3, 2 / 3, 1.0])
    assert len({look.marker for look in looks.values()}) == len({look.role for look in looks.values()}) == 4
    assert looks[0.0].role == "natural"
    assert source_looks(["qa", "hq"]) == source_looks(["hq", "qa", "hq"])


# --- numbers and tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (amount(97_600), "97.6 k"),
        (amount(1_048_576), "1.05 M"),
        (amount(999_999), "1 M"),
        (amount(8e9), "8 B"),
        (amount(12), "12"),
        (percent(1 / 3), "33 %"),
        (percent(0.034), "3.4 %"),
        (percent(0.0), "0 %"),
        (significant(0.00012346), "0.0001235"),
        (significant(3.0), "3.000"),
        (significant(3.8e-06), "3.800e-06"),
        (flops(1.3e14), "130 TFLOP"),
        (size(2_790_000), "2.79 MB"),
        (show(None, "loss"), "–"),
        (show(Interval(value=1.0), "number"), "1.000"),
        (show(Interval(value=1.0, low=0.5, high=None), "number"), "1.000 [0.5000, no limit]"),
        (show(float("nan"), "number"), "nan"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_csv_keeps_every_digit_and_leaves_unknowns_empty() -> None:
    columns = (Column("a", "A"), Column("b", "B"))
    rows = [{"a": 0.1 + 0.2, "b": Interval(value=1.5, low=1.0, high=None)}, {"a": None, "b": None}]
    assert to_csv(columns, rows) == "a,b,b_low,b_high\n0.30000000000000004,1.5,1.0,\n,,,\n"


# --- docs/formats.md -------------------------------------------------------------------------------------------


def names_of(kind: type | pa.Schema) -> set[str]:
    if isinstance(kind, pa.Schema):
        return set(kind.names)
    return set(kind.model_fields) if issubclass(kind, BaseModel) else set(kind.__dataclass_fields__)


@pytest.mark.parametrize(
    "kind",
    [DOCUMENT_SCHEMA, REPHRASED_SCHEMA, LedgerEntry, Tally, PackedInfo, StepMetrics, RunRecord, SourceUse, Evaluation,
     DomainLoss, DeviceUse, SweptRates, BestRate, RateTrial, RateLaw, ModelScores, TaskScore, TrialResult, CellOptimum, Interval, LawFit, FitFile, Recommendation],
    ids=lambda kind: getattr(kind, "__name__", "schema"),
)  # fmt: skip
def test_formats_page_names_every_field(kind: type | pa.Schema) -> None:
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)`", page))
    assert names_of(kind) - named == set()
