"""Keywords for prompts, drawn from the documents themselves: no list of topics puts anybody's hand into the data."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from synth.quality.verdict import words_of

LEAST_CHARACTERS = 4
MOST_CHARACTERS = 32
"""Shortest and longest word that can become a keyword. Longer ones are addresses, hashes and encoded data."""

LIKELIER_CHARACTERS = 12
"""The longer a word the likelier it is drawn, up to this length."""

MOST_CHANGES = 2
"""Changes between letters and digits in a word; with more of them (`3f9c2ab1`) it is no word anybody reads."""

COMMON_WORD_FRACTION = 0.1
COMMON_WORD_DOCUMENTS = 512
"""A word in more than this fraction of the corpus's first so many documents says little about any one of them."""

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff"
_UNSPACED = re.compile(
    rf"(?P<han>[{_HAN}]+)|(?P<katakana>[\u30a1-\u30fa\u30fc]+)|(?P<hangul>[\uac00-\ud7af]+)|(?P<other>[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+)"
)
"""Runs of one script whose characters `words_of` takes for words, spaces or not. Hiragana, which are endings and particles, part the runs of Japanese;
Thai, Lao, Burmese and Khmer put spaces between phrases."""

_HAN_PARTICLES = re.compile(
    "[的了着过是在有和与及或而但则也都就还又很这那此其之于以被把对从向为所不没吗呢吧啊們们個个]"
)
"""Characters that part words in Chinese."""

_RUN_CHARACTERS = {"han": (2, 8), "katakana": (3, 16), "hangul": (2, 12), "other": (3, MOST_CHARACTERS)}
"""Shortest and longest run that can become a keyword; a longer one is a clause and gives its repeated pieces."""

_PIECE_CHARACTERS = (4, 3, 2)


def draw_keywords(text: str, count: int, seed: int, common_words: frozenset[str] = frozenset()) -> list[str]:
    """Return up to `count` different words of a text, drawn by the seed, longer words more often; [] if it has none.

    `common_words`, numbers and what is too short or long for a word are left out. Where words are not parted by spaces,
    short runs between punctuation and particles stand for them. Equal text and seed give equal keywords on any machine.
    """
    words = sorted({*_spaced(text), *_unspaced(text)} - common_words)
    draw = random.Random(seed)
    # Weighted sampling without replacement (Efraimidis and Spirakis): the largest u ** (1 / weight) win.
    ranked = sorted(
        words, key=lambda word: draw.random() ** (1 / min(len(word), LIKELIER_CHARACTERS)), reverse=True
    )
    return ranked[:count]


def find_common_words(texts: Sequence[str]) -> frozenset[str]:
    """Return the words that occur in more than COMMON_WORD_FRACTION of some documents, and in more than one: too common to
    be a subject."""
    counts = Counter(word for text in texts for word in {*words_of(text), *_unspaced(text)})
    most = max(1.0, COMMON_WORD_FRACTION * len(texts))
    return frozenset(word for word, count in counts.items() if count > most)


def _spaced(text: str) -> Iterator[str]:
    for word in words_of(text):
        if LEAST_CHARACTERS <= len(word) <= MOST_CHARACTERS and not word.isdigit() and _is_readable(word):
            yield word


def _is_readable(word: str) -> bool:
    kinds = [character.isdigit() for character in word]
    return sum(one != other for one, other in itertools.pairwise(kinds)) <= MOST_CHANGES


def _unspaced(text: str) -> Iterator[str]:
    clauses: list[str] = []
    for run in _UNSPACED.finditer(text):
        script = str(run.lastgroup)
        least, most = _RUN_CHARACTERS[script]
        for piece in _HAN_PARTICLES.split(run[0]) if script == "han" else [run[0]]:
            if least <= len(piece) <= most:
                yield piece
            elif script == "han" and len(piece) > most:
                clauses.append(piece)
    yield from _repeated(clauses)


def _repeated(clauses: Sequence[str]) -> Iterator[str]:
    """Return the pieces of long clauses that come more than once: what a text comes back to is most likely a word."""
    taken: set[str] = set()
    for length in _PIECE_CHARACTERS:
        counts = Counter(
            clause[at : at + length] for clause in clauses for at in range(len(clause) - length + 1)
        )
        for piece, count in sorted(counts.items()):
            if count > 1 and not any(piece in longer for longer in taken):
                taken.add(piece)
                yield piece
