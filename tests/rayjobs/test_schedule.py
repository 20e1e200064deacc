"""Which steps run beside each other, what is moved aside, what is taken over from another study, and how far one is."""

import datetime as dt
import json
import os
import threading
import time
from dataclasses import replace

import pytest

from rayjobs import run_study, schedule, study_status
from rayjobs.aside import move_aside, own_runs, what_is_there
from rayjobs.cli import Job
from rayjobs.schedule import RUNNING, Demand, Schedule, demand_of, fitting, running_path
from rayjobs.sharing import take_over
from rayjobs.status import print_status, status_of
from rayjobs.study import Step, StudyConfig, steps_of
from synth.config import CorpusConfig, CorpusPlacement
from synth.corpus import CorpusBuild
from synth.errors import UserError
from synth.identity import is_finished
from synth.plan import Plan
from synth.storage import list_names, read_json, study_path, write_json_atomic
from tests.assets.simulated_study import SMALL, pretrain_config, record_of, write_packed
from tests.assets.study_file import STUDY, changed
from train.config import RateSweepConfig
from train.grid import plan_runs
from train.rate_sweep import missing_runs
from train.record import read_record, write_record

FIXED, ELASTIC = Demand(cpus=2.0), Demand(cpus=1.0, elastic=True)


def minutes_ago(minutes):
    return (dt.datetime.now(dt.UTC) - dt.timedelta(minutes=minutes)).isoformat()


def names(started):
    return [step for step, _ in started]


def test_two_cores_run_one_step_after_the_other():
    ready = [("corpus", ELASTIC), ("generator", Demand(1.0))]
    assert names(fitting(ready, [], cpus=2, gpus=0)) == ["corpus"]
    assert fitting(ready[1:], [ELASTIC], cpus=2, gpus=0) == []


def test_a_generator_trains_beside_a_corpus_that_takes_the_cpus_it_leaves():
    started = fitting([("corpus", ELASTIC), ("generator", FIXED)], [], cpus=8, gpus=0)
    assert [(step, need.cpus) for step, need in started] == [("generator", 2.0), ("corpus", 6.0)]


def test_steps_that_want_the_same_gpus_wait_for_each_other():
    three = [(name, Demand(cpus=9.0, gpus=8.0)) for name in ("hq-3b", "hq-8b", "hq-70b")]
    assert names(fitting(three, [], cpus=64, gpus=16)) == ["hq-3b", "hq-8b"]
    assert names(fitting(three[2:], [need for _, need in three[:2]], cpus=64, gpus=16)) == []
    assert names(fitting(three[2:], [three[0][1]], cpus=64, gpus=16)) == ["hq-70b"]


def test_a_step_larger_than_the_cluster_is_started_all_the_same_when_nothing_runs():
    assert names(fitting([("large", Demand(100.0)), ("small", Demand(1.0))], [], cpus=8, gpus=0)) == ["large"]


def test_what_a_step_needs_is_what_its_placement_asks_for():
    study = changed("pretrain.grid.placement", {"lanes": 3, "workers_per_lane": 2, "gpus_per_worker": 1.0})
    study = changed(
        "rephrase.made.placement", {"engines": 4, "gpus_per_engine": 2, "tensor_parallel": 2}, study
    )
    needs = {step.section: demand_of(step) for step in steps_of(StudyConfig.model_validate(study))}
    assert needs["pretrain"] == Demand(cpus=6.0, gpus=6.0)
    assert needs["rephrase"] == Demand(cpus=4.0, gpus=8.0)
    assert needs["corpora"].elastic
    assert needs["laws"] == Demand(0.0)


def steps_that(work, tmp_path):
    """Return a study and two steps that need nothing of each other, of jobs that do `work(name)`."""
    study = StudyConfig.model_validate(changed("root", str(tmp_path / "study")))
    done = set()

    def run(config):
        work(config.name)
        done.add(config.name)

    def plan(config):
        return Plan("build_corpus", config.name, config.name in done, {"parts": 1})

    job = Job(name="build_corpus", config=CorpusConfig, plan=plan, run=run)
    config = steps_of(study)[0].config
    return study, [
        Step("corpora", job, config.model_copy(update={"name": name, "placement": CorpusPlacement(tasks=2)}))
        for name in ("one", "two")
    ]


