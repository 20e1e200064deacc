"""What a study will take, from its file alone: exact where it counts, and honest where it cannot."""

import tomllib
from pathlib import Path

import pytest

from rayjobs.forecast import StudyForecast
from rayjobs.run_study import total_of
from rayjobs.study import StudyConfig, steps_of
from tests.assets.study_file import STUDY, changed
from train.flops import count_parameters, train_flops
from train.sizes import model_of


def forecasts(study):
    config = StudyConfig.model_validate(study)
    steps = steps_of(config)
    forecast = StudyForecast(config, steps)
    return {step.key: forecast.of(step) for step in steps}


ASSUMED = {
    "corpora": {"natural": {"documents": 1000, "tokens_per_document": 500.0}},
    "rephrase": {"made": {"answer_tokens_per_source_token": 0.5, "accepted_fraction": 0.8, "generator_num_params": 1000}},
    "training": {"peak_flops_per_device_second": 1e9, "model_flops_utilization": 0.5},
}  # fmt: skip


def assumed_study(**more):
    study = changed("assumptions", ASSUMED)
    study = changed("rephrase.made.cost", {"tokens_per_device_second": 100.0}, study)
    study = changed("prices", {"generation_device_hour": 3.0, "training_device_hour": 2.0}, study)
    study = changed("pretrain.grid.run", {"max_epochs": None, **more}, study)
    return changed("pack.packed.tokenizer", {"vocab_size": 1024}, study)


def test_generation_is_counted_from_what_is_assumed():
    found = forecasts(assumed_study())["rephrase.made"]
    train_documents = 1000 * 0.95
    assert found.generated_tokens == pytest.approx(train_documents * 500 * 0.5)
    assert found.generation_device_hours == pytest.approx(found.generated_tokens / 100 / 3600)
    assert found.money == pytest.approx(found.generation_device_hours * 3.0)
    assert found.facts["accepted tokens"] == round(found.generated_tokens * 0.8)
    assert found.generation_flops == pytest.approx(
        2000 * (found.facts["prompt tokens"] + found.generated_tokens)
    )


def test_a_document_cut_into_chunks_is_sent_once():
    def prompt_tokens(length):
        corpora = {"natural": {"documents": 1000, "tokens_per_document": length}}
        study = changed("assumptions", {**ASSUMED, "corpora": corpora})
        return forecasts(study)["rephrase.made"].facts["prompt tokens"]

    documents = 1000 * 0.95
    frame = (
        prompt_tokens(500.0) / documents - 500
    )  # what is around a chunk, of which hq sends 512 tokens at most
    assert prompt_tokens(600.0) == pytest.approx(documents * (600 + 2 * frame), abs=1)


def test_training_is_counted_exactly_and_priced_by_the_assumed_speed():
    found = forecasts(assumed_study())["pretrain.grid"]
    runs, tokens = 4, 65536
    flops = runs * train_flops(model_of("98k"), 1024, 256, tokens)
    assert found.facts["runs"] == runs
    assert found.trained_tokens == runs * tokens
    assert found.training_flops == pytest.approx(flops)
    assert found.training_device_hours == pytest.approx(flops / 5e8 / 3600)
    assert found.money == pytest.approx(2.0 * flops / 5e8 / 3600)
    assert count_parameters(model_of("98k"), 1024).non_embedding < 100_000


def test_branches_of_a_trunk_are_counted_once():
    axes = [{"models": ["98k"], "train_tokens": [65536, 131072, 262144]}]
    branching = {"branching": True, "optimizer": {"warmup_tokens": 4096}}
    apart = forecasts(changed("pretrain.grid.axes", axes, assumed_study()))["pretrain.grid"]
    shared = forecasts(changed("pretrain.grid.axes", axes, assumed_study(**branching)))["pretrain.grid"]
    assert shared.trained_tokens + shared.facts["tokens saved by branching"] == apart.trained_tokens
    assert shared.trained_tokens < 0.8 * apart.trained_tokens


def test_a_source_that_would_be_read_too_often_is_a_warning():
    axes = [{"models": ["98k"], "train_tokens": [1_048_576]}]
    found = forecasts(changed("pretrain.grid.axes", axes, assumed_study(max_epochs=1.0)))["pretrain.grid"]
    assert "with the assumed sizes, train_tokens = 1,048,576 needs" in found.warnings[0]


@pytest.mark.parametrize("path", sorted(Path("rayjobs/configs").glob("*.toml")), ids=lambda path: path.stem)
def test_no_shipped_study_would_stop_after_generation_for_want_of_text(path):
    found = forecasts(tomllib.loads(path.read_text()))
    assert {key: each.warnings for key, each in found.items() if each.warnings} == {}


def test_where_nothing_is_assumed_there_is_no_number_but_the_field_that_would_give_one():
    found = forecasts(STUDY)
    assert found["corpora.natural"].facts == {"tokens": "unknown: give assumptions.corpora.natural"}
    assert found["rephrase.made"].generated_tokens is None
    assert found["pretrain.grid"].trained_tokens == 4 * 65536  # counted all the same
    assert found["pretrain.grid"].training_device_hours is None
    assert "assumptions.training" in found["pretrain.grid"].facts["device-hours"]


def test_the_sum_says_where_it_is_only_the_least():
    some = forecasts(changed("assumptions.training", ASSUMED["training"]))
    facts = total_of(list(some.values()), "USD")
    assert facts["tokens generated"] == "unknown for 1 of 6 steps, see there"
    assert facts["device-hours of training"] > 0
    assert total_of(list(some.values()), None)["price"].startswith("no price set: give [prices]")
    everything = total_of(list(forecasts(assumed_study()).values()), "USD")
    assert everything["price, USD"] == pytest.approx(
        sum(each.money for each in forecasts(assumed_study()).values()), rel=1e-3
    )
