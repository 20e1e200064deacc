import pytest

from synth.quality.decontamination import NgramIndex
from synth.quality.verdict import has_answer_mark, measure, post_process, reject_reasons, words_of
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


REFUSALS = [
    "I'm sorry, but I cannot rewrite this text.",
    "I'm sorry, but I can't help with that.",
    "I am sorry, but I am unable to provide a paraphrase of this passage.",
    "Sorry, I can't assist with that request.",
    "Unfortunately, I cannot fulfil this request because the text is incomplete.",
    "I apologize, but I cannot continue this text.",
    "My apologies, but I will not generate content of that kind.",
    "As an AI language model, I do not have opinions about lighthouses.",
    "As a large language model, I'm not able to access the link.",
    "As an AI assistant, I must decline.",
    "I cannot provide a rewritten version of the text as it contains personal data.",
    "I can’t comply with this request.",
    "I won't rewrite this content, as it promotes violence.",
    "I am just an AI, it is not within my programming to write about that.",
    "Please provide the text you would like me to rewrite.",
    "Could you please provide the passage that you want paraphrased?",
    "It seems that you did not provide a text. What should I rewrite?",
    "There is no text provided, so nothing can be rewritten.",
    "Thank you for your message. I'm sorry, but I cannot answer the question.",
    "I'm afraid I can't do that with this document.",
]
NOT_REFUSALS = [
    "I'm sorry I missed your recital, Mom,\" she said, and put the flowers on the table.",
    "I couldn't help but notice how quiet the harbour had become.",
    "I could not help laughing when the lamp went out.",
    "I cannot recommend this lighthouse highly enough; the view from its gallery is superb.",
    "\"I'm sorry, but I can't help you,\" said the clerk, and closed the window.",
    "BERT is pre-trained as a language model and then fine-tuned on each task.",
    "GPT-3 acts as an AI language model that writes text from a prompt.",
    "She works as an AI engineer at a shipping company.",
    "If the server refuses the request, it must not provide content of its own.",
    "Please provide the text field with a default value before you save the form.",
    "Users who cannot provide a passport may show another document.",
    "The function will not create a directory that exists already.",
    "We are sorry to announce that the lighthouse is closed in winter.",
    "The keeper was afraid of storms and unable to sleep when the wind rose.",
    "Question: Why can't I rewrite a read-only file?\nAnswer: Because its permissions forbid it.",
    "I will not forget the evening on which the lamp failed, nor what the captain said about it.",
    "Sorry is the hardest word. I will explain why.",
    "I can't wait to visit the cape again next summer.",
    "This error is raised when no text is given to the parser, which then returns an empty list.",
    "Unfortunately, the reef was not marked on the chart, and the ship could not continue its voyage.",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_as_models_word_them_are_found(text):
    assert measure(text, SOURCE, PROMPT).is_refusal


@pytest.mark.parametrize("text", NOT_REFUSALS)
def test_content_that_sounds_like_a_refusal_is_not_one(text):
    assert not measure(text, SOURCE, PROMPT).is_refusal


@pytest.mark.parametrize(
    "opening",
    [
        "Sure! Here is the rewritten text:\n\n",
        "Certainly! Below is a rewritten version of the passage:\n",
        "Here's a paraphrased version of the text:\n\n",
        "Here is the rephrased paragraph:\n",
        "**Rewritten text:**\n",
        "Of course.\n\n",
        "Here are the questions and answers based on the text:\n\n",
        "Sure, here are some questions and their answers:\n",
        "Here is a summary of the text:\n",
        "Okay, here's the improved version:\n\n",
        "The following is a rephrased version of the given text:\n",
        "Here is your text, in simpler words:\n",
        "Questions and answers:\n",
        "Here is a tutorial based on the text:\n\n",
    ],
)
def test_preambles_as_models_write_them_are_taken_off_and_seen(opening):
    assert measure(opening + GOOD, SOURCE, PROMPT).has_preamble
    assert post_process(opening + GOOD, PostProcessing(), "stop") == GOOD


@pytest.mark.parametrize(
    "text",
    [
        "This is what the function does: it sorts the list in place.",
        "Below is the list of parameters: a, b and c.",
        "The following are the steps of the algorithm: read, sort, write.",
        "Here is where the keeper lived: a hut below the tower.",
        "Here are the three reasons: wind, tide and fog.",
        "Great Britain: the largest island of the archipelago.",
        "Sure enough, the lamp was lit: the keeper had come back.",
        "Understood as a metaphor, the lamp stands for hope: it never goes out.",
        "Of course, the reef had claimed ships before: three in 1869 alone.",
        "Section 3 deals with lamps: their oil, their wicks and their lenses.",
        "Okay is a village in Arkansas: it has 800 people.",
        "Certainly the oldest lamp burned oil: the oldest ones did.",
        "I have seen the reef: it lies low in the water.",
        "Here we describe an improved method. Its advantage: speed.",
    ],
)
def test_content_that_opens_like_a_preamble_is_left_alone(text):
    assert post_process(text, PostProcessing(), "stop") == text
    assert not measure(text, SOURCE, PROMPT).has_preamble


@pytest.mark.parametrize(
    "closing",
    [
        "\n\nLet me know if you need any further changes!",
        "\n\nI hope this helps!",
        "\n\nWould you like me to rewrite another passage?",
        "\n\n(Note: The rewritten text keeps all facts of the original.)",
    ],
)
def test_closing_chatter_is_taken_off(closing):
    assert post_process(GOOD + closing, PostProcessing(), "stop") == GOOD


def test_a_letter_that_ends_in_such_words_within_a_paragraph_keeps_them():
    text = "Dear keeper, the oil will come on Monday. Let me know if you need more."
    assert post_process(text, PostProcessing(), "stop") == text


@pytest.mark.parametrize(
    ("raw", "steps", "expected"),
    [
        ("<think>A lamp. Short.</think>\n\nThe lamp was lit.", {}, "The lamp was lit."),
        ("<think>It never closes", {}, ""),
        ("A <think> tag within.", {}, "A <think> tag within."),
        ("Thoughts: too long.\nImproved text:\nThe lamp was lit.", {"answer_after": "Improved text:"}, "The lamp was lit."),
        ("Thoughts: too long.\nImproved text:", {"answer_after": "Improved text:"}, ""),
        ("## The lamp\n\nIt was **lit** by *him* in 2 * 3 hours.\n---\n```\nx_y_z\n```", {"strip_markdown": True},
         "The lamp\n\nIt was lit by him in 2 * 3 hours.\n\nx_y_z"),
        ("call `__init__` and a*b*c", {"strip_markdown": True}, "call `__init__` and a*b*c"),
    ],
)  # fmt: skip
def test_reasoning_marks_and_markdown_are_taken_off_where_asked(raw, steps, expected):
    assert post_process(raw, PostProcessing(**steps), "stop") == expected


def test_an_answer_without_the_mark_it_was_asked_for_is_rejected():
    steps = PostProcessing(answer_after="Improved text:")
    raw = GOOD
    measures = measure(GOOD, SOURCE, PROMPT, has_mark=has_answer_mark(raw, steps))
    assert reject_reasons(measures, "stop", STRICT) == ["no_answer_mark"]
    assert has_answer_mark("Improved text: " + GOOD, steps)
    assert has_answer_mark(raw, PostProcessing())


def test_an_answer_of_the_wrong_shape_is_rejected():
    asked = STRICT.model_copy(
        update={"format": "question_answer", "min_format_items": 2, "max_length_ratio": 9.0}
    )
    one = f"Question: When was it built?\nAnswer: {GOOD}"
    two = one + "\nQuestion: Who lit the lamp every evening?\nAnswer: The keeper, up 212 steps."
    for text, reasons in [(one, ["format"]), (two, [])]:
        assert reject_reasons(measure(text, SOURCE, PROMPT, thresholds=asked), "stop", asked) == reasons


def test_an_answer_in_another_language_is_rejected_unless_it_was_asked_for():
    german = (
        "Der Leuchtturm am nördlichen Kap wurde 1871 aus grauem Granit errichtet und leitet seither Schiffe am Riff vorbei. "
        "Sein Wärter stieg jeden Abend zweihundertzwölf Stufen hinauf, um die Lampe anzuzünden."
    )
    lax = Thresholds()
    assert reject_reasons(measure(german, SOURCE, PROMPT, thresholds=lax), "stop", lax) == ["language"]
    asked = Thresholds(language="de")
    assert reject_reasons(measure(german, SOURCE, PROMPT, thresholds=asked), "stop", asked) == []
    assert "language" in reject_reasons(measure(SOURCE, SOURCE, PROMPT, thresholds=asked), "stop", asked)
    assert measure("Kurz.", SOURCE, PROMPT).language_drift is None


def test_an_answer_that_repeats_the_held_out_split_is_rejected():
    index = NgramIndex([words_of(GOOD)])
    clean = measure(SOURCE, SOURCE, PROMPT, held_out=index)
    leaked = measure(GOOD, SOURCE, PROMPT, held_out=index)
    assert (clean.held_out_overlap, leaked.held_out_overlap) == (0.0, 1.0)
    assert reject_reasons(leaked, "stop", STRICT) == ["contaminated"]
    assert reject_reasons(leaked, "stop", STRICT.model_copy(update={"max_held_out_overlap": 1.0})) == []
    assert measure(GOOD, SOURCE, PROMPT).held_out_overlap is None
