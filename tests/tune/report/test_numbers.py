"""The numbers of a report are those of the records it names."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

from synth.identity import claim_directory, finish
from synth.storage import study_path, write_json_atomic
from tests.assets.report_page import Page, read_csv
from tests.assets.simulated_study import DOMAINS, ENDINGS, STUDY_FILE
from train.flops import train_flops
from train.rates import BestRate, RateTrial, SweptRates
from train.record import RunRecord, TrunkUse, write_record
from train.run import RunTemplate
from tune.config import ReportConfig, ReportPrices
from tune.report.data_tables import cost_table
from tune.report.inputs import read_study
from tune.report.page import headline_numbers, render
from tune.report.panels import training_panels
from tune.report.tables import run_rows


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


def test_a_source_of_searches_alone_has_no_training_panel(config: ReportConfig) -> None:
    study = read_study(config)
    names = [panel.name for panel in training_panels(study)]
    assert "training-qa-98k" in names
    without = dataclasses.replace(study, runs=tuple(run for run in study.runs if run.synthetic != "qa"))
    assert [panel.name for panel in training_panels(without)] == [name for name in names if "qa" not in name]
