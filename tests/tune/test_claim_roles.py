"""Which source plays which part in the paper's claims: told by how its text was made, by its name, by the configuration."""

from __future__ import annotations

import pydantic
import pytest

from synth.errors import UserError
from synth.recipe import load_recipe, shipped_recipes
from tune.claim_roles import Roles, SourceMade, kind_of, roles_of, size_in_name
from tune.config import ClaimRoles


def made_by(*names, model="Mistral-7B-Instruct-v0.1", corpus="natural", size=7e9):
    recipes = {name: {"name": name, "hash": f"hash of {name}"} for name in names}
    return SourceMade(recipes, corpus, model, size)


def own_recipe(prompt, shape="free"):
    return {"messages": [{"role": "user", "content": prompt}], "thresholds": {"format": shape}}


def test_every_shipped_recipe_has_its_place():
    kinds = {name: kind_of(name, load_recipe(name).identity()) for name in shipped_recipes()}
    assert {name for name, kind in kinds.items() if kind == "rephrased"} == {
        "hq", "hq_brief", "wrap_easy", "wrap_medium", "wrap_hard", "cc_wiki", "cc_distill", "guided_rewrite",
    }  # fmt: skip
    assert {name for name, kind in kinds.items() if kind == "question_answer"} == {
        "qa",
        "qa_brief",
        "wrap_qa",
        "cc_diverse_qa",
        "faq",
    }
    assert kinds["textbook"] == "textbook"
    assert kinds["continue"] is None


def test_a_recipe_of_ones_own_is_told_by_what_it_asks_for():
    assert kind_of("mine", own_recipe("Write it anew: {document}")) == "rephrased"
    assert kind_of("mine", own_recipe("Ask about {document}", "question_answer")) == "question_answer"
    assert kind_of("mine", own_recipe("A chapter on {keywords}")) == "textbook"
    assert kind_of("mine", own_recipe("A table of {document}", "table")) is None


def test_parts_come_from_the_recipes_whatever_the_sources_are_called():
    made = {
        "a": made_by("wrap_medium"),
        "b": made_by("cc_diverse_qa"),
        "c": made_by("textbook"),
        "d": made_by("hq", "qa"),
    }
    roles = roles_of(dict.fromkeys("abcd", 5), made)
    assert roles == Roles(rephrased="a", question_answer="b", textbook="c")
    assert any("made by wrap_medium with Mistral-7B-Instruct-v0.1" in note for note in roles.notes)
    assert any(note.startswith("no part: d; to test them all the same") for note in roles.notes)


def test_of_several_of_a_kind_the_papers_own_recipe_comes_first_then_the_most_runs():
    made = {"a": made_by("wrap_easy"), "b": made_by("wrap_hard"), "c": made_by("hq")}
    assert roles_of({"a": 3, "b": 9, "c": 1}, made).rephrased == "c"
    assert roles_of({"a": 3, "b": 9}, made).rephrased == "b"


def test_sources_that_differ_in_their_generator_alone_are_compared_by_its_size():
    sizes = {"s": 3e9, "l": 70e9, "m": 8e9}
    made = {name: made_by("hq", size=size) for name, size in sizes.items()}
    assert roles_of(dict.fromkeys(made, 4), made).generators == ("s", "m", "l")
    other = made | {"m": made_by("hq", size=8e9, corpus="other")}
    assert roles_of(dict.fromkeys(made, 4), other).generators == ()
    rounds = {f"round{i}": made_by("continue", size=5e5) for i in (1, 2, 3)}
    assert roles_of(dict.fromkeys(rounds, 4), rounds) == Roles()


def test_what_the_configuration_says_comes_first():
    rounds = {f"round{i}": made_by("continue", size=5e5) for i in (1, 2, 3)}
    given = ClaimRoles(rephrased="round1", generators=("round1", "round2", "round3"))
    found = roles_of(dict.fromkeys(rounds, 4), rounds, given)
    assert found == Roles(rephrased="round1", generators=("round1", "round2", "round3"))
    with pytest.raises(
        UserError, match="claims names 'round9', which is no synthetic source of the report's runs"
    ):
        roles_of(dict.fromkeys(rounds, 4), rounds, ClaimRoles(textbook="round9"))
    with pytest.raises(pydantic.ValidationError, match="generators names 2 sources"):
        ClaimRoles(generators=("a", "b"))


def test_names_are_all_there_is_without_a_manifest():
    names = ["hq-3b", "hq-70b", "hq-8b", "qa-8b", "natural-2024"]
    assert roles_of(dict.fromkeys(names, 1), {}) == Roles(
        rephrased="hq-3b", question_answer="qa-8b", generators=("hq-3b", "hq-8b", "hq-70b")
    )
    assert roles_of({"rephrase-hq": 1, "my_qa": 1, "txbk": 1}, {}) == Roles("rephrase-hq", "my_qa", "txbk")
    assert roles_of({"hq-8b+qa-8b": 1, "qa-8b": 1}, {}) == Roles(question_answer="qa-8b")


def test_a_models_name_gives_its_size():
    assert size_in_name("meta-llama/Llama-3.2-3B-Instruct") == 3e9
    assert size_in_name("mistralai/Mistral-7B-Instruct-v0.1") == 7e9
    assert size_in_name("s3://models/gemma-3-270m/") == 270e6
    assert size_in_name("gpt2") is None
