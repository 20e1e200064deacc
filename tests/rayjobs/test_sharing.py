"""What another study has made is taken over, if it is the same."""

from dataclasses import replace

import pytest

from rayjobs import run_study
from rayjobs.cli import Job
from rayjobs.demand import ClusterSize
from rayjobs.schedule import Schedule
from rayjobs.sharing import take_over
from rayjobs.study import Step
from synth.storage import read_json, study_path
from tests.assets.simulated_study import record_of, write_packed
from tests.assets.written_study import build, first_step, study_on
from train.config import RateSweepConfig
from train.rate_sweep import missing_runs
from train.record import read_record, write_record


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


def test_a_study_to_share_with_that_is_nowhere_is_told(text, tmp_path, capsys):
    ours = study_on(text, tmp_path / "ours", share_with=[str(tmp_path / "thiers")])
    build(first_step(ours).config)
    run_study.run_study(
        ours, connect=lambda step, config: pytest.fail("Ray is not needed"), only=("corpora",)
    )
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"[study] warning: share_with = '{tmp_path}/thiers': there is nothing")
    assert "1/1 build_corpus natural: finished already" in said[1]


def test_a_step_done_again_is_not_taken_over(text, tmp_path):
    theirs = study_on(text, tmp_path / "theirs")
    build(first_step(theirs).config)
    ours = study_on(text, tmp_path / "ours", share_with=[theirs.root])
    step, said = first_step(ours), []
    done_here = Step("corpora", replace(step.job, run=build), step.config)
    Schedule(
        ours, [done_here], connect=lambda step, config: None, say=said.append, size=lambda: ClusterSize(2.0), redone=[done_here],
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
    failed = {"status": "failed", "reason": "no memory for one row", "final": None}
    write_record(theirs, record_of(wanted[0]).model_copy(update=failed))
    job = Job(name="sweep_learning_rates", config=RateSweepConfig, plan=lambda config: None, run=lambda config: None)  # fmt: skip
    assert take_over(Step("learning_rates", job, config), [theirs], {}) is None
    assert [read_record(ours, run.run_id) is not None for run in wanted] == [False] + [True] * (
        len(wanted) - 1
    )
