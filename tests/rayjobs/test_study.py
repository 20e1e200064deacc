"""A study file: one root, names from its keys, a graph of steps, and every mistake in it told at once."""

import re
import tomllib
from pathlib import Path

import pydantic
import pytest

from rayjobs.cli import sentences
from rayjobs.references import OTHER_DIRECTORIES
from rayjobs.study import SECTIONS, StudyConfig, select, steps_of
from synth.errors import UserError
from tests.assets.study_file import STUDY, changed
from tune.config import Prices

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "rayjobs" / "configs"


def mistakes(study):
    with pytest.raises(pydantic.ValidationError) as error:
        StudyConfig.model_validate(study)
    return sentences(error.value)


TARGET = {"laws": "fit", "target_num_params": 98_000, "target_train_tokens": 131_072}


def test_steps_run_in_the_order_of_the_flow_under_one_root():
    steps = steps_of(StudyConfig.model_validate(STUDY))
    assert [step.title for step in steps] == [
        "build_corpus natural", "rephrase_corpus made", "pack_tokens packed", "pretrain_models grid", "fit_laws fit",
        "write_report report",
    ]  # fmt: skip
    assert {step.config.root for step in steps} == {"somewhere"}


def test_a_sweep_of_learning_rates_comes_before_the_plan_that_takes_its_rates():
    study = changed("learning_rates.best", {"models": ["98k"], "train_tokens": 65536})
    study = changed("pretrain.grid.run", {"optimizer": {"learning_rates": "best"}}, study)
    titles = [step.title for step in steps_of(StudyConfig.model_validate(study))]
    assert titles[2:5] == ["pack_tokens packed", "sweep_learning_rates best", "pretrain_models grid"]


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("rephrase.made.corpus", "unnatural", "rephrase.made.corpus: 'unnatural' is not in [corpora] (there: natural)."),
        ("rephrase.made.engine.model", "root:generators/t", "rephrase.made.engine.model: 't' is not in [generators] (there: none)."),
        ("rephrase.made.recipes", ["hqq"], "rephrase.made.recipes: there is no recipe 'hqq' (shipped: "),
        ("pack.packed.sources.hq.synthetic", "maid", "pack.packed.sources.hq.synthetic: 'maid' is not in [rephrase]"),
        ("pack.packed.sources.hq.recipe", "qa", "pack.packed.sources.hq.recipe: 'qa' is not in rephrase.made.recipes (there: hq)."),
        ("pack.packed.evaluate_on", ["x"], "pack.packed.evaluate_on: 'x' is not in [corpora]"),
        ("pretrain.grid.synthetic", ["qa"], "pretrain.grid.synthetic: 'qa' is not in [pack.packed.sources] (there: hq, natural)."),
        ("pretrain.grid.axes", [{"models": ["9k"], "train_tokens": [65536]}], "pretrain.grid.axes.0.models: '9k' is not in the table of sizes"),
        ("pretrain.grid.axes", [{"models": ["98k"], "train_tokens": [99]}], "pretrain.grid.axes.0.train_tokens: 99 is less than one step of 2,048 tokens"),
        ("pretrain.grid.run", {"optimizer": {"learning_rates": "best"}}, "pretrain.grid.run.optimizer.learning_rates: 'best' is not in [learning_rates] (there: none)."),
        ("learning_rates.best", {"models": ["9k"], "train_tokens": 65536}, "learning_rates.best.models: '9k' is not in the table of sizes"),
        ("learning_rates.best", {"models": ["98k"], "train_tokens": 65536, "mixture": {"qa": 1.0}}, "learning_rates.best.mixture: 'qa' is not in [pack.packed.sources]"),
        ("laws.fit.plan", "gird", "laws.fit.plan: 'gird' is not in [pretrain]"),
        ("report.report.laws", "laws", "report.report.laws: 'laws' is not in [laws] (there: fit)."),
        ("report.report.claims", {"textbook": "hw"}, "report.report.claims.textbook: 'hw' is not in pretrain.grid.synthetic (there: hq)."),
        ("report.report.claims", {"generators": ["hq", "made", "hq"]}, "report.report.claims.generators: 'made' is not in pretrain.grid.synthetic (there: hq)."),
        ("laws.fit.root", "elsewhere", "laws.fit.root: is set by the study itself: remove it"),
        ("assumptions.corpora.wild", {"tokens_per_document": 9.0}, "assumptions.corpora.wild: 'wild' is not in [corpora]"),
        ("rephrase.made.cost", {"device_hour_price": 2.0, "currency": "EUR"}, "rephrase.made.cost.currency: 'EUR' is not prices.currency, 'USD': give both"),
        ("pretrain.grid.shares", [0.0, 1.2], "pretrain.grid.shares.1: Input should be less than or equal to 1 (it is 1.2)."),
        ("report.laws", {"plan": "grid", "laws": "fit"}, "report.laws: is where other things of a study are kept: give the report another name."),
        ("pretrain.more", {"synthetic": ["hq"]}, "pretrain.more.axes is missing: give it in the file of --config."),
        ("root", 5, "root: Input should be a valid string (it is 5)."),
        ("corpora.New York", {"sources": [{"kind": "docstrings", "packages": ["numpy"]}]}, "corpora.New York.[key]: String should match pattern"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_its_dotted_path(path, value, sentence):
    assert [each[: len(sentence)] for each in mistakes(changed(path, value))] == [sentence]


def test_claims_may_name_what_a_search_alone_mixes_in():
    sources = {**STUDY["pack"]["packed"]["sources"], "qa": {"synthetic": "made"}}
    study = changed("pack.packed.sources", sources)
    cells = [{"model": "98k", "train_tokens": 65536}]
    study = changed("search", {"qa": {"synthetic": "qa", "cells": cells}, "both": {"synthetic": ["hq", "qa"], "cells": cells}}, study)  # fmt: skip
    study = changed("report.report.claims", {"question_answer": "qa"}, study)
    assert mistakes(study) == [
        "report.report.claims.question_answer: 'qa' is not in pretrain.grid.synthetic (there: hq)."
    ]
    assert StudyConfig.model_validate(changed("report.report.searches", ["qa", "both"], study))
    (told,) = mistakes(changed("report.report.searches", ["both"], study))  # a mixture of two is no source
    assert "'qa' is not in pretrain.grid.synthetic or search.both.synthetic" in told


def test_mistakes_of_all_kinds_are_told_at_once():
    study = changed("laws.fit.plan", "gird")  # a reference that leads nowhere
    study = changed("report.report.plan", "gird", study)  # another one, in another section
    study = changed("pretrain.grid.shares", [2.0], study)  # a value out of range
    study = changed("pack.packed.sequence_lenght", 7, study)  # a key that does not exist
    study = changed("rephrase.made.corpus", "x", study)
    told = mistakes(study)
    assert len(told) == 5
    assert {each.split(" ")[0].split(":")[0] for each in told} == {
        "laws.fit.plan", "report.report.plan", "pretrain.grid.shares.0", "pack.packed.sequence_lenght", "rephrase.made.corpus",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"pretrain.grid.sharez": [1], "pretrain.grid.packed": "nowhere"},
            ["pretrain.grid.sharez is not a field that exists", "pretrain.grid.packed: 'nowhere' is not in [pack]"],
        ),
        (
            {"pretrain.grid.shares": [0.0, 1.5], "pretrain.grid.axes": [{"models": ["99q"], "train_tokens": [65536]}]},
            ["pretrain.grid.shares.1: Input should be", "pretrain.grid.axes.0.models: '99q' is not in the table"],
        ),
        (
            {"search.s": {"synthetic": "hq", "cells": [], "share_range": [0.9, 0.1], "packed": "nowhere"}},
            [
                "search.s.cells: Tuple should have at least 1 item",
                "search.s: share_range = [0.9, 0.1]: the first must be below",
                "search.s.packed: 'nowhere' is not in [pack]",
            ],
        ),
        (
            {"search.s": {"synthetic": "hq", "cells": [{"model": "99q", "train_tokens": 65536}], "share_range": [0.9, 0.1]}},
            ["search.s: share_range = [0.9, 0.1]", "search.s.cells.0.model: '99q' is not in the table of sizes"],
        ),
        (
            {"recommend.r": {"laws": "fit", "target_num_params": -1}},
            ["recommend.r.target_num_params: Input should be", "recommend.r: target_train_tokens is missing"],
        ),
        (
            {"pack.packed.sources": {"natural": {"corpus": "natural"}, "hq": {"synthetic": "made", "recipe": 5}}, "pretrain.grid.synthetic": ["qa"]},
            ["pack.packed.sources.hq.recipe: Input should be a valid string", "pretrain.grid.synthetic: 'qa' is not in [pack.packed.sources]"],
        ),
        (  # what would be said of the sources if they were known is not known
            {"pack.packed.sources": 5},
            ["pack.packed.sources: Input should be a valid dictionary"],
        ),
        (  # of a table that is none it must not be told that it lacks something
            {"pretrain.grid.run": {"branching": True, "optimizer": 5}},
            ["pretrain.grid.run.optimizer: Input should be a valid dictionary"],
        ),
        (  # a wrong engine must not be told that it takes no endpoint
            {"rephrase.made.engine": {"model": "m", "kind": "htpp", "endpoint": "http://node:1/v1"}},
            ["rephrase.made.engine.kind: Input should be 'vllm'"],
        ),
        (
            {"corpora.natural.sources": [{"kind": "files", "paths": 5}], "corpora.natural.disjoint_from": ["wild"]},
            ["corpora.natural.sources.0.files.paths: Input should be", "corpora.natural.disjoint_from: 'wild' is not in"],
        ),
        (  # two cells whose sizes are not known are not one cell
            {"search.s": {"synthetic": "hq", "cells": [{"model": 1, "train_tokens": 65536}, {"model": 2, "train_tokens": 65536}]}},
            ["search.s.cells.0.model: Input should be", "search.s.cells.1.model: Input should be"],
        ),
        ({"pretrain.grid.shares": []}, ["pretrain.grid.shares: Tuple should have at least 1 item"]),
        ({"pretrain.grid.seeds": []}, ["pretrain.grid.seeds: Tuple should have at least 1 item"]),
        (
            {"laws.fit.drop_highest_losses": 4},
            ["laws.fit.drop_highest_losses: 4 leaves none of the 4 runs of pretrain.grid: lower it."],
        ),
        (
            {"pretrain.grid.shares": [0.33, 0.67, 1.0], "recommend.r": TARGET},
            ["pretrain.grid.shares: 0 is not among them, and recommend.r compares with natural text: add 0."],
        ),
        (
            {"pretrain.grid.shares": [0.0, 0.5], "recommend.r": TARGET},
            ["pretrain.grid.shares: a best share, which recommend.r looks for, needs 3 shares with 0: add one."],
        ),
        (
            {"corpora.natural.held_out_fraction": 0.0},
            ["pack.packed.evaluate_on: held_out_fraction of natural is 0, so there is no text to evaluate on"],
        ),
        (
            {"pretrain.grid.shares": [0.331, 0.334]},
            ["pretrain.grid.shares: 0.331 and 0.334 are both 33 %, which laws would take for one mixture"],
        ),
    ],
)  # fmt: skip
def test_no_mistake_hides_another_and_none_is_made_up(changes, told):
    study = STUDY
    for path, value in changes.items():
        study = changed(path, value, study)
    said = mistakes(study)
    assert [each[: len(start)] for each, start in zip(said, told, strict=True)] == told


