"""Measures of what a generator wrote, by hand, and the card that says them."""

from synth.recipe import Thresholds
from train.assessment import answers_in, content_words, evaluate, reached, supported
from train.model_card import Answered, card_of

SOURCE = "axis : int\n    The axis along which the means are computed."


def row(recipe, text, **columns):
    values = {
        "finish_reason": "stop", "is_refusal": False, "prompt_echo": 0.0, "keep": True, "length_ratio": 1.0,
        "source_words": 0.9, "source_overlap": 0.6, "format_items": 1, "verdict": "kept", "reject_reasons": [],
    }  # fmt: skip
    return Answered(recipe, "d0", "numpy", SOURCE, text, values | columns)


TASKS = {
    "qa": ("ask", Thresholds(max_source_overlap=0.9)),
    "hq": ("rewrite", Thresholds(max_source_overlap=0.9)),
}


def test_answers_are_read_out_of_their_pairs():
    text = "Question: What is `axis`?\nAnswer: The axis\nof means.\nQuestion: Why?\nAnswer: So."
    assert answers_in(text) == ["The axis\nof means.", "So."]
    assert answers_in("nothing asked") == []


def test_an_answer_is_supported_when_all_its_content_words_are_in_the_source():
    assert content_words("The axis that was given, and their means") == ["axis", "given", "means"]
    assert supported("It is the axis along which means are computed.", SOURCE)
    assert not supported("The axis of the median.", SOURCE)
    assert not supported("It is so.", SOURCE)


def test_fractions_are_of_all_rows_and_of_all_answers():
    rows = [
        row("qa", "Question: What is it?\nAnswer: The axis.\nQuestion: Why?\nAnswer: The median."),
        row("qa", "no pair", format_items=0, finish_reason="length", keep=False),
        row("hq", "It is the axis.", length_ratio=1.5),
        row("hq", SOURCE, source_overlap=1.0),
        row("hq", "It.", length_ratio=0.4, is_refusal=True, prompt_echo=0.5),
    ]
    found = evaluate(rows, TASKS)
    assert (found["rows"], found["refusals"], found["prompt_echoes"]) == (5, 1, 1)
    assert found["ends_with_stop_fraction"] == 4 / 5
    qa, hq = found["recipes"]["qa"], found["recipes"]["hq"]
    assert (qa["format_valid_fraction"], qa["answers"], qa["supported_answers_fraction"]) == (0.5, 2, 0.5)
    assert (qa["content_words_in_source_fraction"], qa["kept_fraction"]) == (0.5, 0.5)
    assert hq["in_band_fraction"] == 1 / 3
    assert reached(found)["ask.supported_answers_fraction"] == (0.5, 0.8)


def test_of_no_answers_nothing_is_measured():
    found = evaluate([], TASKS)
    assert found["ends_with_stop_fraction"] is None
    assert reached(found)["rewrite.in_band_fraction"] == (None, 0.7)


def test_the_card_says_what_was_measured_and_shows_the_rows_it_is_given():
    rows = [row("qa", "Question: What is it?\nAnswer: The axis."), row("hq", "It.", keep=False, verdict="rejected", reject_reasons=["too_short"])]  # fmt: skip
    found = evaluate(rows, TASKS)
    generator = {"num_params_total": 2_557_632, "num_params_non_embedding": 1_771_200, "train_tokens": 8_000_000, "train_flops": 1.6e14}  # fmt: skip
    recipe = {
        "vocab_size": 4096,
        "exchanges": {"recipes": {"qa": {"task": "ask"}, "hq": {"task": "rewrite"}}},
    }
    card = card_of("A rephraser", generator, recipe, found, reached(found), rows)
    assert card.startswith("# A rephraser\n")
    assert "2,557,632 parameters" in card
    assert "| answers that end with a stop token | 90 % | 100.0 % |" in card
    assert "### 1. `qa`, numpy (kept)" in card
    assert "### 2. `hq`, numpy (rejected, too_short)" in card
    assert "    axis : int" in card
    assert "> Answer: The axis.  " in card
