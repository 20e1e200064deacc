"""How good an answer is: post-processing, measures, and the verdict a recipe's thresholds give.

All of it is recorded as columns and none of it removes a row: `keep` is a view that can be drawn again with other
thresholds. Pure functions of the text, the source and the prompt's own words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from synth.quality.answer_format import count_items
from synth.quality.decontamination import NgramIndex
from synth.quality.language import drifted, identify
from synth.recipe import PostProcessing, Thresholds

_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|[^\W_]+(?:['’][^\W_]+)*"
)
"""A word; a single character in scripts that are written without spaces."""

_TASK = r"(?: re-?written | re-?phrased | re-?worded | paraphrased | re-?structured | revised | summari[sz]ed | simplified | requested | improved )"
_TASK_NOUN = r"""
    (?: re-?write | re-?phrasing | re-?wording | paraphrase | continuation
      | (?: version | summary | explanation ) \ (?: of | based\ on ) \ (?: the | your | this ) \ (?: given\ | provided\ | original\ )?
            (?: text | passage | paragraph | document | article | content )
      | questions? \ and \ (?: their\ )? answers? | question[-\ ]answer \ pairs? | q&a \ pairs? | q&as? | faqs?
      | (?: textbook \ )? section | tutorial | (?: markdown \ )? table | knowledge \ list | list \ of \ facts )