def test_every_field_of_a_study_can_be_wrong_without_hiding_a_reference_beside_it():
    """Each field of each step in turn is given a value of no type it takes; one reference elsewhere is always told."""
    for section, job in SECTIONS.items():
        for field in job.config.model_fields.keys() - {"name", "root"}:
            study = changed("laws.other.plan", "gird")
            table = study.setdefault(section, {}).setdefault("broken", {})
            table[field] = {"no": ["such", {"thing": 1}]}
            said = mistakes(study)
            assert any("laws.other.plan: 'gird' is not in" in each for each in said), (section, field)
            assert all(each.startswith((f"{section}.broken", "laws.other")) for each in said), said


@pytest.mark.parametrize("endpoint", ["http://me:hush@node7:8000/v1", "https://node7/v1?key=hush"])
def test_a_key_in_an_address_is_refused_and_not_said_again(endpoint):
    engine = {"model": "org/model", "kind": "http", "endpoint": endpoint}
    (said,) = mistakes(changed("rephrase.made.engine", engine))
    assert said.startswith("rephrase.made.engine: endpoint carries a credential")
    assert "hush" not in said


def test_no_report_may_lie_where_other_things_of_a_study_do():
    tree = (ROOT / "docs" / "formats.md").read_text().split("```")[1]
    assert set(re.findall(r"^  ([a-z_]+)/", tree, re.MULTILINE)) == OTHER_DIRECTORIES


