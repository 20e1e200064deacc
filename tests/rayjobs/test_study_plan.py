"""What a study's plan finds wrong before anything starts."""

import pytest

from rayjobs import run_study
from rayjobs.status import status_of
from rayjobs.study import StudyConfig
from synth.identity import claim_directory
from synth.storage import study_path
from tests.assets.study_file import changed
from tests.assets.written_study import study_on


def test_a_steps_mistake_is_said_with_all_others_before_anything_starts(tmp_path, capsys):
    study = changed("corpora.natural.sources", [{"kind": "files", "paths": [str(tmp_path / "nowhere.txt")]}])
    study = changed(
        "corpora.other", {"sources": [{"kind": "docstrings", "packages": ["no_such_package"]}]}, study
    )
    with pytest.raises(run_study.Mistakes) as error:
        run_study.plan_study(StudyConfig.model_validate({**study, "root": str(tmp_path / "study")}))
    assert [each.split(":")[0] for each in error.value.sentences] == ["corpora.natural", "corpora.other"]


def test_a_training_that_no_packed_set_could_make_possible_is_told_before_anything_is_generated(tmp_path):
    two_gpus = {"gpus_per_worker": 2}
    study = changed("pretrain.grid.run", {"rows_per_step": 7, "max_epochs": None})
    study = changed("pretrain.grid.placement", {"workers_per_lane": 2}, study)
    study = changed(
        "search.best", {"synthetic": ["hq"], "cells": [{"model": "98k", "train_tokens": 65536}]}, study
    )
    study["search"]["best"]["placement"] = two_gpus
    study = changed(
        "learning_rates.rates", {"models": ["98k"], "train_tokens": 65536, "placement": two_gpus}, study
    )
    study = changed("generators.writer", {"corpus": "natural", "train_tokens": 10}, study)
    study = StudyConfig.model_validate({**study, "root": str(tmp_path / "study")})
    with pytest.raises(run_study.Mistakes) as error:
        run_study.plan_study(study)
    said = dict(each.split(": ", 1) for each in error.value.sentences)
    assert said.keys() == {"pretrain.grid", "search.best", "learning_rates.rates", "generators.writer"}
    assert said["pretrain.grid"].startswith(
        "rows_per_step = 7 cannot be shared evenly by workers_per_lane = 2"
    )
    assert said["generators.writer"].startswith("train_tokens = 10 is less than one step")
    states = {row.step: row.state for row in status_of(study)}
    assert {key for key, state in states.items() if state == "wrong"} == said.keys()


def test_a_step_that_was_made_otherwise_is_told_with_the_flag_that_makes_it_again(text, tmp_path):
    study = study_on(text, tmp_path / "study")
    directory = study_path(study.root, "corpora", "natural")
    claim_directory(directory, "corpus", {"max_documents": 3}, {})
    with pytest.raises(run_study.Mistakes) as error:
        run_study.plan_study(study)
    (said,) = error.value.sentences
    assert said.startswith(f"corpora.natural: {directory} already holds an artefact of another recipe")
    assert "Or give --force corpora.natural: what is there is moved aside" in said
    plans = run_study.plan_study(study, force=("corpora.natural",))
    assert str(directory) in str(plans[0].facts["is done again"])


def test_more_tokens_assumed_than_the_input_has_bytes_are_told(text, tmp_path):
    def warnings(tokens):
        assumed = {"corpora": {"natural": {"documents": 6, "tokens_per_document": tokens}}}
        return run_study.plan_study(study_on(text, tmp_path / "study", assumptions=assumed))[0].warnings

    assert warnings(100.0) == ()
    (said,) = warnings(100_000.0)
    assert said.startswith("assumptions.corpora.natural makes 600,000 tokens of an input of ")


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
