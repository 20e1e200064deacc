"""Which steps run beside each other, and what is said of them while they do."""

import itertools
import os
import queue
import threading
import time
from dataclasses import replace

import pytest

from rayjobs import schedule
from rayjobs.cli import Job
from rayjobs.demand import ClusterSize, Demand, demand_of, fitting, placed_within
from rayjobs.schedule import RUNNING, Schedule, running_path
from rayjobs.study import Step, StudyConfig, steps_of
from synth.config import CorpusConfig, CorpusPlacement
from synth.errors import UserError
from synth.plan import Plan
from synth.storage import list_names, study_path, write_json_atomic
from synth.study_log import read_log
from tests.assets.study_file import changed
from tests.assets.written_study import minutes_ago

FIXED, ELASTIC = Demand(cpus=2.0), Demand(cpus=1.0, elastic=True)


def names(started):
    return [step for step, _ in started]


def test_two_cores_run_one_step_after_the_other():
    ready = [("corpus", ELASTIC), ("generator", Demand(1.0))]
    assert names(fitting(ready, [], ClusterSize(2, 0))) == ["corpus"]
    assert fitting(ready[1:], [ELASTIC], ClusterSize(2, 0)) == []


def test_a_generator_trains_beside_a_corpus_that_takes_the_cpus_it_leaves():
    started = fitting([("corpus", ELASTIC), ("generator", FIXED)], [], ClusterSize(8, 0))
    assert [(step, need.cpus) for step, need in started] == [("generator", 2.0), ("corpus", 6.0)]


def test_a_training_whose_groups_may_change_takes_the_largest_that_fits_beside_another_step():
    study = StudyConfig.model_validate(
        changed("pretrain.grid.placement", {"lanes": 2, "workers_per_lane": [1, 4]})
    )
    grid = next(step for step in steps_of(study) if step.section == "pretrain")
    wanted = demand_of(grid)
    assert (wanted.cpus, wanted.group_sizes) == (8.0, (1, 2, 4))
    started = fitting([(grid, wanted), ("made", FIXED)], [], ClusterSize(7, 0))
    assert [(step, need.cpus) for step, need in started] == [("made", 2.0), (grid, 4.0)]
    placed = placed_within(grid.config, started[1][1]).placement
    assert (placed.workers_per_lane, placed.group_sizes) == ((1, 2), (1, 2))
    assert placed_within(grid.config, wanted.within(3, 0)).placement.workers_per_lane == 1
    assert placed_within(grid.config, wanted).placement == grid.config.placement
    assert fitting([(grid, wanted)], [Demand(7.0)], ClusterSize(8, 0)) == [], "two lanes of one do not fit"
    assert fitting([(grid, wanted), (grid, wanted)], [], ClusterSize(8, 0)) == [(grid, wanted)]


def test_a_training_that_follows_the_cluster_is_held_to_nothing_while_no_other_step_wants_room():
    """A fit on the driver asks for none, and where nodes are added there is always room."""
    follows, fit = ("grid", Demand(8.0, group_sizes=(1, 2, 4))), ("fit", Demand(0.0))
    assert fitting([fit, follows], [], ClusterSize(4, 0)) == [fit, follows]
    assert fitting([follows], [fit[1]], ClusterSize(4, 0)) == [follows]
    assert fitting([follows], [FIXED], ClusterSize(4, 0, grows=True)) == [follows]
    assert fitting([follows], [FIXED], ClusterSize(4, 0)) == [("grid", Demand(2.0, group_sizes=(1,)))]


def test_steps_that_want_the_same_gpus_wait_for_each_other():
    three = [(name, Demand(cpus=9.0, gpus=8.0)) for name in ("hq-3b", "hq-8b", "hq-70b")]
    assert names(fitting(three, [], ClusterSize(64, 16))) == ["hq-3b", "hq-8b"]
    assert names(fitting(three[2:], [need for _, need in three[:2]], ClusterSize(64, 16))) == []
    assert names(fitting(three[2:], [three[0][1]], ClusterSize(64, 16))) == ["hq-70b"]


def test_a_step_larger_than_the_cluster_is_started_all_the_same_when_nothing_runs():
    assert names(fitting([("large", Demand(100.0)), ("small", Demand(1.0))], [], ClusterSize(8, 0))) == [
        "large"
    ]


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