def test_steps_with_room_for_both_are_at_work_at_the_same_time(tmp_path):
    together = threading.Barrier(2, timeout=20)  # neither gets past it alone
    said = []
    study, steps = steps_that(lambda name: together.wait(), tmp_path)
    Schedule(study, steps, connect=lambda step, config: None, say=said.append, size=lambda: (8.0, 0.0)).run()
    assert "2/2 build_corpus two: parts 1 beside corpora.one" in said
    log = read_json(study_path(study.root, "study.json"))
    assert sorted(entry["name"] for entry in log) == ["one", "two"]
    assert list_names(study_path(study.root, RUNNING)) == []


def test_on_two_cpus_one_follows_the_other(tmp_path):
    at_work = threading.Semaphore(1)

    def work(name):
        assert at_work.acquire(blocking=False), "another step was at work"
        time.sleep(0.02)
        at_work.release()

    study, steps = steps_that(work, tmp_path)
    Schedule(
        study, steps, connect=lambda step, config: None, say=lambda text: None, size=lambda: (2.0, 0.0)
    ).run()


def test_a_step_that_fails_waits_for_the_one_beside_it_and_then_says_why(tmp_path):
    failed = threading.Event()

    def work(name):
        if name == "one":
            failed.set()
            raise UserError("the disk is full")
        assert failed.wait(20)
        time.sleep(0.05)  # still at work when the other has failed

    study, steps = steps_that(work, tmp_path)
    with pytest.raises(UserError, match="the disk is full"):
        Schedule(
            study, steps, connect=lambda step, config: None, say=lambda text: None, size=lambda: (8.0, 0.0)
        ).run()
    assert [entry["name"] for entry in read_json(study_path(study.root, "study.json"))] == ["two"]


def test_a_step_that_cannot_begin_waits_for_the_one_at_work(tmp_path):
    refused = threading.Event()

    def connect(step, config):
        if config.name == "two":
            refused.set()
            raise UserError("this cluster cannot ever hold that")

    def work(name):
        assert refused.wait(20)
        time.sleep(0.05)  # still at work when the other is refused

    study, steps = steps_that(work, tmp_path)
    with pytest.raises(UserError, match="cannot ever hold that"):
        Schedule(study, steps, connect=connect, say=lambda text: None, size=lambda: (8.0, 0.0)).run()
    assert [entry["name"] for entry in read_json(study_path(study.root, "study.json"))] == ["one"]


def test_what_stops_a_second_step_is_said_too(tmp_path):
    together, said = threading.Barrier(2, timeout=20), []

    def work(name):
        together.wait()
        raise UserError(f"{name} is ill")

    study, steps = steps_that(work, tmp_path)
    with pytest.raises(UserError, match="is ill") as error:
        Schedule(
            study, steps, connect=lambda step, config: None, say=said.append, size=lambda: (8.0, 0.0)
        ).run()
    second = "two" if str(error.value) == "one is ill" else "one"
    assert said[-1] == f"build_corpus {second} has stopped too: {second} is ill"


def test_the_cluster_is_asked_once_for_each_step(tmp_path):
    asked = []
    study, steps = steps_that(lambda name: None, tmp_path)
    gone = running_path(study.root, os.uname().nodename, 2**22 - 1)
    write_json_atomic(gone, {"host": os.uname().nodename, "pid": 2**22 - 1, "steps": {}})
    Schedule(
        study, steps, connect=lambda step, config: asked.append(step), say=lambda text: None, size=lambda: (2.0, 0.0),
    ).run()  # fmt: skip
    assert asked == ["1/2 build_corpus one", "2/2 build_corpus two"]
    assert not gone.exists(), "what a killed process has said of itself is cleared away"


def test_a_step_that_another_process_runs_is_warned_of(tmp_path):
    said = []
    study, steps = steps_that(lambda name: None, tmp_path)
    steps_there = {"corpora.two": "2026-01-01T00:00:00+00:00", "pack.x": "-"}
    other = {"host": "elsewhere", "pid": 7, "seen_at": minutes_ago(1), "steps": steps_there}
    write_json_atomic(running_path(study.root, "elsewhere", 7), other)
    Schedule(study, steps, connect=lambda step, config: None, say=said.append, size=lambda: (2.0, 0.0)).run()
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert warning.startswith("warning: corpora.two is at work in process 7 on elsewhere since 2026-01-01")


