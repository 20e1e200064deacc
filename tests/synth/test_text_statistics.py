"""Corpus statistics on cases small enough to work out by hand."""

from math import log

import pytest

from synth.quality.text_statistics import closeness, compare, divergence, openings, take_words, variety


def test_coverage_counts_running_and_different_words():
    found = closeness({"a": 5, "b": 1}, {"a": 6, "c": 2}, vocabulary_size=3)
    assert found.covered_words == 6 / 8
    assert found.covered_vocabulary == 1 / 2


def test_the_divergence_is_that_of_the_smoothed_unigrams():
    # smoothing 1 over {x, y}: p = (3+1, 1+1)/6 = (2/3, 1/3), q = (1+1, 1+1)/4 = (1/2, 1/2)
    p, q = {"x": 3, "y": 1}, {"x": 1, "y": 1}
    assert divergence(p, q, 2, smoothing=1.0) == pytest.approx(2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3))
    assert divergence(q, p, 2, smoothing=1.0) == pytest.approx(1 / 2 * log(3 / 4) + 1 / 2 * log(3 / 2))
    assert divergence(p, p, 2) == pytest.approx(0.0, abs=1e-12)


def test_words_that_occur_in_neither_text_take_their_share_of_the_mass():
    # vocabulary {x, y, z}, z unseen: p = (4, 2, 1)/7, q = (2, 2, 1)/5
    expected = (
        4 / 7 * log((4 / 7) / (2 / 5)) + 2 / 7 * log((2 / 7) / (2 / 5)) + 1 / 7 * log((1 / 7) / (1 / 5))
    )
    assert divergence({"x": 3, "y": 1}, {"x": 1, "y": 1}, 3, smoothing=1.0) == pytest.approx(expected)


def test_a_word_one_text_lacks_keeps_the_divergence_finite():
    # p = {x: 1}, q = {y: 1}, smoothing 0.5 over 2 words: p = (1.5, .5)/2, q = (.5, 1.5)/2
    assert divergence({"x": 1}, {"y": 1}, 2, smoothing=0.5) == pytest.approx(0.75 * log(3) - 0.25 * log(3))
    with pytest.raises(ValueError, match="a vocabulary of 1 words cannot hold the 2 that occur"):
        divergence({"x": 1}, {"y": 1}, 1)


def test_variety_is_exact_and_ngrams_do_not_cross_documents():
    found = variety([["a", "b", "a", "b"], ["b", "a"]])
    assert (found.words, found.vocabulary) == (6, 2)
    assert found.distinct_bigrams == 2 / 4  # ab ba ab | ba
    assert found.distinct_trigrams == 2 / 2  # aba bab
    assert found.unigram_entropy_nats == pytest.approx(log(2))
    assert variety([]).words == 0


def test_openings_are_counted_by_their_first_five_words():
    texts = [
        ["the", "text", "is", "about", "a", "lamp"],
        ["the", "text", "is", "about", "a", "reef"],
        ["once"],
        [],
    ]
    found = openings(texts)
    assert (found.texts, found.commonest) == (3, "the text is about a")
    assert found.commonest_fraction == pytest.approx(2 / 3)
    assert found.distinct_fraction == pytest.approx(2 / 3)
    assert found.most == (("the text is about a", 2),), "what opens one text is no repetition"
    assert openings([["x"]] * 2000).texts == 1000
    assert openings([]).texts == 0


def test_words_are_taken_from_the_front_and_the_last_text_is_cut():
    assert take_words([["a", "b"], ["c", "d", "e"], ["f"]], 4) == [["a", "b"], ["c", "d"]]
    assert take_words([["a"]], 9) == [["a"]]


def test_all_sources_are_compared_on_the_same_number_of_words():
    result = compare(
        {"natural": [["a", "b", "c", "d"] * 10], "hq": [["a", "a", "a", "e"]], "none": []},
        {"sea": [["a", "b"]], "void": []},
        max_words=100,
    )
    assert result["words_of_each_source"] == 4
    assert result["smoothing_vocabulary"] == 5
    assert result["sources"].keys() == {"natural", "hq"}
    assert result["sources"]["natural"]["vocabulary"] == 4
    assert result["sources"]["hq"]["openings"]["commonest"] == "a a a e"
    assert result["domains"].keys() == {"sea"}
    sea = result["domains"]["sea"]["closeness"]
    assert (sea["natural"]["covered_words"], sea["hq"]["covered_words"]) == (1.0, 0.5)
    assert sea["natural"]["kl_domain_to_source_nats"] < sea["hq"]["kl_domain_to_source_nats"]