def test_where_an_autoscaler_adds_nodes_every_step_is_started_whatever_is_there_now():
    three = [
        (name, Demand(cpus=32.0, gpus=gpus)) for name, gpus in (("hq-3b", 8), ("hq-8b", 8), ("hq-70b", 32))
    ]
    for cpus, gpus in ((0, 0), (32, 0), (256, 8), (256, 64)):
        size = ClusterSize(cpus, gpus, grows=True)
        assert names(fitting(three, [], size)) == ["hq-3b", "hq-8b", "hq-70b"]
        assert names(fitting(three[1:], [three[0][1]], size)) == ["hq-8b", "hq-70b"]


def test_a_step_that_follows_the_cluster_is_held_to_no_number_of_tasks_while_it_grows():
    ready = [("corpus", ELASTIC), ("generator", FIXED)]
    assert [need.tasks for _, need in fitting(ready, [], ClusterSize(8, 0, grows=True))] == [None, None]
    assert [need.tasks for _, need in fitting(ready, [], ClusterSize(8, 0))] == [None, 6]


def test_steps_that_could_each_hold_what_the_other_waits_for_take_turns():
    """Two of Ray Data LLM can take all CPUs for their engines and have none for their other stages."""
    staged = Demand(cpus=2.0, in_stages=True)
    ready = [("a", staged), ("b", staged), ("c", FIXED)]
    size = ClusterSize(0, 0, grows=True)
    assert names(fitting(ready, [], size)) == ["a", "c"]
    assert names(fitting(ready[1:2], [staged], size)) == []


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
    Schedule(
        study, steps, connect=lambda step, config: None, say=said.append, size=lambda: ClusterSize(8.0, 0.0)
    ).run()
    assert "2/2 build_corpus two: parts 1 beside corpora.one" in said
    log = read_log(study.root)
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
        study,
        steps,
        connect=lambda step, config: None,
        say=lambda text: None,
        size=lambda: ClusterSize(2.0, 0.0),
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
    said = []
    with pytest.raises(UserError, match="the disk is full"):
        Schedule(
            study, steps, connect=lambda step, config: None, say=said.append, size=lambda: ClusterSize(8.0)
        ).run()
    assert said[-2:] == ["the disk is full", "nothing more is begun; waiting for corpora.two"]
    assert study_log_of(study) == ["two"]


def test_a_step_that_waited_in_vain_for_a_queue_of_its_own_has_failed(tmp_path):
    def work(name):
        queue.Queue().get(timeout=0.01)

    study, steps = steps_that(work, tmp_path)
    with pytest.raises(queue.Empty):
        Schedule(
            study,
            steps,
            connect=lambda step, config: None,
            say=lambda text: None,
            size=lambda: ClusterSize(2.0),
        ).run()


def beside_a_step_at_work(study, steps, connect, monkeypatch, said):
    """Run a schedule whose second step is ready to begin while the first is at work."""
    monkeypatch.setattr(schedule, "LOOK_AGAIN_SECONDS", 0.01)
    sizes = itertools.chain([2.0], itertools.repeat(8.0))  # room for one, until nodes come
    Schedule(study, steps, connect=connect, say=said.append, size=lambda: ClusterSize(next(sizes))).run()


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_step_refused_while_others_have_asked_for_nodes_is_asked_for_again_when_one_has_ended(
    tmp_path, monkeypatch, refusals
):
    refused, said = [], []

    def connect(step, config):
        if config.name == "two" and len(refused) < refusals:
            refused.append(list(study_log_of(study)))
            raise UserError("this cluster cannot ever hold that")

    def work(name):
        if name == "one":
            wait_for(lambda: refused)
            time.sleep(0.05)  # still at work when the schedule looks again

    study, steps = steps_that(work, tmp_path)
    if refusals == 1:
        beside_a_step_at_work(study, steps, connect, monkeypatch, said)
    else:  # the last word, once nothing is at work
        with pytest.raises(UserError, match="cannot ever hold that"):
            beside_a_step_at_work(study, steps, connect, monkeypatch, said)
    assert refused == [[], ["one"]][:refusals], "asked once beside the first step, and again after it"
    assert study_log_of(study) == ["one", "two"][: 3 - refusals]
    waits = "build_corpus two waits for another step to end: this cluster cannot ever hold that"
    assert said.count(waits) == 1


def test_nothing_begins_beside_a_step_that_can_never_begin(tmp_path):
    def connect(step, config):
        if config.name == "two":
            raise UserError("this cluster cannot ever hold that")

    study, steps = steps_that(lambda name: None, tmp_path)
    with pytest.raises(UserError, match="cannot ever hold that"):
        Schedule(study, steps, connect=connect, say=print, size=lambda: ClusterSize(8.0)).run()
    assert study_log_of(study) == []