def test_a_circle_of_steps_is_refused():
    generator = {"corpus": "natural", "synthetic": "made", "natural_fraction": 0.5}
    study = changed("generators", {"g": generator})
    study = changed("rephrase.made.engine.model", "root:generators/g", study)
    assert mistakes(study) == [
        "generators.g: needs itself, through generators.g and rephrase.made: break the circle."
    ]


def test_rounds_are_spelled_out_as_many_as_there_are():
    study = changed("rounds", 3)
    study = changed("generators.round0", {"corpus": "natural"}, study)
    learns = {"corpus": "natural", "synthetic": "round{previous}", "natural_fraction": 0.5}
    study["generators"]["round{previous}"] = learns
    writes = {"corpus": "natural", "recipes": ["hq"], "engine": {"model": "root:generators/round{previous}"}}
    study["rephrase"]["round{round}"] = writes
    study["pack"]["packed"]["sources"]["round{round}"] = {"synthetic": "round{round}"}
    study["pretrain"]["grid"]["synthetic"] = ["hq", "round{round}"]
    found = StudyConfig.model_validate(study)
    assert list(found.generators) == ["round0", "round1", "round2"]
    assert [each.synthetic for each in found.generators.values()] == [None, "round1", "round2"]
    engines = [found.rephrase[f"round{number}"].engine.model for number in (1, 2, 3)]
    assert engines == [f"root:generators/round{number}" for number in (0, 1, 2)]
    assert found.pretrain["grid"].synthetic == ("hq", "round1", "round2", "round3")
    chain = [step.key for step in steps_of(found) if "round" in step.key]
    assert chain == [
        f"{kind}.round{n + (kind == 'rephrase')}" for n in range(3) for kind in ("generators", "rephrase")
    ]
    for seven in (7, "7"):  # a flag is a word
        assert len(StudyConfig.model_validate(study | {"rounds": seven}).rephrase) == 1 + 7


