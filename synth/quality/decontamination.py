"""Whether an answer repeats text that models are evaluated on: n-gram overlap with the held-out split.

An n-gram counts as shared when 13 words in a row, lower case and without punctuation, occur in a held-out document:
the unit of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) and of much since. What is recorded is Llama 2's
measure on it (Touvron et al. 2023, arXiv 2307.09288, appendix A.6): the fraction of words that lie in such an n-gram.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

NGRAM_WORDS = 13

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that every word of an n-gram changes its hash; 2**64 over the golden ratio (Knuth's multiplicative hashing)."""


class NgramIndex:
    """The set of all n-grams of some texts, as sorted 64-bit hashes: 8 bytes for each, a lookup a binary search.

    Two different n-grams share a hash with probability 2**-64: among 10**10 n-grams an answer of 1,000 words has a
    false hit with probability below 10**-6.
    """

    def __init__(self, texts_words: Iterable[Sequence[str]], ngram_words: int = NGRAM_WORDS) -> None:
        self.ngram_words = ngram_words
        hashes = [ngram_hashes(words, ngram_words) for words in texts_words]
        self.hashes: NDArray[np.uint64] = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))
        """Every n-gram's hash, ascending."""

    @classmethod
    def of_hashes(cls, hashes: NDArray[np.uint64], ngram_words: int) -> NgramIndex:
        """Return an index of another one's hashes."""
        index = cls((), ngram_words)
        index.hashes = hashes
        return index

    def __len__(self) -> int:
        return len(self.hashes)

    def covered_fraction(self, words: Sequence[str]) -> float:
        """Return the fraction of words that lie in an n-gram of the index, [0, 1]."""
        grams = ngram_hashes(words, self.ngram_words)
        if not len(grams) or not len(self.hashes):
            return 0.0
        at = np.minimum(np.searchsorted(self.hashes, grams), len(self.hashes) - 1)
        starts = np.flatnonzero(self.hashes[at] == grams)
        if not len(starts):
            return 0.0
        covered = np.zeros(len(words), bool)
        for start in starts:
            covered[start : start + self.ngram_words] = True
        return float(covered.mean())


def ngram_hashes(words: Sequence[str], ngram_words: int) -> NDArray[np.uint64]:
    """Return the 64-bit hash of every n-gram of a sequence of words, in order: [len(words) - n + 1]."""
    count = len(words) - ngram_words + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    single = np.fromiter(map(word_hash, words), np.uint64, len(words))
    mixed = np.zeros(count, np.uint64)
    for at in range(ngram_words):  # arithmetic is modulo 2**64
        mixed = mixed * _MULTIPLIER + single[at : at + count]
    mixed ^= mixed >> np.uint64(29)
    return mixed * _MULTIPLIER


@functools.lru_cache(maxsize=1 << 16)
def word_hash(word: str) -> int:
    """Return a 64-bit hash of a word, the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )
