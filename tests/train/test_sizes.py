"""The table of sizes: names say what they hold, and an unknown name is answered with the known ones."""

import pytest

from synth.errors import UserError
from train.flops import count_parameters
from train.sizes import SIZES, describe_sizes, model_of

UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


@pytest.mark.parametrize("name", SIZES)
def test_a_name_is_the_non_embedding_count_within_three_percent(name):
    named = float(name[:-1]) * UNITS[name[-1]]
    counted = count_parameters(SIZES[name], vocab_size=2048).non_embedding
    assert counted == pytest.approx(named, rel=0.03)


def test_sizes_are_listed_smallest_first():
    counts = [count_parameters(model, 2048).non_embedding for model in SIZES.values()]
    assert counts == sorted(counts)


def test_every_size_can_be_served():
    from_vllm = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256}
    assert {model.hidden_size // model.num_heads for model in SIZES.values()} <= from_vllm


def test_large_sizes_have_heads_of_64_to_128():
    large = {name: model for name, model in SIZES.items() if model.hidden_size >= 320}
    assert len(large) == 13
    assert all(64 <= model.hidden_size // model.num_heads <= 128 for model in large.values())


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(
        UserError, match=r"model = '7b' is not a known size; choose one of 6k, 12k, 25k, .*8b\."
    ):
        model_of("7b")


def test_model_of_returns_the_shape():
    assert model_of("780k").num_layers == 4


def test_the_table_of_sizes_has_every_size_with_its_parameters():
    lines = list(describe_sizes(vocab_size=2048, sequence_length=256))
    assert len(lines) == 2 + len(SIZES)
    (line,) = [each for each in lines if each.split()[0] == "780k"]
    assert f"{count_parameters(SIZES['780k'], 2048).total:,}" in line