"""
_PREAMBLE = re.compile(
    rf"""
    \s* [*_#\ ]*
    (?: (?: sure(?:\ thing)? | certainly | of\ course | absolutely | okay | ok | great | understood )\b [^\n:]{{0,40}}? [,.!:]\s* )?
    (?: (?: (?: here(?:\ is|\ are|['’]s|['’]re) | below\ (?:is|are) | the\ following\ (?:is|are) | this\ is )\b
            [^\n:.]{{0,60}}? \b (?: {_TASK} [^\n:]{{0,80}} | {_TASK_NOUN} [^\n:]{{0,60}} )
          | here(?:\ is|\ are|['’]s)\ (?:the|your)\ (?:text|answer|output|result|section|response) [^\n:]{{0,40}}
          | (?: {_TASK} \ (?: text | version | passage | article | paragraph ) | questions?\ and\ answers? | section ) )
        \s* : [*_]* \s*
      | (?: sure | certainly | of\ course | absolutely | okay | understood | got\ it ) [!.] \s* \n+ )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CHATTER = re.compile(
    r"\s*(?:sure|certainly|of course|absolutely)\s*[,!]\s*(?:here|i['’]|i\s|let me|below|the following)"
    r"|\s*as (?:you )?requested\b|\s*i(?:['’]ve| have) (?:rewritten|rephrased|paraphrased|summari[sz]ed|reworded)\b"
    r"|\s*i(?:['’]ll| will) (?:rewrite|rephrase|paraphrase|summari[sz]e)\b|\s*i hope this helps\b",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\n\s*[*_(\[]*(?:(?:please )?let me know if (?:you|this|there)|i hope this (?:helps|meets|is)|feel free to (?:ask|let me know)"
    r"|would you like me to|is there anything else|note: (?:the|this) (?:above )?(?:text|passage|rewrite|rewritten|rephrased|version) )[^\n]{0,300}\s*$",
    re.IGNORECASE,
)
_CANNOT = r"(?: can(?:no|['’])?t | can\ not | could\ not | couldn['’]t | won['’]t | will\ not | am\ unable\ to | am\ not\ able\ to | must\ decline | ['’]m\ unable\ to | ['’]m\ not\ able\ to | don['’]t\ see | do\ not\ see )"
_DO = r"(?: help \ (?: you | with ) | assist | fulfil+ | comply | provide | create | generate | re-?write | re-?phrase | paraphrase | summari[sz]e | answer | continue | complete | process | produce | do\ (?: that | this ) | engage | (?: any | the | a ) \ (?: text | passage | document ) )"
_SORRY = r"(?: i['’]?m\ (?:very\ |so\ |really\ )?(?:sorry|afraid) | i\ am\ (?:very\ |so\ |really\ )?(?:sorry|afraid) | i\ apologi[sz]e | (?:my\ )?apologies | sorry | unfortunately )"
_REFUSAL = re.compile(
    rf"""
    (?: ^ | [.!?\n] ) \s*
    (?: {_SORRY} [^.\n"“]{{0,80}}? [\ ,;:.–—-]+ (?: (?: but | that | as | because ) \ )? i \ ? {_CANNOT} \b [^.\n]{{0,40}}? \b {_DO}
      | i \ ? {_CANNOT} \ {_DO} \b [^.\n]{{0,60}} \b (?: request | text | content | passage | task | prompt | that | this | instructions? | question )
      | as\ an?\ (?: (?:responsible|helpful)\ )? (?: ai | artificial\ intelligence | (?: large\ )? language\ model ) (?: \ (?: language\ )? (?: model | assistant ) )? [,]? \ i (?: \b | ['’] )
      | i \ ? (?: am | ['’]m ) \ (?: just | only | merely )? \ ? an? \ (?: ai | (?: large\ )? language\ model ) \b
      | (?: please | could\ you | can\ you ) \ (?: please\ )? (?: provide | share | paste | send ) \b [^.?\n]{{0,40}} \b (?: text | passage | document | article | content )
            \ (?: you(?:['’]d| \ would)? \ (?: like | want ) | to\ be\ (?: re | para ) | (?: so | and ) \ i | for\ me | that\ you )
      | (?: it\ (?: seems | looks | appears ) \ (?: like | that | as\ if ) \ )? (?: you\ (?: did\ not | didn['’]t | have\ not | haven['’]t ) \ (?: provide | include | share ) | there\ (?: is | was ) \ no \ (?: text | passage ) \ (?: provided | given | to \ re ) | no\ (?: text | passage ) \ (?: was | has\ been | is ) \ (?: provided | given ) )
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_REFUSAL_WINDOW = 240
"""Refusals stand at the beginning; later on the same words may well be content, characters."""

_REASONING = re.compile(r"\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_MARKDOWN = (
    (re.compile(r"^[ \t]*```[\w-]*[ \t]*$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.MULTILINE), ""),
    (re.compile(r"(?<![\w*])(\*{1,3})(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])"), r"\2"),
    (re.compile(r"(?<![\w`])__(?=\S)([^_\n]*\s[^_\n]*)(?<=\S)__(?![\w`])"), r"\1"),  # __init__ stays
    (re.compile(r"\n{3,}"), "\n\n"),
)

UNKNOWN_ENDING = "unknown"
"""An answer as long as it was allowed to be, of an engine that does not say whether it had come to its end."""

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
    has_answer_mark: bool
    """False where the recipe's `answer_after` was asked for and is not in the answer."""
    format_items: int
    """Items of the recipe's format; see `synth.quality.answer_format`."""
    language: str | None
    """ISO 639-1 code; None when the answer is too short or the language unsure."""
    source_language: str | None
    language_drift: bool | None
    """Whether the answer is in another language than it should; None when that cannot be told."""
    held_out_overlap: float | None
    """Fraction of the answer's words that lie in a 13-gram of the held-out split; None when none was asked for."""


def post_process(text: str, steps: PostProcessing, ending: str) -> str:
    """Return an answer without what is not part of it: reasoning, preamble, quotes, the sentence the cap cut off.

    `ending` is `stop`, `length`, or UNKNOWN_ENDING for an answer that may have been cut off.
    """
    cleaned = _answer(text, steps).strip()
    if steps.strip_preamble:
        if match := _PREAMBLE.match(cleaned):
            cleaned = cleaned[match.end() :]
        cleaned = _CLOSING.sub("", cleaned).strip()
    if steps.strip_quotes:
        cleaned = _unquoted(cleaned)
    if steps.strip_markdown:
        for pattern, replacement in _MARKDOWN:
            cleaned = pattern.sub(replacement, cleaned)
    if steps.drop_unfinished_sentence and ending != "stop":
        ends = [match.end() for match in _SENTENCE_END.finditer(cleaned)]
        cleaned = cleaned[: ends[-1]] if ends else cleaned
    return cleaned.strip()


def _answer(text: str, steps: PostProcessing) -> str:
    """Return what follows the reasoning and the mark the prompt asks for; all of it where there is no mark."""
    if steps.strip_reasoning and (match := _REASONING.match(text)):
        text = text[match.end() :]
    if steps.answer_after is None:
        return text
    _, mark, after = text.partition(steps.answer_after)
    return after if mark else text


def has_answer_mark(raw: str, steps: PostProcessing) -> bool:
    """Return whether an answer as generated holds the mark the recipe asks for, if it asks for one."""
    return steps.answer_after is None or steps.answer_after in raw


def measure(
    text: str, source: str, prompt_words: str, *, thresholds: Thresholds | None = None, has_mark: bool = True,
    held_out: NgramIndex | None = None, trained_with_source: bool = False,
) -> Measures:  # fmt: skip
    """Return the measures of a post-processed answer. `source` is the chunk, `prompt_words` the prompt without it.

    With `trained_with_source` the held-out overlap is that of source and answer together, which a model will read.
    """
    limit = thresholds or Thresholds()
    answer, origin, prompt = words_of(text), words_of(source), _prompt_words(prompt_words)
    vocabulary = set(origin)
    language, source_language = (identify(each, limit.min_language_letters) for each in (text, source))
    return Measures(
        words=len(answer),
        length_ratio=len(text) / len(source) if source else 0.0,
        prompt_echo=_shared(answer, prompt, 5),
        source_words=sum(word in vocabulary for word in answer) / len(answer) if answer else 0.0,
        source_overlap=_shared(answer, origin, 5),
        repetition=_repeated(answer, 4),
        is_refusal=_REFUSAL.search(text, 0, _REFUSAL_WINDOW) is not None,
        has_preamble=(_PREAMBLE.match(text) or _CHATTER.match(text)) is not None,
        has_answer_mark=has_mark,
        format_items=count_items(text, limit.format),
        language=language,
        source_language=source_language,
        language_drift=drifted(language, source_language if limit.language == "source" else limit.language),
        held_out_overlap=None
        if held_out is None
        else held_out.covered_fraction([*origin, *answer] if trained_with_source else answer),
    )


def reject_reasons(measures: Measures, ending: str, thresholds: Thresholds) -> list[str]:
    """Return why an answer is rejected, every reason that holds; [] keeps it. `ending` as in `post_process`."""
    if measures.words == 0:
        return ["empty"]
    limit = thresholds
    checks = {
        "too_short": measures.words < limit.min_words,
        "truncated": limit.reject_truncated and ending == "length",
        "truncation_unknown": limit.reject_truncated and ending == UNKNOWN_ENDING,
        "refusal": limit.reject_refusals and measures.is_refusal,
        "preamble": limit.reject_preambles and measures.has_preamble,
        "length_ratio_low": measures.length_ratio < limit.min_length_ratio,
        "length_ratio_high": limit.max_length_ratio is not None
        and measures.length_ratio > limit.max_length_ratio,
        "prompt_echo": measures.prompt_echo > limit.max_prompt_echo,
        "unrelated": measures.source_words < limit.min_source_words,
        "copied": measures.source_overlap > limit.max_source_overlap,
        "repetitive": measures.repetition > limit.max_repetition,
        "no_answer_mark": not measures.has_answer_mark,
        "format": limit.format != "free" and measures.format_items < limit.min_format_items,
        "language": limit.reject_language_drift and bool(measures.language_drift),
        "contaminated": (measures.held_out_overlap or 0.0) > limit.max_held_out_overlap,
    }
    return [reason for reason, holds in checks.items() if holds]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case; in scripts without spaces every character is one."""
    return _WORD.findall(text.lower())


@functools.lru_cache(maxsize=64)
def _prompt_words(text: str) -> list[str]:
    """Return the words of a prompt, which is the same for every row of a recipe."""
    return words_of(text)


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
