"""What a job would do and take: what is not there is said, and every figure from a measurement that is named, or from what the user states, or not at all."""

import pytest

from synth.engines.search import TuneEngineConfig
from synth.engines.tuning import make_tunings, run_trial, sample_of
from synth.engines.tunings import EngineSettings, write_tuning
from synth.errors import IncompleteArtefact, UserError
from synth.estimate import plan_rephrase
from synth.rephrase import finish_work, open_work
from tests.synth.conftest import make_parts, text_of


def make(config, parts=None):
    work = open_work(config)
    make_parts(work, parts)
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


# --- the plan ----------------------------------------------------------------------------------------------------


def test_the_plan_counts_what_is_to_do_without_an_engine(fake_config):
    plan = plan_rephrase(fake_config())
    assert not plan.finished
    assert (plan.facts["parts missing"], plan.facts["parts total"], plan.facts["rows, estimated"]) == (
        6,
        6,
        48,
    )
    assert 3_000 < plan.facts["prompt tokens, estimated"] < 30_000
    work = open_work(fake_config())
    assert not work.directory.exists(), "a plan leaves nothing behind"
    make_parts(work, [0, 3])
    assert plan_rephrase(fake_config()).facts["parts missing"] == 4


def test_the_plan_warns_when_the_window_is_shorter_than_the_recipe_asks(fake_config):
    plan = plan_rephrase(fake_config(engine={"kind": "fake", "model": "fake", "max_model_len": 512}))
    assert any(
        "recipe 'hq' about" in warning and "(it asks for 1024 and 768)" in warning
        for warning in plan.warnings
    )


def test_what_is_not_there_is_said_in_one_sentence_that_names_the_remedy(fake_config, tmp_path, make_corpus):
    with pytest.raises(IncompleteArtefact, match="run build_corpus first"):
        plan_rephrase(fake_config(corpus="unknown"))
    with pytest.raises(
        IncompleteArtefact, match=r"generators/tiny is missing or unfinished .*run train_generator first"
    ):
        plan_rephrase(fake_config(engine={"model": "root:generators/tiny"}))
    with pytest.raises(UserError, match=r"engine.model = './nowhere' does not exist"):
        plan_rephrase(fake_config(engine={"model": "./nowhere"}))
    with pytest.raises(
        UserError, match=r"engine.model = 'nobody/nothing' is neither a directory nor in the local hub cache"
    ):
        plan_rephrase(fake_config(engine={"model": "nobody/nothing"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no config.json"):
        plan_rephrase(fake_config(engine={"model": str(tmp_path / "empty")}))
    with pytest.raises(UserError, match="no recipe 'hqq'"):
        plan_rephrase(fake_config(recipes=("hqq",)))


def test_a_hub_that_cannot_be_reached_is_one_sentence(fake_config, monkeypatch):
    """The client's connection errors are its HTTP library's own; a machine that plans may have no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the hub does not give it \(.*Connection refused\)"):
        plan_rephrase(fake_config(engine={"model": "nobody/nothing"}))


def test_an_engine_argument_that_makes_no_sense_is_said_by_the_plan(fake_config):
    with pytest.raises(UserError, match=r"engine.engine_arguments.latency does not suit the fake engine"):
        plan_rephrase(fake_config({"latency": 1.0}))
