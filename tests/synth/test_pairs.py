"""The answers that rules give to recipes: what the small generator learns from."""

from collections import Counter

import pytest

from synth.errors import UserError
from synth.pairs import TaughtRecipe, answer_of, check_taught, pairs_of
from synth.recipe import load_recipe

CHUNK = """Return the mean along an axis. If axis is None, the whole array is used.

Parameters
----------
axis : int, optional
    The axis along which the mean is computed.
keepdims : bool
    Whether the reduced axes are kept.

Returns
-------
ndarray
    The means."""


def test_a_rewriting_puts_fields_into_sentences_and_sentences_into_other_words():
    assert answer_of("rewrite", CHUNK) == (
        "This returns the mean along an axis. When axis is None, the whole array is employed. `axis` (int, optional) is the "
        "axis along which the mean is worked out. `keepdims` (bool) tells whether the reduced axes are kept. The result "
        "(ndarray) is the means."
    )


def test_questions_are_answered_in_the_words_of_the_source():
    assert answer_of("ask", CHUNK) == (
        "Question: What does it do?\nAnswer: It returns the mean along an axis.\n"
        "Question: What happens if axis is None?\nAnswer: The whole array is used.\n"
        "Question: What is `axis`?\nAnswer: The axis along which the mean is computed."
    )
    assert answer_of(
        "ask", "keepdims : bool\n    Whether the axes are kept\nstep : int\n    If 0, none.\n"
    ) == (
        "Question: What does `keepdims` decide?\nAnswer: Whether the axes are kept.\n"
        "Question: What does `step` change?\nAnswer: If 0, none."
    )


def test_a_summary_is_the_first_sentence_and_what_else_there_is():
    assert answer_of("summarise", CHUNK) == (
        "This returns the mean along an axis. The text describes `axis` and `keepdims`. It says what the result is."
    )
    assert answer_of("summarise", "Return the mean.") is None


def test_a_continuation_is_the_next_chunk_and_a_section_is_the_rewriting():
    assert answer_of("continue", "One.", "Two.") == "Two."
    assert answer_of("continue", "One.") is None
    assert answer_of("section", CHUNK) == answer_of("rewrite", CHUNK)


def test_the_rules_have_no_answer_to_code():
    assert answer_of("ask", ">>> f(1)\n2") is None


def taught(name, task, **overrides):
    return TaughtRecipe(load_recipe(name, overrides), task)


def test_pairs_are_those_the_recipe_would_keep_and_the_others_are_counted():
    document = {"doc_id": "d0", "text": f"{CHUNK}\n\n>>> mean([1, 2])\n1.5\n" * 2}
    left_out = Counter()
    pairs = list(pairs_of(document, taught("qa_brief", "ask"), left_out))
    assert pairs
    assert all(pair.chunk in document["text"] and len(pair.chunk) <= 240 for pair in pairs)
    assert list(pairs_of(document, taught("qa_brief", "ask"), Counter())) == pairs
    strict = taught("qa_brief", "ask", thresholds={"min_words": 1000})
    assert list(pairs_of(document, strict, left_out)) == []
    assert left_out["too_short"] >= len(pairs)


def test_a_recipe_with_keywords_gets_them_as_rephrasing_draws_them():
    recipe = taught("textbook", "section", thresholds={"min_words": 1})
    (pair,) = pairs_of({"doc_id": "d0", "text": CHUNK}, recipe, Counter())
    assert 0 < len(pair.keywords) <= 8
    assert all(word in CHUNK.lower() for word in pair.keywords)


def test_a_recipe_that_cuts_by_tokens_is_refused_before_there_are_tokens():
    with pytest.raises(UserError, match=r"recipe 'hq' cuts documents by tokens.*chunking.unit"):
        check_taught(taught("hq", "rewrite"))
