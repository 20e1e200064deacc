"""How good an answer is: post-processing, measures, and the verdict a recipe's thresholds give.

All of it is recorded as columns and none of it removes a row: `keep` is a view that can be drawn again with other
thresholds. Pure functions of the text, the source and the prompt's own words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from synth.recipe import PostProcessing, Thresholds

_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|[^\W_]+(?:['’][^\W_]+)*"
)
"""A word; a single character in scripts that are written without spaces."""

_PREAMBLE = re.compile(
    r"""
    \s*
    (?: (?: sure | certainly | of\ course | absolutely | okay | ok | great | understood )\b [^\n:]{0,40}? [,.!:]\s* )?
    (?: (?: here(?:\ is|\ are|['’]s|['’]re) | below\ (?:is|are) | the\ following\ (?:is|are) | this\ is )\b [^\n]{0,120}? :\s*
      | (?: (?: rewritten | rephrased | paraphrased | revised | improved )\ (?: text | version | passage | article )
          | questions?\ and\ answers? | section ) \s* : \s* )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CHATTER = re.compile(
    r"\s*(?:sure|certainly|of course|absolutely)[,!.:]|\s*(?:as requested|i(?:['’]ve| have) (?:rewritten|rephrased|paraphrased))\b"
    r"|\s*let me know if you\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"""
    \b (?: i['’]?m | i\ am | we\ are )\ (?: very\ |so\ )? (?: sorry | afraid | unable | not\ able )\b
    | \b i\ (?: can(?:no|['’])?t | can\ not | could\ not | couldn['’]t | won['’]t | will\ not )\b
        [^.\n]{0,40} \b (?: help | assist | fulfil+ | comply | provide | create | rewrite | rephrase | answer | continue | do\ that )
    | \b as\ an?\ (?: ai | artificial\ intelligence | (?: large\ )?language\ model )\b
    | \b i\ apologi[sz]e\b
    | \b (?: please\ provide | you\ (?: did\ not | didn['’]t )\ (?: provide | include ) )\b [^.\n]{0,30} \b text\b
    """,
    re.VERBOSE | re.IGNORECASE,
)
_REFUSAL_WINDOW = 240
"""Refusals stand at the beginning; later on the same words may well be content, characters."""

_QUOTES = {'"': '"', "“": "”", "«": "»", "'": "'", "「": "」"}
_FENCE = re.compile(r"```[\w-]*\n(?P<inner>.*?)\n?```\s*", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*(?=\s|$)|[。！？]")


@dataclass(frozen=True)
class Measures:
    """What is measured of every answer, whatever the thresholds."""

    words: int
    length_ratio: float
    """Length of the answer / length of the source, characters."""
    prompt_echo: float
    """Fraction of the answer's word 5-grams that are in the prompt's own words."""
    source_words: float
    """Fraction of the answer's words that occur in the source."""
    source_overlap: float
    """Fraction of the answer's word 5-grams that are in the source."""
    repetition: float
    """Fraction of the answer's word 4-grams that occurred earlier in the answer."""
    is_refusal: bool
    has_preamble: bool


def post_process(text: str, steps: PostProcessing, finish_reason: str) -> str:
    """Return an answer without what is not part of it: preamble, enclosing quotes, the sentence the cap cut off."""
    cleaned = text.strip()
    if steps.strip_preamble and (match := _PREAMBLE.match(cleaned)):
        cleaned = cleaned[match.end() :]
    if steps.strip_quotes:
        cleaned = _unquoted(cleaned)
    if steps.drop_unfinished_sentence and finish_reason == "length":
        ends = [match.end() for match in _SENTENCE_END.finditer(cleaned)]
        cleaned = cleaned[: ends[-1]] if ends else cleaned
    return cleaned.strip()


def measure(text: str, source: str, prompt_words: str) -> Measures:
    """Return the measures of a post-processed answer. `source` is the chunk, `prompt_words` the prompt without it."""
    answer, origin, prompt = words_of(text), words_of(source), words_of(prompt_words)
    vocabulary = set(origin)
    return Measures(
        words=len(answer),
        length_ratio=len(text) / len(source) if source else 0.0,
        prompt_echo=_shared(answer, prompt, 5),
        source_words=sum(word in vocabulary for word in answer) / len(answer) if answer else 0.0,
        source_overlap=_shared(answer, origin, 5),
        repetition=_repeated(answer, 4),
        is_refusal=_REFUSAL.search(text, 0, _REFUSAL_WINDOW) is not None,
        has_preamble=(_PREAMBLE.match(text) or _CHATTER.match(text)) is not None,
    )


def reject_reasons(measures: Measures, finish_reason: str, thresholds: Thresholds) -> list[str]:
    """Return why an answer is rejected, every reason that holds; [] keeps it."""
    if measures.words == 0:
        return ["empty"]
    limit = thresholds
    checks = {
        "too_short": measures.words < limit.min_words,
        "truncated": limit.reject_truncated and finish_reason == "length",
        "refusal": limit.reject_refusals and measures.is_refusal,
        "preamble": limit.reject_preambles and measures.has_preamble,
        "length_ratio_low": measures.length_ratio < limit.min_length_ratio,
        "length_ratio_high": limit.max_length_ratio is not None
        and measures.length_ratio > limit.max_length_ratio,
        "prompt_echo": measures.prompt_echo > limit.max_prompt_echo,
        "unrelated": measures.source_words < limit.min_source_words,
        "copied": measures.source_overlap > limit.max_source_overlap,
        "repetitive": measures.repetition > limit.max_repetition,
    }
    return [reason for reason, holds in checks.items() if holds]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case; in scripts without spaces every character is one."""
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[at:] for at in range(n)), strict=False))


def _shared(words: Sequence[str], others: Sequence[str], n: int) -> float:
    grams = _ngrams(words, n)
    if not grams:
        return 0.0
    there = set(_ngrams(others, n))
    return sum(gram in there for gram in grams) / len(grams)


def _repeated(words: Sequence[str], n: int) -> float:
    grams = _ngrams(words, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _unquoted(text: str) -> str:
    if fence := _FENCE.fullmatch(text):
        return fence["inner"]
    closing = _QUOTES.get(text[:1])
    inner = text[1:-1]
    if closing and len(text) > 1 and text.endswith(closing) and text[0] not in inner and closing not in inner:
        return inner
    return text
