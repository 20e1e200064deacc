import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.chunking import chunk_spans, count_characters, count_words, sentence_spans

TEXT = "Glaciers move slowly. They grind the rock, e.g. granite, to flour! Why? Nobody saw it.\n\nA second paragraph"


def pieces(text, spans):
    return [text[span.start : span.end] for span in spans]


def test_sentences_end_where_a_reader_would_end_them():
    assert pieces(TEXT, sentence_spans(TEXT)) == [
        "Glaciers move slowly. ",
        "They grind the rock, e.g. granite, to flour! ",
        "Why? ",
        "Nobody saw it.\n\n",
        "A second paragraph",
    ]
    assert pieces("雪山很高。冰川很慢！对吗", sentence_spans("雪山很高。冰川很慢！对吗")) == [
        "雪山很高。",
        "冰川很慢！",
        "对吗",
    ]
    assert pieces('"Stop." He did.', sentence_spans('"Stop." He did.')) == ['"Stop." ', "He did."]


def test_chunks_are_runs_of_whole_sentences_of_about_equal_length():
    text = " ".join(f"Sentence number {at} has six words." for at in range(10))
    chunks = pieces(text, chunk_spans(text, 25, count_words))
    assert [len(chunk.split()) for chunk in chunks] == [18, 24, 18], "neither 24, 24, 12 nor a mere remainder"
    assert all(chunk.startswith("Sentence") and chunk.endswith("words.") for chunk in chunks)


def test_a_short_document_is_one_chunk_and_a_blank_one_none():
    assert pieces(TEXT, chunk_spans(TEXT, 1000, count_characters)) == [TEXT]
    assert pieces("  x \n", chunk_spans("  x \n", 10, count_characters)) == ["x"]
    assert chunk_spans(" \n\t ", 10, count_characters) == []
    assert chunk_spans("", 10, count_characters) == []


def test_a_sentence_over_the_cap_is_cut_between_words_and_a_word_over_the_cap_anywhere():
    text = "alpha beta gamma delta epsilon zeta eta theta"
    chunks = pieces(text, chunk_spans(text, 12, count_characters))
    assert " ".join(chunks) == text
    assert all(len(chunk) <= 12 for chunk in chunks)
    assert [len(piece) for piece in pieces("x" * 10, chunk_spans("x" * 10, 5, count_characters))] == [5, 5]


def test_text_that_a_tokenizer_drops_is_a_chunk_of_length_0():
    def letters(texts):
        return [sum(map(str.isalpha, text)) for text in texts]

    assert pieces("\u200b", chunk_spans("\u200b", 5, letters)) == ["\u200b"]
    text = "abcd.\nefgh.\n--\n"
    assert "".join("".join(pieces(text, chunk_spans(text, 4, letters))).split()) == "abcd.efgh.--"


def test_a_line_of_a_megabyte_is_cut_without_trouble():
    text = "y" * 1_000_000
    spans = chunk_spans(text, 4096, count_characters)
    assert "".join(pieces(text, spans)) == text
    assert max(span.end - span.start for span in spans) <= 4096


@pytest.mark.parametrize("measure", [count_characters, count_words])
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=300), cap=st.integers(1, 40))
def test_nothing_but_white_space_is_lost_and_no_chunk_is_over_the_cap(measure, text, cap):
    spans = chunk_spans(text, cap, measure)
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    kept = "".join(pieces(text, spans))
    assert "".join(kept.split()) == "".join(text.split())
    for chunk in pieces(text, spans):
        assert chunk == chunk.strip() != ""
        assert measure([chunk])[0] <= cap
