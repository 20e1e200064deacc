"""`write_report` on a study simulated from a known law: what is on the page, that it is whole, that it comes out the same."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from synth.errors import UserError
from synth.identity import claim_directory, finish
from synth.storage import study_path, write_json_atomic
from tests.assets.report_page import Page
from tests.assets.simulated_study import DOMAINS, ENDINGS, NASTY, SMALL, STUDY_FILE, simulate_study
from train.flops import train_flops
from train.rates import BestRate, RateTrial, SweptRates
from train.record import RunRecord, TrunkUse, write_record
from train.run import RunTemplate
from tune.config import ClaimRoles, ReportConfig, ReportPrices
from tune.laws import load_fit
from tune.report.artefact import plan_report, write_report
from tune.report.data_tables import cost_table
from tune.report.inputs import read_study
from tune.report.page import headline_numbers, render
from tune.report.panels import training_panels
from tune.report.tables import run_rows
from tune.results import CellOptimum, Interval, Recommendation


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ReportConfig:
    """A finished study and the configuration of its report."""
    return simulate_study(str(tmp_path_factory.mktemp("study")), SMALL, bootstrap_samples=20)


@pytest.fixture(scope="module")
def report(config: ReportConfig) -> Path:
    """The directory of the report, written."""
    write_report(config)
    return Path(config.root) / config.name


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    """The page, parsed."""
    return Page((report / "index.html").read_text(encoding="utf-8"))


# --- the page stands alone -------------------------------------------------------------------------------------


def test_page_asks_for_nothing_outside_itself(report: Path, page: Page) -> None:
    loading = {"src", "srcset", "poster", "data", "action", "formaction", "background"}
    asked = [(tag, name, value) for tag, name, value in page.attributes if name in loading]
    links = [
        value
        for _, name, value in page.attributes
        if name in ("href", "xlink:href") and not value.startswith("#")
    ]
    style = re.search(r"<style>(.*?)</style>", (report / "index.html").read_text(encoding="utf-8"), re.DOTALL)
    assert asked == []
    assert links == ["data:,"]  # the empty icon, so that browsers do not ask for one
    assert style is not None
    assert "@import" not in style.group(1)
    assert "url(" not in style.group(1)
    assert not [
        value for _, name, value in page.attributes if name != "value" and re.search(r"https?://", value)
    ]
    assert not [
        tag
        for tag, name, _ in page.attributes
        if tag in ("iframe", "object", "embed") or name.startswith("on")
    ]


def test_the_one_script_is_the_one_the_page_allows_itself(report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'" in text
    )
    assert not re.search(r"fetch|XMLHttpRequest|import|https?:|innerHTML|eval", script)


def test_every_series_can_be_hidden_by_a_button_that_is_there(report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r'<figure id="figure-([^"]+)">(.*?)</figure>', text, re.DOTALL)
    togglable = {name: body for name, body in figures if 'class="key"' in body}
    assert any(name.startswith("law-d") for name in togglable)
    for name, body in togglable.items():
        keys = set(re.findall(r'data-key="(\d+)"', body))
        parts = set(re.findall(r'data-series="(\d+)"', body))
        assert keys == parts, name


def test_identifiers_are_unique_and_every_reference_leads_somewhere(page: Page) -> None:
    twice = [name for name, count in Counter(page.identifiers).items() if count > 1]
    there = set(page.identifiers)
    targets = [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    targets += [found for _, _, value in page.attributes for found in re.findall(r"url\(#([^)]+)\)", value)]
    targets += [value for _, name, value in page.attributes if name == "aria-labelledby"]
    assert twice == []
    assert [target for target in targets if target not in there] == []
    assert len(targets) > 100


def test_sections_come_in_reading_order(page: Page) -> None:
    wanted = ["answer", "what-if", "loss-by-share", "data-law", "model-law", "fits", "trust", "best-share", "equal-loss", "claims", "domains", "words",
              "training",
              "corpora", "synthetic", "packed", "cost", "failures", "runs", "provenance"]  # fmt: skip
    assert [name for name in page.identifiers if name in wanted] == wanted


def test_every_figure_is_described_and_names_its_runs(report: Path, page: Page) -> None:
    described = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    figures = sorted(path.stem for path in (report / "figures").iterdir())
    assert (
        len(described)
        == len(figures)
        == len([tag for tag, name, _ in page.attributes if (tag, name) == ("svg", "viewbox")])
    )
    assert all(len(text) > 40 for text in described)
    for stem in figures:
        svg = (report / "figures" / f"{stem}.svg").read_text(encoding="utf-8")
        assert re.search(r"<title>[^<]*\b([0-9a-f]{16}|search-\w+|\d+ %)", svg), stem


def test_foreign_text_is_shown_and_not_obeyed(report: Path, page: Page) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    assert NASTY.rstrip("\u202e") in page.text["synthetic"]
    assert text.count("<script") == 1
    assert "<out of memory>" in page.text["failures"]
    assert "\u202e" not in text
    assert "\u202e" not in (report / "report.md").read_text(encoding="utf-8")


# --- the numbers are those of the records ----------------------------------------------------------------------


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
    assert stored.pays_reason in answer
    assert stored.warnings[0] in answer
    assert "demonstration on tiny models" in answer


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


def test_runs_csv_has_every_run_with_its_own_numbers(config: ReportConfig, report: Path) -> None:
    rows = {row["run_id"]: row for row in read_csv(report / "runs.csv")}
    records = [
        RunRecord.model_validate_json(path.read_text())
        for path in Path(config.root).glob("runs/*/record.json")
    ]
    assert sorted(rows) == sorted(record.run_id for record in records)
    for record in records:
        row = rows[record.run_id]
        assert row["status"] == record.status
        assert int(row["train_tokens"]) == record.train_tokens
        assert (float(row["loss_nats_per_token"]) if row["loss_nats_per_token"] else None) == (
            record.final.loss_nats_per_token if record.final else None
        )
    evaluated = read_csv(report / "evaluations.csv")
    assert len(evaluated) == sum(len(e.domains) for record in records for e in record.evaluations)


def test_unique_tokens_of_a_run_with_several_sources_are_those_of_all(config: ReportConfig) -> None:
    study = read_study(config)
    planned = next(
        run for run in study.runs if run.record is not None and run.synthetic in run.record.sources
    )
    uses = dict(planned.record.sources)
    uses["other"] = uses[planned.synthetic].model_copy(update={"unique_tokens": 77})
    mixed = dataclasses.replace(
        planned,
        synthetic=f"{planned.synthetic}+other",
        record=planned.record.model_copy(update={"sources": uses}),
    )
    (row,) = run_rows(dataclasses.replace(study, runs=(mixed,), optima=()))
    assert row["unique_synthetic_tokens"] == uses[planned.synthetic].unique_tokens + 77


def test_tokens_taken_over_from_a_trunk_are_counted_once(config: ReportConfig) -> None:
    study = read_study(config)
    before = headline_numbers(study)["train_tokens"]
    run = next(run for run in study.runs if run.loss is not None)
    trunk = TrunkUse(trunk_id="t", train_tokens=100, wall_seconds=0.0, device_seconds=0.0)
    branch = dataclasses.replace(run, record=run.record.model_copy(update={"trunk": trunk}))
    runs = tuple(branch if each is run else each for each in study.runs)
    assert headline_numbers(dataclasses.replace(study, runs=runs))["train_tokens"] == before - 100


def test_runs_without_a_result_are_listed_with_their_reason(page: Page) -> None:
    for status, reason in ENDINGS.values():
        assert status in page.text["failures"]
        assert reason in page.text["failures"]
    assert "no model law for 'qa 33 %'" in page.text["fits"]


def test_cost_counts_a_run_of_plan_and_search_once(config: ReportConfig, page: Page) -> None:
    records = [
        RunRecord.model_validate_json(path.read_text())
        for path in Path(config.root).glob("runs/*/record.json")
    ]
    shown = page.numbers["cost"]
    trained = sum(record.train_flops for record in records) + 6.5e12
    generated = 2 * 1_000_000 * (190 + 130) * 16_903  # parameters x tokens of a row x rows with an answer
    evaluated = sum(  # forward passes alone: a third of training on as many tokens
        train_flops(record.config.model, 2048, 256, 4096 * len(DOMAINS) * len(record.evaluations)) / 3
        for record in records
    )
    assert any(math.isclose(number, trained + generated + evaluated, rel_tol=1e-12) for number in shown)
    assert any(math.isclose(number, evaluated, rel_tol=1e-12) for number in shown)
    assert generated in shown
    assert "12.5 s" in page.text["cost"]  # build_corpus, from the study's log


def test_a_sweep_whose_rates_were_taken_is_in_the_cost(config: ReportConfig, tmp_path: Path) -> None:
    root = tmp_path / "study"
    shutil.copytree(config.root, root)
    before = cost_table(read_study(config.model_copy(update={"root": str(root)})))
    planned = next(run.record for run in read_study(config).runs if run.loss is not None)
    swept = planned.model_copy(update={"run_id": "swept", "device_seconds": 7.0, "trunk": None})
    write_record(str(root), swept)
    trials = [
        RateTrial(
            learning_rate=rate, seed=0, run_id=run_id, status="complete", loss_nats_per_token=3.0, reason=None
        )
        for rate, run_id in ((1e-3, "swept"), (2e-3, planned.run_id))
    ]
    best = BestRate(
        model="98k", num_params_non_embedding=1, learning_rate=1e-3, low=None, high=None, confidence=0.95,
        loss_nats_per_token=3.0, close_low=1e-3, close_high=2e-3, edge=None, method="", trials=tuple(trials),
    )  # fmt: skip
    rates = SweptRates(
        name="rates", hash="0", train_tokens=1, template=RunTemplate(), sizes=(best,), law=None
    )
    directory = study_path(str(root), "learning_rates", "rates")
    write_json_atomic(directory / "rates.json", rates.model_dump(mode="json"))
    finish(directory, claim_directory(directory, "learning_rates", {}, {}))
    recipe = root / "plans" / config.plan / "recipe.json"
    told = json.loads(recipe.read_text())
    told["recipe"]["run"]["optimizer"]["learning_rates"] = "rates"
    recipe.write_text(json.dumps(told))
    after = cost_table(read_study(config.model_copy(update={"root": str(root)})))
    (row,) = [row for row in after.rows if row["step"] == "sweep_learning_rates"]
    assert (row["artefact"], row["runs"], row["device_seconds"]) == (
        "rates",
        1,
        7.0,
    )  # not the plan's own run
    assert after.rows[-1]["device_seconds"] == pytest.approx(before.rows[-1]["device_seconds"] + 7.0)


def test_the_ledger_has_money_in_it_once_devices_have_a_price(config: ReportConfig, page: Page) -> None:
    priced = config.model_copy(
        update={"prices": ReportPrices(generation_device_hour=3.6, training_device_hour=7.2)}
    )
    table = cost_table(read_study(priced))
    by_step = {row["step"]: row.get("money") for row in table.rows}
    assert by_step["rephrase_corpus"] == pytest.approx((512.5 + 41.0) / 1000)
    assert by_step["train_generator"] == pytest.approx(80.0 / 500)
    assert by_step["sum of what is known"] == pytest.approx(
        sum(row["money"] for row in table.rows[:-1] if row["money"] is not None)
    )
    assert "Price" not in page.text["cost"]


def test_data_sections_count_what_was_dropped_and_repeated(page: Page) -> None:
    assert "1,204 too short, 431 duplicate" in page.text["corpora"]
    assert {8_200, 252, 1} <= set(page.numbers["synthetic"])
    assert "root:generators/tiny" in page.text["synthetic"]
    repeated = 1_048_576 - 900_000  # the search's run on hq alone
    assert repeated in page.numbers["packed"]
    assert page.text["provenance"].count("rayjobs.run_study --config demo.toml") == 1
    assert "/somewhere" not in page.text["provenance"]


def test_the_study_file_is_in_the_report_as_it_was_run(
    config: ReportConfig, report: Path, page: Page
) -> None:
    assert STUDY_FILE in page.text["provenance"]
    assert "python -m rayjobs.run_study --config my.toml --root ROOT" in page.text["provenance"]
    assert "    [corpora.natural]\n" in (report / "report.md").read_text(encoding="utf-8")
    without = dataclasses.replace(read_study(config), study_file=None)
    assert "study.toml" not in Page(render(without)["index.html"]).text["provenance"]


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


def test_claims_say_who_plays_which_part_and_show_every_number(report: Path, page: Page) -> None:
    assert "rephrased text: hq, made by hq with root:generators/tiny" in page.text["claims"]
    rows = read_csv(report / "claims.csv")
    assert [row["number"] for row in rows if row["number"]] == [str(number) for number in range(1, 14)]
    assert [row["statistic"] for row in rows if "held out" in row["statistic"]] == [
        "mean error at the largest budget held out, at most 0.41%",
        "mean error at the largest size held out, at most 0.30%",
    ]


def test_a_part_given_to_no_source_is_refused_before_anything_is_written(config: ReportConfig) -> None:
    wrong = config.model_copy(update={"name": "wrong", "claims": ClaimRoles(textbook="nowhere")})
    with pytest.raises(UserError, match="claims names 'nowhere'"):
        plan_report(wrong)


def test_starts_are_counted_over_the_whole_grid(config: ReportConfig, page: Page) -> None:
    fits = load_fit(config.root).file.fits
    assert all(fit.starts_followed == min(fit.num_starts, 100) for fit in fits)
    assert "taken evenly from the grid" in page.text["fits"]


def test_markdown_says_the_same_and_its_figures_are_there(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert sorted(linked) == sorted(f"figures/{path.name}" for path in (report / "figures").iterdir())
    assert "make 34 % [22 %, 47 %] of the tokens synthetic" in text
    scripts = [line for line in text.splitlines() if "<script" in line]
    assert scripts
    assert all(line.startswith("    ") for line in scripts)  # code, which Markdown shows as it is


def test_a_source_of_searches_alone_has_no_training_panel(config: ReportConfig) -> None:
    study = read_study(config)
    names = [panel.name for panel in training_panels(study)]
    assert "training-qa-98k" in names
    without = dataclasses.replace(study, runs=tuple(run for run in study.runs if run.synthetic != "qa"))
    assert [panel.name for panel in training_panels(without)] == [name for name in names if "qa" not in name]


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


# --- written again ---------------------------------------------------------------------------------------------


def test_same_study_gives_the_same_bytes(config: ReportConfig, report: Path) -> None:
    again = config.model_copy(update={"name": "again"})
    write_report(again)
    for path in sorted(report.rglob("*")):
        if path.is_file() and path.name not in ("manifest.json", "recipe.json"):
            assert (
                path.read_bytes() == (Path(config.root) / "again" / path.relative_to(report)).read_bytes()
            ), path.name


def test_finished_report_is_left_alone_until_something_changes(config: ReportConfig, report: Path) -> None:
    assert plan_report(config).finished
    before = (report / "index.html").stat().st_mtime_ns
    write_report(config)
    assert (report / "index.html").stat().st_mtime_ns == before
    assert not plan_report(config.model_copy(update={"title": "Another title"})).finished


# --- what is missing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "job"),
    [
        ({"plan": "nowhere"}, "pretrain_models"),
        ({"laws": "nowhere"}, "fit_laws"),
        ({"searches": ("nowhere",)}, "search_mixture"),
        ({"recommendations": ("nowhere",)}, "recommend_mixture"),
        ({"synthetic": ("nowhere",)}, "rephrase_corpus"),
        ({"corpora": ("nowhere",)}, "build_corpus"),
    ],
)
def test_something_named_and_missing_is_one_sentence(
    config: ReportConfig, changed: dict[str, Any], job: str
) -> None:
    with pytest.raises(UserError, match=rf"nowhere.*run {job} first"):
        plan_report(config.model_copy(update=changed))


def test_a_directory_that_is_no_report_is_left_alone(config: ReportConfig) -> None:
    with pytest.raises(UserError, match="no report"):
        write_report(config.model_copy(update={"name": "corpora"}))


def test_sections_without_input_say_which_job_makes_it(config: ReportConfig) -> None:
    bare = ReportConfig(root=config.root, name="bare")
    write_report(bare)
    page = Page((Path(config.root) / "bare" / "index.html").read_text(encoding="utf-8"))
    for section, job in (("answer", "recommend_mixture"), ("best-share", "search_mixture"), ("corpora", "build_corpus"), ("synthetic", "rephrase_corpus")):  # fmt: skip
        assert f"run {job}" in page.text[section]
        assert section not in page.numbers or section == "answer"
