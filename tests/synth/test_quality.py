import pytest

from synth.quality import measure, post_process, reject_reasons, words_of
from synth.recipe import PostProcessing, Thresholds

SOURCE = (
    "The lighthouse at the northern cape was built in 1871 from grey granite and has guided ships past the reef ever since. "
    "Its keeper climbed two hundred and twelve steps every evening to light the lamp."
)
GOOD = (
    "Built of grey granite in 1871, the lighthouse on the northern cape guides ships around a reef. "
    "Every evening its keeper went up 212 steps and lit the lamp."
)
PROMPT = "Rewrite the text below in your own words. Keep every fact, name, number and example; add nothing that it does not say."
STRICT = Thresholds(
    min_words=5,
    min_length_ratio=0.3,
    max_length_ratio=3.0,
    min_source_words=0.3,
    max_source_overlap=0.9,
    max_repetition=0.3,
)


def judge(text, finish_reason="stop", thresholds=STRICT, source=SOURCE):
    return reject_reasons(measure(text, source, PROMPT), finish_reason, thresholds)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Sure! Here is the rewritten text:\n\nThe lamp was lit.", "The lamp was lit."),
        ("Here's a clearer version of the passage:\nThe lamp was lit.", "The lamp was lit."),
        ("Rewritten text: The lamp was lit.", "The lamp was lit."),
        ('"The lamp was lit."', "The lamp was lit."),
        ("```text\nThe lamp was lit.\n```", "The lamp was lit."),
        ('"One" and "two" are quoted.', '"One" and "two" are quoted.'),
        ("Here lies the reef: beware.", "Here lies the reef: beware."),
        ("Certain lamps burn oil: the oldest ones.", "Certain lamps burn oil: the oldest ones."),
        ("Question: Who lit it? Answer: The keeper.", "Question: Who lit it? Answer: The keeper."),
        ("  The lamp was lit.\n", "The lamp was lit."),
    ],
)
def test_post_processing_takes_off_what_is_not_the_answer(raw, expected):
    assert post_process(raw, PostProcessing(), "stop") == expected


def test_an_answer_cut_off_keeps_its_whole_sentences_if_asked_to():
    steps = PostProcessing(drop_unfinished_sentence=True)
    assert post_process("It was lit. The keeper cl", steps, "length") == "It was lit."
    assert post_process("It was lit. The keeper cl", steps, "stop") == "It was lit. The keeper cl"
    assert post_process("no end in sight", steps, "length") == "no end in sight"


def test_a_good_rewrite_has_no_reason_against_it():
    assert judge(GOOD) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" ... !", "empty"),
        ("The lighthouse.", "too_short"),
        (
            "I'm sorry, but I cannot rewrite the lighthouse text as it stands, since the northern cape is unknown.",
            "refusal",
        ),
        (
            "As an AI language model I have no view of the lighthouse at the northern cape or of its keeper.",
            "refusal",
        ),
        (
            "Sure, I have taken the lighthouse at the northern cape and its keeper and put them differently for ships.",
            "preamble",
        ),
        (GOOD * 8, "length_ratio_high"),
        ("The lighthouse at the cape was built.", "length_ratio_low"),
        (PROMPT + " " + GOOD, "prompt_echo"),
        (
            "Purple elephants negotiate quietly while seventeen accordions dissolve into marmalade beyond Saturn tonight again.",
            "unrelated",
        ),
        (SOURCE, "copied"),
        ("The keeper lit the lamp every evening. " * 6, "repetitive"),
    ],
)
def test_each_fault_is_found_and_named(text, reason):
    assert reason in judge(text)


def test_truncation_counts_only_where_the_recipe_says_so():
    assert judge(GOOD, "length") == ["truncated"]
    assert judge(GOOD, "length", STRICT.model_copy(update={"reject_truncated": False})) == []


def test_every_reason_that_holds_is_given():
    assert set(judge("The lamp. " * 100, "length")) >= {"truncated", "length_ratio_high", "repetitive"}


def test_words_that_refuse_are_content_further_on():
    later = (
        GOOD
        + " On a clear night its light is seen from fishing boats that pass the reef at a distance of twenty miles."
    )
    assert judge(later + " The keeper once said: I cannot help you.") == []


def test_measures_are_exact_on_a_small_case():
    measures = measure("a b c d e f", "x a b c d e", "c d e f g h")
    assert measures.words == 6
    assert measures.length_ratio == 1.0
    assert measures.source_words == pytest.approx(5 / 6)
    assert measures.source_overlap == 0.5
    assert measures.prompt_echo == 0.0
    assert measures.repetition == 0.0
    assert measure("a b c d a b c d", "a", "").repetition == pytest.approx(1 / 5)


def test_scripts_without_spaces_are_measured_by_character():
    assert words_of("雪山 don't") == ["雪", "山", "don't"]
    assert measure("雪山很高很高", "雪山很高", "").source_words == 1.0