def study_log_of(study):
    return [entry["name"] for entry in read_log(study.root)]


def wait_for(happened):
    for _ in range(2000):
        if happened():
            return
        time.sleep(0.01)
    pytest.fail("it has not happened within 20 s")


def test_what_stops_a_second_step_is_said_too(tmp_path):
    together, said = threading.Barrier(2, timeout=20), []

    def work(name):
        together.wait()
        raise UserError(f"{name} is ill")

    study, steps = steps_that(work, tmp_path)
    with pytest.raises(UserError, match="is ill") as error:
        Schedule(
            study,
            steps,
            connect=lambda step, config: None,
            say=said.append,
            size=lambda: ClusterSize(8.0, 0.0),
        ).run()
    second = "two" if str(error.value) == "one is ill" else "one"
    assert said[-1] == f"build_corpus {second} has stopped too: {second} is ill"


def test_the_cluster_is_asked_once_for_each_step(tmp_path):
    asked = []
    study, steps = steps_that(lambda name: None, tmp_path)
    gone = running_path(study.root, os.uname().nodename, 2**22 - 1)
    write_json_atomic(
        gone, {"host": os.uname().nodename, "pid": 2**22 - 1, "seen_at": minutes_ago(1), "steps": {}}
    )
    Schedule(
        study, steps, connect=lambda step, config: asked.append(step), say=lambda text: None, size=lambda: ClusterSize(2.0, 0.0),
    ).run()  # fmt: skip
    assert asked == ["1/2 build_corpus one", "2/2 build_corpus two"]
    assert not gone.exists(), "what a killed process has said of itself is cleared away"


def test_a_step_that_another_process_runs_is_warned_of(tmp_path):
    said = []
    study, steps = steps_that(lambda name: None, tmp_path)
    steps_there = {"corpora.two": "2026-01-01T00:00:00+00:00", "pack.x": "-"}
    other = {"host": "elsewhere", "pid": 7, "seen_at": minutes_ago(1), "steps": steps_there}
    write_json_atomic(running_path(study.root, "elsewhere", 7), other)
    host, pid = os.uname().nodename, os.getpid()
    before = other | {"host": host, "pid": pid}
    write_json_atomic(running_path(study.root, host, pid), before)  # of a container that has started again
    Schedule(
        study, steps, connect=lambda step, config: None, say=said.append, size=lambda: ClusterSize(2.0, 0.0)
    ).run()
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert warning.startswith("warning: corpora.two is at work in process 7 on elsewhere since 2026-01-01")


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
        study,
        steps,
        connect=lambda step, config: None,
        say=lambda text: None,
        size=lambda: ClusterSize(2.0, 0.0),
    ).run()
    assert not path.exists()


def test_a_step_that_waits_for_room_starts_when_nodes_come(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "LOOK_AGAIN_SECONDS", 0.01)
    together, looks = threading.Barrier(2, timeout=20), []

    def size():
        looks.append(1)
        return ClusterSize(2.0 if len(looks) < 5 else 8.0)

    said = []
    study, steps = steps_that(lambda name: together.wait(), tmp_path)
    Schedule(study, steps, connect=lambda step, config: None, say=said.append, size=size).run()
    assert "2/2 build_corpus two: parts 1 beside corpora.one" in said
    assert len(looks) >= 5


def test_a_step_is_started_as_soon_as_its_parents_are_finished_while_others_are_at_work(tmp_path):
    """`child` needs `one` alone; `two` is at work until the child is, so waiting for it would never end."""
    child_began = threading.Event()

    def work(name):
        if name == "child":
            child_began.set()
        if name == "two":
            assert child_began.wait(20), "the child was kept waiting for a step it does not need"

    study, steps = steps_that(work, tmp_path)
    child = replace(steps[0], config=steps[0].config.model_copy(update={"name": "child"}), parents=("corpora.one",))  # fmt: skip
    grows = lambda: ClusterSize(0.0, 0.0, grows=True)  # noqa: E731
    Schedule(
        study, [*steps, child], connect=lambda step, config: None, say=lambda text: None, size=grows
    ).run()


def test_a_fit_on_the_driver_does_not_keep_a_step_with_room_from_starting(tmp_path):
    together = threading.Barrier(2, timeout=20)
    study, (one, two) = steps_that(lambda name: together.wait(), tmp_path)
    fit = replace(one, job=replace(one.job, needs_ray=False))
    Schedule(
        study, [fit, two], connect=lambda step, config: None, say=lambda text: None,
        size=lambda: ClusterSize(8.0),
    ).run()  # fmt: skip
