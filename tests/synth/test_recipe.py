import pytest

from synth.errors import UserError
from synth.recipe import Message, load_recipe, load_recipes, shipped_recipes

MINE = """
name = "mine"
description = "d"
idea = "i"
max_input_tokens = 100
[[messages]]
role = "user"
content = "Say it again: {document}"
[chunking]
unit = "words"
max_length = 50
[sampling]
max_output_tokens = 20
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


def test_every_shipped_recipe_loads_and_is_called_like_its_file():
    assert {"hq", "qa", "textbook", "continue"} <= set(shipped_recipes())
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.placeholders & {"document", "keywords"}


def test_a_recipe_of_ones_own_is_one_file(mine):
    recipe = load_recipe(str(mine))
    assert (recipe.name, recipe.chunking.unit, recipe.sampling.max_output_tokens) == ("mine", "words", 20)


def test_the_hash_follows_what_changes_the_text_and_nothing_else(mine):
    before = load_recipe(str(mine))
    mine.write_text(MINE.replace('idea = "i"', 'idea = "another"'))
    assert load_recipe(str(mine)).hash == before.hash
    mine.write_text(MINE.replace("Say it again", "Say it once more"))
    after = load_recipe(str(mine))
    assert after.hash != before.hash
    assert after.prompt_hash != before.prompt_hash
    assert after.sampling_hash == before.sampling_hash


def test_overrides_replace_single_values_and_count_as_part_of_the_recipe():
    plain, lax = load_recipe("hq"), load_recipe("hq", {"thresholds": {"reject_truncated": False}})
    assert plain.thresholds.reject_truncated
    assert not lax.thresholds.reject_truncated
    assert lax.thresholds.max_repetition == plain.thresholds.max_repetition
    assert lax.hash != plain.hash
    assert lax.prompt_hash == plain.prompt_hash


def test_pieces_of_a_message_alternate_between_text_and_names():
    message = Message(role="user", content='{"json": 1} {document}{domain} {not a name}')
    assert message.pieces() == ['{"json": 1} ', "document", "", "domain", " {not a name}"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("{document}", "{documnet}"), "messages: unknown placeholder {documnet}; there are {document}"),
        (("{document}", "nothing"), "messages: no message asks for anything of the document"),
        (('unit = "words"', 'unit = "document"'), "give chunking.max_length exactly when"),
        (
            ("max_length = 50", "max_length = 0"),
            "chunking.max_length: Input should be greater than or equal to 1",
        ),
        (("max_output_tokens = 20", "max_tokens = 20"), "sampling.max_output_tokens: Field required"),
        (("[sampling]", "[sampling"), "is not valid TOML"),
        (('name = "mine"', 'name = "My Recipe"'), "name: String should match pattern"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_sentence_that_names_the_field(mine, change, words):
    mine.write_text(MINE.replace(*change))
    with pytest.raises(UserError) as caught:
        load_recipe(str(mine))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(UserError, match=r"no recipe 'hqq' \(shipped: .*hq, hq_brief, math, qa"):
        load_recipe("hqq")
    with pytest.raises(UserError, match=r"nowhere\.toml cannot be read"):
        load_recipe("nowhere.toml")
    with pytest.raises(UserError, match=r"hq: thresholds\.max_repetion: Extra inputs"):
        load_recipe("hq", {"thresholds": {"max_repetion": 1.0}})


def test_two_recipes_of_one_name_are_refused(mine):
    mine.write_text(MINE.replace('"mine"', '"hq"'))
    with pytest.raises(UserError, match="two recipes are called 'hq'"):
        load_recipes(["hq", str(mine)])


def test_the_shipped_recipes_are_those_of_the_literature_and_fit_a_window_of_4096():
    assert set(shipped_recipes()) == {
        "hq", "qa", "textbook", "wrap_easy", "wrap_medium", "wrap_hard", "wrap_qa", "cc_wiki", "cc_diverse_qa", "cc_distill",
        "cc_extract", "cc_knowledge_list", "continue", "summarise", "faq", "tutorial", "table", "math", "guided_rewrite",
        "hq_brief", "qa_brief", "summary_brief",
    }  # fmt: skip
    for name in shipped_recipes():
        recipe = load_recipe(name)
        words = sum(len(message.content.split()) for message in recipe.messages)
        assert recipe.max_input_tokens + recipe.sampling.max_output_tokens + 2 * words < 4096
        if recipe.chunking.unit == "tokens":
            assert recipe.chunking.max_length <= recipe.max_input_tokens, "no chunk is cut off"


def test_a_prompt_asks_for_what_the_verdict_looks_for():
    for name in shipped_recipes():
        recipe = load_recipe(name)
        said = "\n".join(message.content for message in recipe.messages)
        if recipe.post_processing.answer_after:
            assert f'"{recipe.post_processing.answer_after}"' in said
        asked = {"question_answer": '"Question:"', "problem_solution": '"Problem:"', "list": '"- "', "table": "Markdown table", "steps": "numbered steps", "free": ""}  # fmt: skip
        assert asked[recipe.thresholds.format] in said


def test_token_budgets_are_those_of_nemo_curator():
    budgets = {
        name: (recipe.chunking.min_length, recipe.max_input_tokens, recipe.sampling.max_output_tokens)
        for name in shipped_recipes() if name.startswith("cc_") and (recipe := load_recipe(name))
    }  # fmt: skip
    assert budgets == {
        "cc_diverse_qa": (30, 1000, 600), "cc_distill": (10, 2000, 1600), "cc_extract": (30, 1400, 1400),
        "cc_knowledge_list": (30, 1000, 600), "cc_wiki": (5, 512, 512),
    }  # fmt: skip
    assert {
        load_recipe(f"wrap_{style}").chunking.max_length for style in ("easy", "medium", "hard", "qa")
    } == {300}


def test_a_routing_that_takes_no_document_is_refused(mine):
    with pytest.raises(UserError, match=r"routing: routing.min_quality must be below routing.max_quality"):
        load_recipe(str(mine), {"routing": {"min_quality": 0.5, "max_quality": 0.5}})
