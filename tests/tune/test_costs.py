"""What a recommended mixture costs and whether it pays: from prices given, measured or assumed, or not known and said so."""

import json
import shutil

import pytest

from synth.storage import study_path, write_json_atomic
from tests.assets.known_truth import TARGET_D, TARGET_N, asked, true_loss, write_study
from train.flops import count_parameters
from train.sizes import model_of
from tune.recommendation import recommend_mixture


def test_what_pays_is_the_recommended_share_and_not_the_mixture_nearest_to_it(early):
    found = recommend_mixture(asked(early, name="pays"))
    assert found.best_group == "natural"
    assert found.pays_reason.startswith("a share of ")
    ratio = found.natural_cost_ratio
    assert f"interval {ratio.low:.3g} times as much to {ratio.high:.3g} times as much" in found.pays_reason
    assert ratio.low < 1.0 < ratio.high
    assert found.pays == "unclear"
    # Natural text would need as many times more tokens as the truth says, within the interval of what is known of it.
    gain = true_loss(TARGET_N, TARGET_D, 0.0, 0.15) - true_loss(
        TARGET_N, TARGET_D, found.best_share.value, 0.15
    )
    data_term = true_loss(TARGET_N, TARGET_D, 0.0, 0.15) - true_loss(TARGET_N, 1e30, 0.0, 0.15)
    assert ratio.low < (1.0 - gain / data_term) ** (-1 / 0.3) < ratio.high
    by_what = {each.what: each for each in found.sensitivity}
    cheap, dear = (by_what[f"generation cost {factor} times as much"] for factor in ("0.25", "4"))
    assert cheap.natural_cost_ratio.value > ratio.value > dear.natural_cost_ratio.value
    assert (
        by_what["D were 2 times as large"].natural_cost_ratio
        != by_what["N were 2 times as large"].natural_cost_ratio
    )
    ruinous = recommend_mixture(asked(early, name="ruinous", prices={"generator_num_params": 10**9}))
    assert ruinous.pays == "no"
    assert ruinous.natural_cost_ratio.high < 1.0


def test_counts_what_it_costs(study):
    prices = {"generation_per_device_hour": 2.0, "training_per_device_hour": 3.0}
    found = recommend_mixture(asked(study, name="costs", prices=prices))
    synthetic = found.best_share.value * TARGET_D
    assert found.synthetic_tokens == synthetic
    assert found.training_flops == 6.0 * TARGET_N * TARGET_D
    assert found.generation_flops == pytest.approx(
        2.0 * 1000 * 5 * synthetic
    )  # 2 N, five tokens for each one trained on
    assert found.generation_device_hours == pytest.approx(
        synthetic / 2 / 50.0 / 3600, rel=1e-4
    )  # half of them accepted
    largest = 6.0 * 98_000 * 10_000  # FLOP/s of the runs of the largest model, about
    assert found.training_device_hours == pytest.approx(found.training_flops / largest / 3600, rel=0.05)
    assert found.cost == pytest.approx(
        2.0 * found.generation_device_hours + 3.0 * found.training_device_hours
    )


def test_pays_while_generation_is_cheap_and_not_when_it_is_dear(study):
    assert recommend_mixture(asked(study, name="cheap")).pays == "yes"
    dear = recommend_mixture(asked(study, name="dear", prices={"generator_num_params": 1_000_000_000}))
    assert dear.pays == "no"
    assert "times as much" in dear.pays_reason
    free_flops = {
        "generation_per_device_hour": 0.0,
        "training_per_device_hour": 1.0,
        "generator_num_params": 1_000_000_000,
    }
    assert (
        recommend_mixture(asked(study, name="free", prices=free_flops)).pays == "yes"
    )  # money counts where it is known


def test_what_is_not_known_stays_null(tmp_path):
    root = str(tmp_path)
    write_study(root)
    made = study_path(root, "synthetic", "rephrased", "manifest.json")
    told = json.loads(made.read_text())
    told["recipe"]["engine"]["model"] = "someone/instruct-8b"
    told["accepted_tokens_per_device_second"] = None
    write_json_atomic(made, told)
    found = recommend_mixture(asked(root))
    assert (found.generation_flops, found.generation_device_hours, found.cost, found.pays) == (
        None,
        None,
        None,
        "unclear",
    )
    assert any(
        "give prices.generator_num_params, or in a study assumptions.rephrase.rephrased.generator_num_params"
        in each
        for each in found.warnings
    )
    assert any("give prices.generation_tokens_per_device_second" in each for each in found.warnings)


@pytest.fixture
def generator_of(study, tmp_path):
    """`generator_of(model, name, **prices)` -> its parameters as a recommendation takes them, and where it has them from."""
    root = str(tmp_path / "study")
    shutil.copytree(study, root)
    made = study_path(root, "synthetic", "rephrased", "manifest.json")

    def generator_of(model, name, **prices):
        told = json.loads(made.read_text())
        told["recipe"]["engine"]["model"] = model
        write_json_atomic(made, told)
        found = recommend_mixture(asked(root, name=name, prices=prices))
        says = next(each for each in found.evidence if each.startswith("parameters of "))
        # Five tokens read and written for each one trained on, 2 N FLOP each.
        return found.generation_flops / found.synthetic_tokens / 5 / 2, says

    return generator_of


@pytest.fixture
def instruct(tmp_path):
    """Return (directory of a model's configuration, its parameters)."""
    model = model_of("98k")
    own = {
        "model_type": "llama", "vocab_size": 64, "num_hidden_layers": model.num_layers, "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size, "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads, "tie_word_embeddings": model.tie_embeddings,
    }  # fmt: skip
    (tmp_path / "instruct").mkdir()
    write_json_atomic(study_path(str(tmp_path), "instruct", "config.json"), own)
    return str(tmp_path / "instruct"), count_parameters(model, 64).total


ASSUMED = {"assumed_generator_num_params": {"rephrased": 7_000_000}}


def test_a_generators_size_is_given_or_assumed(generator_of, instruct):
    num_params, says = generator_of("someone/instruct-8b", "assumed", **ASSUMED)
    assert num_params == pytest.approx(7_000_000)
    assert says.endswith("7,000,000, assumed")
    num_params, _ = generator_of(instruct[0], "given", generator_num_params=9, **ASSUMED)
    assert num_params == pytest.approx(9)


@pytest.mark.slow  # transformers reads the configuration, and takes ten seconds to load
def test_a_generators_own_configuration_goes_before_what_is_assumed(generator_of, instruct):
    directory, own = instruct
    num_params, says = generator_of(directory, "own", **ASSUMED)
    assert num_params == pytest.approx(own)
    assert says.endswith("of its own configuration")
