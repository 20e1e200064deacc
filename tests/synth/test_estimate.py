"""What a job would take: every figure from a measurement that is named, or from what the user states, or not at all."""

import asyncio

import pytest

from synth.engines.factory import open_engine
from synth.engines.search import TuneEngineConfig
from synth.engines.tuning import make_tunings, run_trial, sample_of
from synth.engines.tunings import EngineSettings, write_tuning
from synth.estimate import plan_rephrase
from synth.ledger import missing_parts
from synth.rephrase import finish_work, open_work
from synth.worker import RephraseWorker
from tests.synth.conftest import text_of


def make(config, parts=None):
    work = open_work(config)
    work.claim()

    async def everything():
        worker = RephraseWorker(work, open_engine(config.engine, config.placement, work.model))
        todo = missing_parts(work.directory, work.num_parts) if parts is None else parts
        try:
            await asyncio.gather(*(worker.make_part(part) for part in todo))
        finally:
            await worker.close()

    asyncio.run(everything())
    return work


def test_without_a_measurement_or_a_statement_there_is_no_number(fake_config):
    facts = plan_rephrase(fake_config(cost={"device_hour_price": 2.0})).facts
    assert facts["device-hours at most, estimated"].startswith("unknown: no run of this model was measured")
    assert not any("price" in name for name in facts)
    assert facts["output tokens at most, estimated"] == 48 * 768
    assert facts["output tokens rest on"].startswith("the longest answer each recipe allows, for hq, qa")


def test_a_stated_speed_gives_hours_and_money_and_is_said_to_be_assumed(fake_config):
    cost = {"device_hour_price": 2.0, "currency": "EUR", "tokens_per_device_second": 100.0}
    facts = plan_rephrase(fake_config(cost=cost)).facts
    hours = 48 * 768 / 100 / 3600
    assert facts["device-hours at most, estimated"] == pytest.approx(hours)
    assert facts["price at most, EUR, estimated"] == pytest.approx(2 * hours)
    assert "cost.tokens_per_device_second, which is assumed" in facts["device-hours rest on"]


def test_an_earlier_set_of_the_same_model_is_measured_ground(fake_config):
    first = make(fake_config({"refusal_fraction": 0.3}, name="first"))
    manifest = finish_work(first)
    facts = plan_rephrase(fake_config({"refusal_fraction": 0.3}, name="second", max_documents=12, cost={"tokens_per_device_second": 1.0})).facts  # fmt: skip
    assert facts["output tokens, estimated"] == pytest.approx(manifest["completion_tokens"] / 2, rel=0.02)
    assert facts["accepted tokens, estimated"] == pytest.approx(manifest["accepted_tokens"] / 2, rel=0.02)
    assert facts["output tokens rest on"] == "the mean answers of synthetic/first (6 parts)"
    speed = manifest["completion_tokens"] / manifest["device_seconds"]
    assert facts["device-hours, estimated"] == pytest.approx(
        facts["output tokens, estimated"] / speed / 3600, rel=0.01
    )
    assert "synthetic/first (6 parts)" in facts["device-hours rest on"]


def test_a_recipe_that_was_not_measured_falls_back_to_its_longest_answer(fake_config):
    finish_work(make(fake_config(name="first", recipes=("hq",))))
    facts = plan_rephrase(fake_config(name="second")).facts
    assert "for qa: none was measured" in facts["output tokens rest on"]
    assert "output tokens at most, estimated" in facts
    other = fake_config(name="third", recipes=("hq",), engine={"kind": "fake", "model": "other"})
    assert "output tokens at most, estimated" in plan_rephrase(other).facts, (
        "another model's answers say nothing"
    )


def test_what_is_done_of_a_set_says_most_about_the_rest(fake_config):
    make(fake_config(), parts=[0, 1])
    facts = plan_rephrase(fake_config()).facts
    assert facts["parts missing"] == 4
    assert facts["rows, estimated"] == 32
    assert facts["output tokens rest on"] == "the mean answers of the 2 parts done so far"
    assert isinstance(facts["device-hours, estimated"], float)
    make(fake_config())
    assert plan_rephrase(fake_config(name="some", max_documents=10)).facts["rows, estimated"] == 20
    assert "rows, estimated" not in plan_rephrase(fake_config()).facts


def test_a_last_part_that_is_not_full_is_counted_as_it_is(fake_config, natural, make_corpus):
    make_corpus(natural, [text_of(number) for number in range(10)], documents_per_part=4, name="odd")
    facts = plan_rephrase(fake_config(corpus="odd")).facts
    assert (facts["parts missing"], facts["documents to rephrase"], facts["rows, estimated"]) == (3, 10, 20)
    make(fake_config(corpus="odd"), parts=[2])
    assert plan_rephrase(fake_config(corpus="odd")).facts["documents to rephrase"] == 8


def test_prompts_are_counted_in_parts_from_all_of_the_corpus(fake_config, natural, make_corpus):
    sizes = [number + 1 for number in range(40)]
    make_corpus(
        natural, [text_of(at, size) for at, size in enumerate(sizes)], documents_per_part=4, name="grows"
    )
    whole = {
        "chunking": {"unit": "document", "max_length": None},
        "max_input_tokens": 4000,
        "sampling": {"max_output_tokens": 50},
    }
    facts = plan_rephrase(fake_config(corpus="grows", recipes=("hq",), recipe_overrides=whole)).facts
    assert facts["prompt tokens rest on"] == "32 documents of 8 of these parts, 4 bytes guessed a token"
    first = plan_rephrase(
        fake_config(corpus="grows", recipes=("hq",), recipe_overrides=whole, max_documents=4)
    ).facts
    ratio = facts["prompt tokens, estimated"] / first["prompt tokens, estimated"]
    assert ratio > 20, "ten parts, the later documents of which are longer than those of the first"


def test_what_a_tuning_saw_is_measured_ground_too(fake_config):
    config = TuneEngineConfig.model_validate(fake_config({"refusal_fraction": 0.3}).model_dump())
    work = open_work(config)
    settings = EngineSettings(
        max_num_seqs=8, max_num_batched_tokens=4096, gpu_memory_utilization=None, tensor_parallel=1, speculative=None
    )  # fmt: skip
    trial = run_trial(sample_of(work, 24), settings, 60)
    (tuning,) = make_tunings(work, "fake", [trial], 0.02)
    write_tuning(config.root, tuning)
    facts = plan_rephrase(fake_config({"refusal_fraction": 0.3})).facts
    manifest = finish_work(make(fake_config({"refusal_fraction": 0.3})))
    assert facts["output tokens, estimated"] == pytest.approx(manifest["completion_tokens"], rel=0.01)
    assert facts["accepted tokens, estimated"] == pytest.approx(manifest["accepted_tokens"], rel=0.01)
    assert facts["output tokens rest on"] == f"the mean answers of tunings/{tuning.name} on fake"
    assert f"tunings/{tuning.name} on fake" in facts["device-hours rest on"]


@pytest.mark.slow
def test_prompts_are_counted_by_the_models_own_tokenizer_where_it_is_at_hand(natural, tiny_model):
    from synth.config import RephraseConfig

    engine = {"model": str(tiny_model), "max_model_len": 1024}
    config = RephraseConfig.model_validate(
        {"root": natural, "corpus": "natural", "recipes": ("hq",), "engine": engine}
    )
    facts = plan_rephrase(config).facts
    assert (
        facts["prompt tokens rest on"]
        == "24 documents of 6 of these parts, the model's tokenizer, chat marks aside"
    )
    assert facts["prompt tokens, estimated"] > 24 * 100
