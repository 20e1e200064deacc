"""A model that has a card is served only as its card describes it."""

import math

import pytest
from safetensors import safe_open

from synth.config import EngineConfig
from synth.errors import UserError
from synth.model_source import CARD_FILE, find_model, shipped_num_params, write_card
from synth.storage import study_path

SHIPPED = "shipped:docstrings-6m"


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(bytes(range(256)))
    write_card(study_path(str(directory)))
    return directory


def find(directory):
    return find_model(".", EngineConfig(model=str(directory)))


def flip(directory):
    weights = bytearray((directory / "model.safetensors").read_bytes())
    weights[100] ^= 1
    (directory / "model.safetensors").write_bytes(weights)


def test_a_model_as_its_card_describes_it_is_found_whatever_is_written_about_it(model):
    before = find(model).hash
    (model / "README.md").write_text("what it can do")
    assert find(model).hash == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, r"model\.safetensors is not the file that the model's card describes"),
        (
            lambda model: (model / "model.safetensors").unlink(),
            r"lacks model\.safetensors, which its card lists",
        ),
        (lambda model: (model / "more.json").write_text("{}"), r"more\.json is not on the model's card"),
        (lambda model: (model / CARD_FILE).write_text("{"), r"card\.json cannot be read as a card"),
    ],
    ids=["flipped", "missing", "added", "torn"],
)
def test_a_model_that_does_not_match_its_card_is_refused_in_one_sentence(model, damage, words):
    damage(model)
    with pytest.raises(UserError, match=words) as refused:
        find(model)
    assert "fetch the model again" in str(refused.value)


def test_a_model_without_a_card_is_not_checked(model):
    (model / CARD_FILE).unlink()
    flip(model)
    assert find(model).hash


def test_a_shipped_generator_is_found_by_name_and_is_what_its_card_says():
    found = find_model(".", EngineConfig(model=SHIPPED, max_model_len=512))
    files = sorted(found.local_directory().glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 25e6
    num_params = 0
    for file in files:
        with safe_open(file, "np") as weights:
            num_params += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 (no dict)
    assert num_params == shipped_num_params(SHIPPED)
    assert shipped_num_params("root:generators/tiny") is None


def test_a_generator_that_is_not_shipped_is_refused_with_those_that_are():
    with pytest.raises(UserError, match=rf"'shipped:novels-8b': no generator .*; there is {SHIPPED}"):
        find_model(".", EngineConfig(model="shipped:novels-8b"))
