"""Corpus statistics of a synthetic set beside those of the text it was made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from upath import UPath

from synth.card.survey import SAMPLED_PARTS, Survey, spaced
from synth.config import CardConfig
from synth.quality.text_statistics import compare
from synth.quality.verdict import words_of
from synth.rows import KEPT
from synth.storage import read_parquet

NATURAL = "(natural)"
"""What the corpus itself is called among the sources; no recipe can have this name."""
MOST_DOMAINS = 24
"""Held-out domains compared with: those with most text."""


def measure_statistics(
    survey: Survey, sources: Sequence[UPath], held_out: Sequence[UPath], config: CardConfig
) -> dict[str, Any]:  # fmt: skip
    """Return `statistics.json`: `synth.quality.text_statistics.compare` of natural text and every recipe's kept rows.

    Raises UserError when the perplexity model cannot be loaded.
    """
    texts = {NATURAL: list(_natural(sources, survey.sampled_parts, config.statistics_words))}
    for recipe, rows in sorted(survey.sample.items()):
        texts[recipe] = [row["text"] for row in rows if row["verdict"] == KEPT]
    words = {name: [words_of(text) for text in each] for name, each in texts.items()}
    domains = _held_out(held_out, config.statistics_words)
    result = compare(words, domains, config.statistics_words)
    result["basis"] = {
        "sampled_parts": list(survey.sampled_parts),
        "parts": len(sources),
        "texts": {name: len(each) for name, each in texts.items()},
    }
    if config.perplexity_model is not None:
        from synth.quality.perplexity import PerplexityModel

        model = PerplexityModel(config.perplexity_model)
        result["perplexity"] = {
            "model": config.perplexity_model,
            "sources": {
                name: model.measure(each[: config.perplexity_texts]) for name, each in texts.items() if each
            },
        }
    return result


def _natural(sources: Sequence[UPath], parts: Sequence[int], most_words: int) -> Iterator[str]:
    left = most_words
    for part in parts:
        for text in read_parquet(sources[part], ["text"])["text"].to_pylist():
            if left <= 0:
                return
            yield text
            left -= len(text.split())


def _held_out(parts: Sequence[UPath], most_words: int) -> dict[str, list[list[str]]]:
    """Return the words of the largest held-out domains, documents in order."""
    texts: dict[str, list[str]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for part in (parts[at] for at in spaced(len(parts), SAMPLED_PARTS)):
        table = read_parquet(part, ["domain", "text"])
        for domain, text in zip(table["domain"].to_pylist(), table["text"].to_pylist(), strict=True):
            if sizes[domain] < most_words:
                texts[domain].append(text)
            sizes[domain] += len(text.split())
    largest = sorted(sizes, key=lambda domain: (-sizes[domain], domain))[:MOST_DOMAINS]
    return {domain: [words_of(text) for text in texts[domain]] for domain in largest}
