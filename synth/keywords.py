"""Keywords for prompts, drawn from the documents themselves: no list of topics puts anybody's hand into the data."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from synth.quality.verdict import words_of

KEYWORD_CANDIDATE_CHARACTERS = 4
"""Shortest word that can become a keyword."""

COMMON_WORD_FRACTION = 0.1
COMMON_WORD_DOCUMENTS = 512
"""A word in more than this fraction of the corpus's first so many documents says little about any one of them."""


def draw_keywords(text: str, count: int, seed: int, common_words: frozenset[str] = frozenset()) -> list[str]:
    """Return up to `count` different words of a text, drawn by the seed, longer words more often.

    `common_words` and numbers are left out. Equal text and seed give equal keywords on any machine.
    """
    words = sorted(
        {
            word
            for word in words_of(text)
            if len(word) >= KEYWORD_CANDIDATE_CHARACTERS and not word.isdigit() and word not in common_words
        }
    )
    draw = random.Random(seed)
    # Weighted sampling without replacement (Efraimidis and Spirakis): the largest u ** (1 / weight) win.
    ranked = sorted(words, key=lambda word: draw.random() ** (1 / len(word)), reverse=True)
    return ranked[:count]


def find_common_words(texts: Sequence[str]) -> frozenset[str]:
    """Return the words that occur in more than COMMON_WORD_FRACTION of some documents: too common to be a subject."""
    counts = Counter(word for text in texts for word in set(words_of(text)))
    return frozenset(word for word, count in counts.items() if count > COMMON_WORD_FRACTION * len(texts))