# --- with a corpus that is there -------------------------------------------------------------------------------


def build(config: CorpusConfig) -> None:
    corpus = CorpusBuild(config)
    for stage in corpus.stages():
        for task in stage.todo:
            stage.work(task)
    corpus.finish()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.mkdir()
    for number in range(6):
        words = " ".join(f"word{number}x{each}" for each in range(60))  # no document repeats another
        (path / f"{number}.txt").write_text(f"document {number}: {words}")
    return path


def study_on(text, root, **more):
    sources = [{"kind": "files", "paths": [str(text)], "domain": "notes"}]
    study = changed("corpora.natural", {"sources": sources, "held_out_fraction": 0.2})
    return StudyConfig.model_validate({**study, "root": str(root), **more})


def first_step(study):
    return steps_of(study)[0]


def test_a_step_done_again_is_moved_aside_and_nothing_is_lost(text, tmp_path):
    study = study_on(text, tmp_path / "study")
    step = first_step(study)
    build(step.config)
    before = {path.name: path.read_bytes() for path in (tmp_path / "study/corpora/natural/train").iterdir()}
    ((old, new),) = move_aside(study.root, step)
    assert what_is_there(step) == []
    assert not step.plan().finished
    assert old == study_path(study.root, "corpora", "natural")
    assert {path.name: path.read_bytes() for path in (new / "train").iterdir()} == before
    assert new.relative_to(study_path(study.root)).parts[0] == "aside"


def test_on_an_object_store_it_is_moved_whole(text):
    study = study_on(text, "memory://done-again")
    step = first_step(study)
    build(step.config)
    ((old, new),) = move_aside(study.root, step)
    assert not old.exists()
    assert is_finished(new)
    assert len(list_names(new / "train", ".parquet")) == 1


def test_runs_that_another_plan_lists_stay_with_it(tmp_path):
    study = changed("root", str(tmp_path), changed("pretrain.more", STUDY["pretrain"]["grid"]))
    root = study_path(study["root"])
    for name, runs in {"grid": ["a", "b"], "more": ["b", "c"]}.items():
        write_json_atomic(root / "plans" / name / "plan.json", {"runs": [{"run_id": run} for run in runs]})
    steps = {step.key: step for step in steps_of(StudyConfig.model_validate(study))}
    assert own_runs(steps["pretrain.grid"]) == ["a"]
    assert own_runs(steps["pretrain.more"]) == ["c"]


def test_a_dry_run_says_what_would_be_moved_aside_and_moves_nothing(text, tmp_path, capsys):
    study = study_on(text, tmp_path / "study")
    build(first_step(study).config)
    plans = run_study.plan_study(study, force=("corpora.natural",))
    assert str(tmp_path / "study/corpora/natural") in plans[0].facts["is done again"]
    assert is_finished(study_path(study.root, "corpora", "natural"))


def test_a_corpus_of_another_study_is_taken_over_and_stays_there(text, tmp_path):
    theirs = study_on(text, tmp_path / "theirs")
    build(first_step(theirs).config)
    ours = study_on(text, tmp_path / "ours", share_with=[theirs.root])
    said = []
    Schedule(
        ours,
        [first_step(ours)],
        connect=lambda step, config: pytest.fail("Ray is not needed"),
        say=said.append,
    ).run()
    assert said == [f"1/1 build_corpus natural: taken over from {theirs.root}"]
    assert first_step(ours).plan().finished
    assert first_step(theirs).plan().finished
    hashes = [
        read_json(study_path(study.root, "corpora/natural/manifest.json"))["hash"] for study in (ours, theirs)
    ]
    assert hashes[0] == hashes[1]


def test_a_step_done_again_is_not_taken_over(text, tmp_path):
    theirs = study_on(text, tmp_path / "theirs")
    build(first_step(theirs).config)
    ours = study_on(text, tmp_path / "ours", share_with=[theirs.root])
    step, said = first_step(ours), []
    done_here = Step("corpora", replace(step.job, run=build), step.config)
    Schedule(
        ours, [done_here], connect=lambda step, config: None, say=said.append, size=lambda: (2.0, 0.0), redone=[done_here],
    ).run()  # fmt: skip
    assert not any("taken over" in line for line in said)
    assert step.plan().finished


