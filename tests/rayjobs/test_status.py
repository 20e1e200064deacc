"""How far a study is, what it has taken, and what is left."""

import json
import os

import pytest

from rayjobs import study_status
from rayjobs.schedule import running_path
from rayjobs.status import print_status, status_of
from rayjobs.study import StudyConfig
from synth.storage import study_path, write_json_atomic
from tests.assets.simulated_study import SMALL, pretrain_config, record_of, write_packed
from tests.assets.study_file import STUDY, changed
from tests.assets.written_study import build, first_step, minutes_ago, study_on
from train.grid import plan_runs
from train.record import write_record


def test_status_tells_finished_from_ready_from_waiting(text, tmp_path):
    study = study_on(text, tmp_path / "study")
    assert [row.state for row in status_of(study)] == ["ready", *["waiting"] * 5]
    build(first_step(study).config)
    rows = {row.step: row for row in status_of(study)}
    assert rows["corpora.natural"].state == "finished"
    assert rows["corpora.natural"].done_fraction == 1.0
    assert rows["pack.packed"].note == "needs rephrase.made"


def test_time_that_an_engine_does_not_tell_is_unknown_and_not_nothing(text, tmp_path, capsys):
    study = study_on(text, tmp_path / "study")
    entry = study_path(study.root, "synthetic/made/ledger/part-00000-of-00002.json")
    write_json_atomic(
        entry, {"device_seconds": None, "engine_start_seconds": None}
    )  # engine.kind = "ray_data_llm"
    row = next(row for row in status_of(study) if row.step == "rephrase.made")
    assert (row.device_hours, row.cost) == (None, None)
    print_status(study, json_output=False, write=print)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("all "))
    assert "unknown" in line


def test_the_time_left_is_that_of_all_devices_a_placement_asks_for():
    study = changed(
        "assumptions.training", {"peak_flops_per_device_second": 1e9, "model_flops_utilization": 0.5}
    )
    study = changed("assumptions.corpora.natural", {"documents": 1000, "tokens_per_document": 500.0}, study)
    study = changed("pretrain.grid.placement", {"lanes": 3, "workers_per_lane": [1, 2]}, study)
    study = changed(
        "rephrase.made.placement",
        {"engines": 4, "min_engines": 1, "gpus_per_engine": 2, "tensor_parallel": 2},
        study,
    )
    study = changed("rephrase.made.cost", {"tokens_per_device_second": 100.0}, study)
    rows = {row.step: row for row in status_of(StudyConfig.model_validate(study))}
    for step, devices in {"pretrain.grid": 6, "rephrase.made": 8}.items():
        assert rows[step].eta_seconds == pytest.approx(rows[step].remaining_device_hours * 3600 / devices)


def test_a_run_of_two_plans_is_paid_for_once(tmp_path):
    root = str(tmp_path)
    (planned, *_) = plan_runs(pretrain_config(root, SMALL), write_packed(root))
    write_record(root, record := record_of(planned.run))
    for name in ("grid", "more"):
        write_json_atomic(
            study_path(root, "plans", name, "plan.json"), {"runs": [{"run_id": planned.run.run_id}]}
        )
    flow = {section: steps for section, steps in STUDY.items() if section not in ("laws", "report")}
    study = changed("root", root, changed("pretrain.more", STUDY["pretrain"]["grid"], flow))
    rows = {row.step: row for row in status_of(StudyConfig.model_validate(study))}
    assert rows["pretrain.grid"].device_hours == pytest.approx(record.device_seconds / 3600)
    assert rows["pretrain.more"].device_hours == 0


def test_a_step_whose_process_is_gone_is_not_running(text, tmp_path):
    study = study_on(text, tmp_path / "study")
    host, began_at = os.uname().nodename, "2026-01-01T00:00:00+00:00"
    steps = {"corpora.natural": began_at}
    path = running_path(study.root, host, os.getpid())
    here = {"host": host, "seen_at": minutes_ago(1), "steps": steps}
    write_json_atomic(path, {**here, "pid": os.getpid()})
    assert status_of(study)[0].state == "running"
    assert status_of(study)[0].note == f"since {began_at} on {host}"
    write_json_atomic(path, {**here, "pid": 2**22 - 1})
    assert status_of(study)[0].state == "ready"
    write_json_atomic(path, {**here, "pid": os.getpid(), "seen_at": minutes_ago(60)})
    assert status_of(study)[0].state == "ready", "its number is another process's since"


@pytest.mark.parametrize(("minutes", "state"), [(1, "running"), (60, "ready")])
def test_a_process_of_another_machine_is_running_while_it_says_so(text, tmp_path, minutes, state):
    study = study_on(text, tmp_path / "study")
    entry = {
        "host": "elsewhere",
        "pid": 7,
        "seen_at": minutes_ago(minutes),
        "steps": {"corpora.natural": "-"},
    }
    write_json_atomic(running_path(study.root, "elsewhere", 7), entry)
    assert status_of(study)[0].state == state


def test_status_is_a_table_for_people_and_json_for_programs(tmp_path, capsys):
    argv = ["--config", "rayjobs/configs/demo.toml", "--root", str(tmp_path / "study")]
    assert study_status.main(argv) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[2].split()[:3] == ["step", "state", "done"]
    assert "0 of 8" in table
    assert study_status.main([*argv, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [step["state"] for step in value["steps"]] == ["ready", *["waiting"] * 7]
    assert value["total"]["remaining_device_hours"] > 0
    assert value["total"]["cost"] is None
    assert "cost in" not in table, "nothing has a price"
    assert study_status.main([*argv, "--json", "--prices", '{"training_device_hour": 2.0}']) == 0
    assert json.loads(capsys.readouterr().out)["total"]["cost"] == 0.0
    assert not (tmp_path / "study").exists()