def test_what_is_wrong_in_every_round_is_told_once_where_it_is_written():
    study = changed("rounds", 4)
    study["rephrase"]["round{round}"] = {
        "corpus": "wild",
        "recipes": ["hq"],
        "engine": {"model": "m"},
        "sead": 1,
    }
    study["pretrain"]["grid"]["synthetic"] = ["hq", "{round}"]
    told = mistakes(study)
    assert [each for each in told if each.startswith("rephrase")] == [
        "rephrase.round{round}.sead is not a field that exists: remove it or mend its spelling (python -m rayjobs.rephrase_corpus --help lists all fields).",
        "rephrase.round{round}.corpus: 'wild' is not in [corpora] (there: natural).",
    ]


def test_a_name_for_every_round_without_rounds_is_told():
    study = changed("pretrain.grid.synthetic", ["round{round}"])
    said = mistakes(study)
    assert said[-1] == (
        "rounds: is missing, and pretrain.grid.synthetic.0 stands for every round: give how many there are."
    )
    assert mistakes(study | {"rounds": 0})[0].startswith("rounds: Input should be greater than or equal to 1")


def test_a_chain_of_generators_runs_round_by_round():
    study = changed("generators.first", {"corpus": "natural"})
    study = changed("rephrase.made.engine.model", "root:generators/first", study)
    study = changed(
        "generators.second", {"corpus": "natural", "synthetic": "made", "natural_fraction": 0.5}, study
    )
    again = {"corpus": "natural", "recipes": ["hq"], "engine": {"model": "root:generators/second"}}
    study = changed("rephrase.again", again, study)
    keys = [step.key for step in steps_of(StudyConfig.model_validate(study))]
    chain = ["corpora.natural", "generators.first", "rephrase.made", "generators.second", "rephrase.again"]
    assert [key for key in keys if key in chain] == chain


