"""Low-level statistics of a corpus, those the paper sets against the loss (arXiv 2510.01631, 4.3): how much of a test
domain's vocabulary a training text covers, how far their unigrams are apart, how varied the text is.

The unit is the word of `synth.quality.verdict.words_of` (lower case, no punctuation), so that no tokenizer of a generator or a
student is favoured. Counts grow with the amount of text: compare sources on the same number of words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SMOOTHING = 0.1
"""Added to every count of the common vocabulary before a divergence is taken (Lidstone); without it one unseen word
makes a divergence infinite. The amount shifts all values; compare only values of one amount and one vocabulary."""

OPENING_WORDS = 5
OPENING_TEXTS = 1000
"""Openings are compared among so many answers, as in the Synthetic Data Playbook (arXiv 2604.13977): repetition grows
with the number looked at."""

MOST_OPENINGS = 10
"""Openings that are listed with their counts."""


@dataclass(frozen=True)
class Closeness:
    """A training text against a test domain."""

    covered_words: float
    """Fraction of the domain's running words that occur in the training text, [0, 1]."""
    covered_vocabulary: float
    """Fraction of the domain's different words that do, [0, 1]."""
    kl_domain_to_source_nats: float
    """KL(domain || source): what coding the domain with the source's unigrams costs more, nats a word."""
    kl_source_to_domain_nats: float
    """KL(source || domain)."""


@dataclass(frozen=True)
class Variety:
    """How varied a text is in itself."""

    words: int
    vocabulary: int
    distinct_bigrams: float
    """Different bigrams / bigrams, [0, 1]; an n-gram does not cross from one document to the next."""
    distinct_trigrams: float
    unigram_entropy_nats: float


@dataclass(frozen=True)
class Openings:
    """How often texts begin alike."""

    texts: int
    commonest: str
    """First OPENING_WORDS words of most texts; of equals the first in the alphabet."""
    commonest_fraction: float
    distinct_fraction: float
    """Different openings / texts."""
    most: tuple[tuple[str, int], ...]
    """The MOST_OPENINGS commonest that open more than one text, and how many."""


def closeness(
    source: Mapping[str, int], domain: Mapping[str, int], vocabulary_size: int, smoothing: float = SMOOTHING
) -> Closeness:
    """Return how close word counts of a source are to those of a domain.

    `vocabulary_size` counts the different words of all texts that are compared with one another; both distributions
    are smoothed over it: p(w) = (count(w) + smoothing) / (total + smoothing * vocabulary_size).
    """
    total = sum(domain.values())
    return Closeness(
        covered_words=sum(count for word, count in domain.items() if word in source) / total
        if total
        else 0.0,
        covered_vocabulary=sum(word in source for word in domain) / len(domain) if domain else 0.0,
        kl_domain_to_source_nats=divergence(domain, source, vocabulary_size, smoothing),
        kl_source_to_domain_nats=divergence(source, domain, vocabulary_size, smoothing),
    )


def divergence(
    of: Mapping[str, int], to: Mapping[str, int], vocabulary_size: int, smoothing: float = SMOOTHING
) -> float:
    """Return KL(of || to) in nats, both smoothed over a vocabulary of that size. Raises ValueError when it is too small."""
    union = of.keys() | to.keys()
    if vocabulary_size < len(union):
        raise ValueError(f"a vocabulary of {vocabulary_size} words cannot hold the {len(union)} that occur")
    total_of = sum(of.values()) + smoothing * vocabulary_size
    total_to = sum(to.values()) + smoothing * vocabulary_size
    terms = [
        (p := (of.get(word, 0) + smoothing) / total_of)
        * math.log(p * total_to / (to.get(word, 0) + smoothing))
        for word in union
    ]
    nowhere = smoothing / total_of
    return math.fsum(terms) + (vocabulary_size - len(union)) * nowhere * math.log(total_to / total_of)


def variety(texts: Sequence[Sequence[str]]) -> Variety:
    """Return how varied some texts, given as words, are."""
    counts = Counter(word for words in texts for word in words)
    total = counts.total()
    return Variety(
        words=total,
        vocabulary=len(counts),
        distinct_bigrams=_distinct(texts, 2),
        distinct_trigrams=_distinct(texts, 3),
        unigram_entropy_nats=-math.fsum(count / total * math.log(count / total) for count in counts.values()),
    )


def openings(texts: Iterable[Sequence[str]]) -> Openings:
    """Return how often texts, given as words, begin alike; only the first OPENING_TEXTS that have any words."""
    found: Counter[str] = Counter()
    for words in texts:
        if words and found.total() < OPENING_TEXTS:
            found[" ".join(words[:OPENING_WORDS])] += 1
    if not found:
        return Openings(0, "", 0.0, 0.0, ())
    ranked = sorted(found, key=lambda opening: (-found[opening], opening))[:MOST_OPENINGS]
    most = tuple((opening, found[opening]) for opening in ranked if found[opening] > 1)
    total, commonest = found.total(), ranked[0]
    return Openings(total, commonest, found[commonest] / total, len(found) / total, most)


def take_words(texts: Iterable[Sequence[str]], num_words: int) -> list[list[str]]:
    """Return texts from the first on until they hold `num_words` words, the last one cut."""
    taken: list[list[str]] = []
    left = num_words
    for words in texts:
        if left <= 0:
            break
        taken.append(list(words[:left]))
        left -= len(taken[-1])
    return taken


def compare(
    sources: Mapping[str, Sequence[Sequence[str]]], domains: Mapping[str, Sequence[Sequence[str]]], max_words: int
) -> dict[str, Any]:  # fmt: skip
    """Return the statistics of every source, and of every source against every domain, as plain JSON.

    Texts are given as words. All sources are cut to the same number of words: `max_words`, or what the shortest has.
    """
    sizes = {name: sum(map(len, texts)) for name, texts in sources.items()}
    num_words = min([max_words, *(size for size in sizes.values() if size)])
    cut = {name: take_words(texts, num_words) for name, texts in sources.items() if sizes[name]}
    counted = {name: _counts(texts) for name, texts in cut.items()}
    held_out = {name: _counts(take_words(texts, max_words)) for name, texts in domains.items()}
    vocabulary: set[str] = set().union(*counted.values(), *held_out.values())
    return {
        "unit": "words, lower case, without punctuation",
        "words_of_each_source": num_words,
        "smoothing": SMOOTHING,
        "smoothing_vocabulary": len(vocabulary),
        "sources": {
            name: asdict(variety(cut[name]))
            | {"openings": asdict(openings(sources[name])), "words_available": sizes[name]}
            for name in cut
        },
        "domains": {
            name: {
                "words": sum(counts.values()),
                "closeness": {
                    source: asdict(closeness(counted[source], counts, len(vocabulary))) for source in cut
                },
            }
            for name, counts in sorted(held_out.items())
            if counts
        },
    }


def _counts(texts: Sequence[Sequence[str]]) -> Counter[str]:
    return Counter(word for words in texts for word in words)


def _distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    grams = [gram for words in texts for gram in zip(*(words[at:] for at in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0
