"""The report's answer and how far to trust it: what the recommendation and the laws say, and nothing beside it that contradicts them."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from synth.errors import UserError
from tests.assets.report_page import Page, read_csv
from tune.config import ClaimRoles, ReportConfig
from tune.laws import load_fit
from tune.report.artefact import plan_report
from tune.report.inputs import read_study
from tune.report.page import render
from tune.results import CellOptimum, Interval, Recommendation, ShareByLaw

# --- the answer --------------------------------------------------------------------------------------------------


def test_answer_gives_the_recommendation(config: ReportConfig, page: Page) -> None:
    stored = Recommendation.model_validate_json(
        (Path(config.root) / "recommendations/target.json").read_text()
    )
    shown = page.numbers["answer"]
    for interval in (
        stored.best_share,
        stored.predicted_loss,
        stored.natural_only_loss,
        stored.gain,
        stored.equal_loss_at_best_share.speed_up,
    ):
        assert {interval.value, interval.low, interval.high} <= set(shown)
    for number in (
        stored.synthetic_tokens,
        stored.training_flops,
        stored.generation_flops,
        stored.target_train_tokens,
    ):
        assert number in shown
    answer = page.text["answer"]
    assert "Unclear" in answer
    assert stored.pays_reason[1:] in answer
    assert stored.warnings[0] in answer
    assert "demonstration on tiny models" in answer


def test_what_the_answer_hangs_on_is_shown_beside_it(config: ReportConfig, report: Path, page: Page) -> None:
    stored = read_study(config).recommendations["target"]
    assert {each.best_share.value for each in (stored, *stored.sensitivity)} <= set(page.numbers["what-if"])
    assert "N were 2 times as large" in page.text["what-if"]
    cell, share, seed = stored.next_cells
    for each in stored.next_cells:
        assert {each.flops, each.expected_interval_width} <= set(page.numbers["what-if"])
    rows = read_csv(report / "sensitivity.csv")
    assert [row["what"] for row in rows] == ["as recommended", *(each.what for each in stored.sensitivity)]
    assert float(rows[1]["best_share_low"]) == stored.sensitivity[0].best_share.low
    assert float(rows[1]["gain_nats_low"]) == stored.sensitivity[0].gain.low
    assert float(rows[2]["natural_cost_ratio"]) == stored.sensitivity[1].natural_cost_ratio.value
    proposed = [
        (row["what"], row["model"], row["train_tokens"], row["share"], row["seed"])
        for row in read_csv(report / "next_runs.csv")
    ]
    assert proposed == [
        ("cell", cell.model, str(cell.train_tokens), "", ""),
        ("share", "", "", str(share.share), ""),
        ("seed", "", "", "", str(seed.seed)),
    ]
    assert "recommendations/target.next.toml" in page.text["what-if"]
    assert (report / "figures" / "sensitivity-target.svg").exists()


def test_an_answer_that_is_no_answer_says_so(config: ReportConfig) -> None:
    study = read_study(config)
    unsure = study.recommendations["target"].model_copy(
        update={
            "best_share": Interval(value=0.2, low=0.0, high=0.5),
            "gain": Interval(value=0.01, low=-0.02, high=0.03),
        }
    )
    warned = unsure.model_copy(update={"warnings": tuple(f"doubt {number}" for number in range(9))})
    empty = dataclasses.replace(
        study, runs=(), trial_records={}, optima=(), recommendations={"target": warned}
    )
    files = render(empty)
    answer = Page(files["index.html"]).text["answer"]
    for text in (answer, files["report.md"]):
        assert "The interval reaches 0 %" in text
        assert "natural text alone is not shown to be worse" in text
        assert "No run of this study has a result" in text
        assert all(f"doubt {number}" in text for number in range(9))
    assert "3 more" in answer


@pytest.mark.parametrize(
    ("changed", "says", "not_said"),
    [
        # The gain is shown although the interval of the share, which is no statement on the gain, reaches 0.
        (
            {"best_share": Interval(value=0.2, low=0.0, high=0.5)},
            "of the tokens synthetic",
            "does not show that any synthetic text helps",
        ),
        # Without the synthetic tokens there are too few, whatever they gain.
        (
            {"least_share": 0.34375, "gain": Interval(value=-0.01, low=-0.02, high=0.01)},
            "of the tokens synthetic",
            "not shown to be worse",
        ),
        (
            {"gain": Interval(value=0.01, low=-0.02, high=0.03)},
            "not shown to be worse",
            "of the tokens synthetic",
        ),
    ],
)
def test_the_answer_does_not_contradict_itself(
    config: ReportConfig, changed: dict[str, Any], says: str, not_said: str
) -> None:
    study = read_study(config)
    recommendation = study.recommendations["target"].model_copy(update=changed)
    files = render(
        dataclasses.replace(
            study, runs=(), trial_records={}, optima=(), recommendations={"target": recommendation}
        )
    )
    answer = files["report.md"].split("## What would change")[0]
    for text in (Page(files["index.html"]).text["answer"], answer):
        assert says in text
        assert not_said not in text


def test_markdown_says_the_same_and_its_figures_are_there(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert sorted(linked) == sorted(f"figures/{path.name}" for path in (report / "figures").iterdir())
    assert "make 34 % [22 %, 47 %] of the tokens synthetic" in text
    scripts = [line for line in text.splitlines() if "<script" in line]
    assert scripts
    assert all(line.startswith("    ") for line in scripts)  # code, which Markdown shows as it is


# --- the laws and the claims -------------------------------------------------------------------------------------


def test_how_far_to_trust_the_laws_is_folded_and_whole(
    config: ReportConfig, report: Path, page: Page
) -> None:
    fits = load_fit(config.root).file.fits
    text = (report / "index.html").read_text(encoding="utf-8")
    section = text[text.index('<section id="trust">') : text.index('<section id="best-share">')]
    assert section.count('<details class="fold">') == 1
    compared = read_csv(report / "law_selection.csv")
    joint = next(fit for fit in fits if fit.axis == "both")
    assert {
        row["law"] for row in compared if row["compared"] == "chinchilla or chinchilla_tied"
    } or joint.selection
    scores = {score.law: score for fit in fits if fit.selection for score in fit.selection.scores}
    assert {row["law"] for row in compared} == set(scores)
    for row in compared:
        expected = scores[row["law"]].held_out["train_tokens"]
        assert (float(row["train_tokens"]) if row["train_tokens"] else None) == expected
    profiles = read_csv(report / "profiles.csv")
    assert len(profiles) == sum(len(fit.profiles) for fit in fits)
    for row in profiles:
        assert row["verdict"] in page.text["trust"]
    frontier = read_csv(report / "frontier.csv")
    assert len(frontier) == sum(len(fit.frontier.points) for fit in fits if fit.frontier)
    assert joint.frontier is not None
    assert joint.frontier.num_params_exponent.value in page.numbers["trust"]
    assert "No exponents without a law (isoFLOP)" in page.text["trust"]
    assert {row["group"] for row in read_csv(report / "isoflop.csv")} >= {"natural", "hq 33 %"}


def test_best_shares_of_a_law_that_knows_the_share_are_shown_cell_by_cell(config: ReportConfig) -> None:
    study = read_study(config)
    best = Interval(value=0.21, low=0.1, high=0.34)
    cell = ShareByLaw(num_params=98_000, train_tokens=524_288, best_share=best)
    fits = [fit.model_copy(update={"best_shares": (cell,)}) for fit in study.laws.file.fits[:1]]
    laws = dataclasses.replace(study.laws, file=study.laws.file.model_copy(update={"fits": tuple(fits)}))
    files = render(dataclasses.replace(study, runs=(), trial_records={}, optima=(), laws=laws))
    rows = list(csv.DictReader(files["share_by_law.csv"].splitlines()))
    assert [(row["train_tokens"], row["best_share"], row["best_share_high"]) for row in rows] == [
        ("524288.0", "0.21", "0.34")
    ]
    assert "21 %" in Page(files["index.html"]).text["trust"]


def test_claims_say_who_plays_which_part_and_show_every_number(report: Path, page: Page) -> None:
    assert "rephrased text: hq, made by hq with root:generators/tiny" in page.text["claims"]
    rows = read_csv(report / "claims.csv")
    assert [row["number"] for row in rows if row["number"]] == [str(number) for number in range(1, 14)]
    assert [row["statistic"] for row in rows if "held out" in row["statistic"]] == [
        "mean error at the largest budget held out, at most 0.41 %",
        "mean error at the largest size held out, at most 0.30 %",
    ]


def test_a_part_given_to_no_source_is_refused_before_anything_is_written(config: ReportConfig) -> None:
    wrong = config.model_copy(update={"name": "wrong", "claims": ClaimRoles(textbook="nowhere")})
    with pytest.raises(UserError, match="claims names 'nowhere'"):
        plan_report(wrong)


def test_starts_are_counted_over_the_whole_grid(config: ReportConfig, page: Page) -> None:
    fits = load_fit(config.root).file.fits
    assert all(fit.starts_followed == min(fit.num_starts, 100) for fit in fits)
    assert "taken evenly from the grid" in page.text["fits"]


def test_fits_and_optima_are_those_on_disk(config: ReportConfig, report: Path, page: Page) -> None:
    rows = read_csv(report / "fits.csv")
    for fitted, row in zip(load_fit(config.root), rows, strict=True):
        assert (row["law"], row["group"]) == (fitted.record.law, fitted.record.group)
        for name, value in fitted.parameters.items():
            assert float(row[name]) == value
            assert value in page.numbers["fits"]
    for path in Path(config.root).glob("searches/*/*/best.json"):
        optimum = CellOptimum.model_validate_json(path.read_text())
        assert {optimum.best_share.value, optimum.best_share.low, optimum.best_share.high} <= set(
            page.numbers["best-share"]
        )
