"""What a step has left is moved aside when it is done again; nothing is deleted."""

import pytest

from rayjobs import run_study
from rayjobs.aside import move_aside, own_runs, what_is_there
from rayjobs.schedule import running_path
from rayjobs.study import StudyConfig, steps_of
from synth.identity import is_finished
from synth.storage import list_names, study_path, write_json_atomic
from tests.assets.study_file import STUDY, changed
from tests.assets.written_study import build, first_step, minutes_ago, study_on


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


def test_what_another_process_is_making_is_not_moved_from_under_it(text, tmp_path):
    study = study_on(text, tmp_path / "study")
    entry = {"host": "elsewhere", "pid": 7, "steps": {"corpora.natural": "2026-01-01T00:00:00+00:00"}}
    path = running_path(study.root, "elsewhere", 7)
    write_json_atomic(path, entry | {"seen_at": minutes_ago(1)})
    with pytest.raises(
        run_study.Mistakes, match=r"corpora\.natural: --force .* while process 7 on elsewhere makes it"
    ) as error:
        run_study.plan_study(study, force=("corpora.natural",))
    assert "wait for that process or end it first" in str(error.value)
    assert run_study.plan_study(study, force=("pack.packed",)), "another step is none of its business"
    write_json_atomic(path, entry | {"seen_at": minutes_ago(60)})
    assert run_study.plan_study(study, force=("corpora.natural",))


def test_a_dry_run_says_what_would_be_moved_aside_and_moves_nothing(text, tmp_path, capsys):
    study = study_on(text, tmp_path / "study")
    build(first_step(study).config)
    plans = run_study.plan_study(study, force=("corpora.natural",))
    assert str(tmp_path / "study/corpora/natural") in plans[0].facts["is done again"]
    assert is_finished(study_path(study.root, "corpora", "natural"))
