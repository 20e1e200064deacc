"""What is written as TOML is read back the same."""

from __future__ import annotations

import tomllib

import pytest

from synth.toml import toml_key, toml_value


@pytest.mark.parametrize(
    "value",
    [
        6e-4, 1e22, 3, True, [], {}, "", 'said "so"\\', "two\nlines\tand\x00\x1f\x7f", "déjà vu \u2028 \U0001f600", [[1], ["a"]],
        {"root:made/x y": [{"b.c": 1.5}], "": {}, "ü": "v", "plain-key_1": False},
    ],
)  # fmt: skip
def test_a_value_on_one_line_comes_back_the_same(value):
    line = f"value = {toml_value(value)}"
    assert "\n" not in line
    assert tomllib.loads(line) == {"value": value}


@pytest.mark.parametrize("name", ["grid", "hq-8b", "v1.2", "two words", 'quo"ted', "", "ü"])
def test_a_key_is_one_key_also_in_a_heading(name):
    assert tomllib.loads(f"[pretrain.{toml_key(name)}]\n") == {"pretrain": {name: {}}}
    assert tomllib.loads(f"{toml_key(name)} = 1\n") == {name: 1}


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_toml_does_not_have_is_refused_rather_than_written_wrong(value):
    with pytest.raises(ValueError, match="no TOML"):
        toml_value([value])
