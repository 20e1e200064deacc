import subprocess
import sys

import pytest

from synth.quality.decontamination import NgramIndex, ngram_hashes

HELD_OUT = [f"w{number}" for number in range(40)]


def test_the_covered_fraction_is_exact_on_a_small_case():
    index = NgramIndex([HELD_OUT], ngram_words=3)
    assert len(index) == 38
    assert index.covered_fraction(["x", "w5", "w6", "w7", "y"]) == pytest.approx(3 / 5)
    assert index.covered_fraction(["w5", "w6", "w7", "w8", "y"]) == pytest.approx(4 / 5)
    assert index.covered_fraction(["w5", "w6", "x", "w7", "w8"]) == 0.0
    assert index.covered_fraction(["w6", "w5", "w7"]) == 0.0, "order counts"
    assert index.covered_fraction(["w5", "w6"]) == 0.0
    assert index.covered_fraction([]) == 0.0


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not():
    index = NgramIndex([HELD_OUT])
    assert index.covered_fraction([*HELD_OUT[3:16], "y"]) == pytest.approx(13 / 14)
    assert index.covered_fraction([*HELD_OUT[3:15], "y", *HELD_OUT[20:32]]) == 0.0


def test_an_index_of_nothing_covers_nothing():
    assert NgramIndex([]).covered_fraction(HELD_OUT) == 0.0
    assert NgramIndex([["too", "short"]]).covered_fraction(HELD_OUT) == 0.0


def test_different_ngrams_have_different_hashes():
    words = [f"{number % 97} {number % 89}" for number in range(8000)]  # repeats only after 97 * 89
    assert len(set(ngram_hashes(words, 2).tolist())) == 7999


def test_hashes_are_the_same_in_another_process():
    code = "from synth.quality.decontamination import ngram_hashes; print(ngram_hashes(['a', 'b', 'ü', 'c'], 3).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(ngram_hashes(["a", "b", "ü", "c"], 3).tolist())