def test_a_corpus_of_another_recipe_is_not_taken_over(text, tmp_path):
    theirs = study_on(text, tmp_path / "theirs")
    build(first_step(theirs).config)
    ours = study_on(text, tmp_path / "ours")
    other = first_step(ours).config.model_copy(update={"min_characters": 10})
    step = type(first_step(ours))("corpora", first_step(ours).job, other)
    assert take_over(step, [theirs.root], {}) is None
    assert not study_path(ours.root, "corpora").exists()


def test_runs_a_sweep_begins_with_are_taken_over(tmp_path):
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    packed = write_packed(ours)
    config = RateSweepConfig(root=ours, name="best", models=("98k",), train_tokens=131_072)
    wanted = [each.run for each in missing_runs(config, packed, {})]
    for run in wanted[1:]:
        write_record(theirs, record_of(run))
    job = Job(name="sweep_learning_rates", config=RateSweepConfig, plan=lambda config: None, run=lambda config: None)  # fmt: skip
    assert take_over(Step("learning_rates", job, config), [theirs], {}) is None
    assert [read_record(ours, run.run_id) is not None for run in wanted] == [False] + [True] * (
        len(wanted) - 1
    )


# --- status ----------------------------------------------------------------------------------------------------


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
    study = changed("rephrase.made.placement", {"engines": 4, "min_engines": 1, "gpus_per_engine": 2}, study)
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
    write_json_atomic(path, {"host": host, "pid": os.getpid(), "steps": steps})
    assert status_of(study)[0].state == "running"
    assert status_of(study)[0].note == f"since {began_at} on {host}"
    write_json_atomic(path, {"host": host, "pid": 2**22 - 1, "steps": steps})
    assert status_of(study)[0].state == "ready"


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


def test_a_study_at_work_says_so_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "BEAT_SECONDS", 0.01)

    def work(name):
        path.unlink(missing_ok=True)
        for _ in range(1000):
            if path.exists():
                return
            time.sleep(0.01)
        pytest.fail("it has not said that it is there")

    study, steps = steps_that(work, tmp_path)
    path = running_path(study.root, os.uname().nodename, os.getpid())
    Schedule(
        study, steps, connect=lambda step, config: None, say=lambda text: None, size=lambda: (2.0, 0.0)
    ).run()
    assert not path.exists()


def test_status_is_a_table_for_people_and_json_for_programs(tmp_path, capsys):
    argv = ["--config", "rayjobs/configs/demo.toml", "--root", str(tmp_path / "study")]
    assert study_status.main(argv) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[2].split()[:3] == ["step", "state", "done"]
    assert "0 of 10" in table
    assert study_status.main([*argv, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [step["state"] for step in value["steps"]] == ["ready", *["waiting"] * 9]
    assert value["total"]["remaining_device_hours"] > 0
    assert not (tmp_path / "study").exists()


def test_a_steps_mistake_is_said_with_all_others_before_anything_starts(tmp_path, capsys):
    study = changed("corpora.natural.sources", [{"kind": "files", "paths": [str(tmp_path / "nowhere.txt")]}])
    study = changed(
        "corpora.other", {"sources": [{"kind": "docstrings", "packages": ["no_such_package"]}]}, study
    )
    with pytest.raises(run_study.Mistakes) as error:
        run_study.plan_study(StudyConfig.model_validate({**study, "root": str(tmp_path / "study")}))
    assert [each.split(":")[0] for each in error.value.sentences] == ["corpora.natural", "corpora.other"]


def test_a_model_that_is_nowhere_is_a_mistake_and_one_out_of_reach_a_warning(text, tmp_path):
    study = study_on(text, tmp_path / "study")
    rephrase = next(plan for plan in run_study.plan_study(study) if plan.step == "rephrase_corpus")
    assert (
        "engine.model = 'org/model' is neither a directory nor in the local hub cache"
        in rephrase.warnings[-1]
    )
    there = study.rephrase["made"].engine.model_copy(update={"model": str(tmp_path / "no-model")})
    made = study.rephrase["made"].model_copy(update={"engine": there})
    with pytest.raises(run_study.Mistakes, match=r"rephrase\.made: engine\.model = .* does not exist"):
        run_study.plan_study(study.model_copy(update={"rephrase": {"made": made}}))