# --- prices ----------------------------------------------------------------------------------------------------


def prices_of(study, key="recommend.best"):
    return next(step.config.prices for step in steps_of(StudyConfig.model_validate(study)) if step.key == key)


def test_a_recommendation_has_the_prices_and_sizes_of_its_study_where_it_has_none_of_its_own():
    target = {"target_num_params": 10**9, "target_train_tokens": 10**10}
    study = changed("recommend.best", {"laws": "fit", **target})
    assert prices_of(study) == Prices()
    study = changed("prices", {"generation_device_hour": 2.5, "training_device_hour": 3.0}, study)
    other = {**STUDY["rephrase"]["made"], "engine": {"model": "org/other"}}
    study = changed("rephrase.other", other, study)
    sizes = {"answer_tokens_per_source_token": 1.0, "accepted_fraction": 1.0, "generator_num_params": 7}
    study = changed("assumptions.rephrase", {"made": sizes, "other": sizes}, study)
    assert prices_of(study) == Prices(
        generation_per_device_hour=2.5,
        training_per_device_hour=3.0,
        assumed_generator_num_params={"made": 7},  # of the set behind its laws, and of no other
    )
    own = {"training_per_device_hour": 9.0, "assumed_generator_num_params": {"made": 8}}
    study = changed("recommend.best.prices", own, study)
    assert prices_of(study) == Prices(generation_per_device_hour=2.5, **own)


@pytest.mark.parametrize("name", ["single_gpu", "paper"])
def test_the_shipped_studies_of_real_generators_know_what_generation_costs(name):
    study = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    prices = prices_of(study, "recommend.recommendation")
    assert None not in (prices.generation_per_device_hour, prices.training_per_device_hour)
    assert set(prices.assumed_generator_num_params) >= set(study["report"]["report"]["synthetic"])


# --- choosing steps --------------------------------------------------------------------------------------------


def keys_of(steps):
    return [step.key for step in steps]


def test_only_takes_one_step_and_until_takes_what_it_needs_too():
    study = StudyConfig.model_validate(STUDY)
    assert keys_of(select(study, only=("pretrain.grid",)).steps) == ["pretrain.grid"]
    assert keys_of(select(study, until=("pack",)).steps) == [
        "corpora.natural",
        "rephrase.made",
        "pack.packed",
    ]
    assert len(select(study).steps) == 6


def test_force_takes_what_is_made_from_a_step_with_it():
    study = StudyConfig.model_validate(STUDY)
    assert keys_of(select(study, force=("pretrain.grid",)).redone) == [
        "pretrain.grid",
        "laws.fit",
        "report.report",
    ]
    alone = select(study, only=("pretrain.grid",), force=("pretrain.grid",))
    assert keys_of(alone.redone) == ["pretrain.grid"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"only": ("pretrain.gird",)}, "--only pretrain.gird is no step of this study; did you mean pretrain.grid?"),
        ({"only": ("lawz",)}, "--only lawz is no step of this study; did you mean laws?"),
        ({"until": ("zzz",)}, "--until zzz is no step of this study; there are corpora.natural, "),
        ({"only": ("laws",), "force": ("report",)}, "--force report.report: --only and --until leave this step out"),
    ],
)  # fmt: skip
def test_a_step_that_is_not_there_is_one_sentence(flags, sentence):
    with pytest.raises(UserError) as error:
        select(StudyConfig.model_validate(STUDY), **flags)
    assert str(error.value).startswith(sentence)
