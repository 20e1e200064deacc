"""A study file: one root, names from its keys, and references that must lead somewhere."""

import copy

import pydantic
import pytest

from rayjobs.study import StudyConfig, check_references, steps_of
from synth.errors import UserError

STUDY = {
    "root": "somewhere",
    "corpora": {"natural": {"sources": [{"kind": "docstrings", "packages": ["numpy"]}]}},
    "rephrase": {"made": {"corpus": "natural", "recipes": ["hq"], "engine": {"model": "org/model"}}},
    "pack": {
        "packed": {
            "sources": {"natural": {"corpus": "natural"}, "hq": {"synthetic": "made", "recipe": "hq"}},
            "evaluate_on": ["natural"],
        }
    },
    "pretrain": {"grid": {"synthetic": ["hq"], "axes": [{"models": ["98k"], "train_tokens": [65536]}]}},
    "laws": {"fit": {"plan": "grid"}},
    "report": {"report": {"plan": "grid", "laws": "fit"}},
}


def changed(path, value):
    study = copy.deepcopy(STUDY)
    *parents, last = path.split(".")
    table = study
    for key in parents:
        table = table.setdefault(key, {})
    table[last] = value
    return study


def test_steps_run_in_the_order_of_the_flow_under_one_root():
    steps = steps_of(StudyConfig.model_validate(STUDY))
    assert [step.title for step in steps] == [
        "build_corpus natural", "rephrase_corpus made", "pack_tokens packed", "pretrain_models grid", "fit_laws fit",
        "write_report report",
    ]  # fmt: skip
    assert {step.config.root for step in steps} == {"somewhere"}


def test_a_sweep_of_learning_rates_comes_before_the_plan_that_takes_its_rates():
    study = changed("learning_rates.best", {"models": ["98k"], "train_tokens": 65536})
    study["pretrain"]["grid"]["run"] = {"optimizer": {"learning_rates": "best"}}
    checked = StudyConfig.model_validate(study)
    check_references(checked)
    titles = [step.title for step in steps_of(checked)]
    assert titles[2:5] == ["pack_tokens packed", "sweep_learning_rates best", "pretrain_models grid"]


def test_a_sound_study_has_no_mistakes():
    check_references(StudyConfig.model_validate(STUDY))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("rephrase.made.corpus", "unnatural", "rephrase.made.corpus = 'unnatural' is not in [corpora] (there: natural)"),
        ("rephrase.made.engine.model", "root:generators/t", "rephrase.made.engine.model = 't' is not in [generators] (there: none)"),
        ("pack.packed.sources.hq.synthetic", "maid", "pack.packed.sources.hq.synthetic = 'maid' is not in [rephrase]"),
        ("pack.packed.evaluate_on", ["x"], "pack.packed.evaluate_on = 'x' is not in [corpora]"),
        ("pretrain.grid.synthetic", ["qa"], "pretrain.grid.synthetic = 'qa' is not in [pack.packed.sources] (there: hq, natural)"),
        ("pretrain.grid.axes", [{"models": ["9k"], "train_tokens": [65536]}], "pretrain.grid model = '9k' is not in [the table of sizes]"),
        ("pretrain.grid.run", {"optimizer": {"learning_rates": "best"}}, "pretrain.grid.run.optimizer.learning_rates = 'best' is not in [learning_rates] (there: none)"),
        ("learning_rates.best", {"models": ["9k"], "train_tokens": 65536}, "learning_rates.best.models = '9k' is not in [the table of sizes]"),
        ("learning_rates.best", {"models": ["98k"], "train_tokens": 65536, "mixture": {"qa": 1.0}}, "learning_rates.best.mixture = 'qa' is not in [pack.packed.sources]"),
        ("laws.fit.plan", "gird", "laws.fit.plan = 'gird' is not in [pretrain]"),
        ("report.report.laws", "laws", "report.report.laws = 'laws' is not in [laws] (there: fit)"),
    ],
)  # fmt: skip
def test_a_reference_that_leads_nowhere_is_named(path, value, sentence):
    with pytest.raises(UserError) as error:
        check_references(StudyConfig.model_validate(changed(path, value)))
    assert sentence in str(error.value)


def test_all_mistakes_are_told_at_once():
    study = changed("laws.fit.plan", "gird")
    study["report"]["report"]["plan"] = "gird"
    with pytest.raises(UserError) as error:
        check_references(StudyConfig.model_validate(study))
    assert str(error.value).count("gird") == 2


def test_a_share_outside_the_unit_interval_is_refused_with_its_path():
    with pytest.raises(pydantic.ValidationError) as error:
        StudyConfig.model_validate(changed("pretrain.grid.shares", [0.0, 1.2]))
    assert error.value.errors()[0]["loc"] == ("pretrain", "grid", "shares", 1)


def test_a_step_may_not_have_a_root_of_its_own():
    with pytest.raises(pydantic.ValidationError, match=r"laws\.fit\.root is set by the study"):
        StudyConfig.model_validate(changed("laws.fit.root", "elsewhere"))
