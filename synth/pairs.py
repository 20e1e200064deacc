"""Answers that rules can give to a recipe's prompt: what a small generator of one's own learns from.

Docstrings carry their own supervision. A parameter's description answers what the parameter is, a sentence of the form
`If A, B` what happens if A; fields become sentences by a frame, sentences other words by a table (`synth.rewording`). So
most of an answer is a copy of the source in a fixed frame, which is what a model of a few million parameters can learn.

Everything is a pure function of the text: the same chunk gives the same answer everywhere. A chunk that no rule knows what
to do with (code, a table) has none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from synth.chunking import Span, chunk_spans, count_characters, count_words
from synth.docstring_parts import Field, Part, Sentence, parts_of
from synth.drafts import NO_KEYWORDS, row_seed
from synth.errors import UserError
from synth.keywords import draw_keywords
from synth.quality.verdict import measure, reject_reasons
from synth.recipe import Recipe, Task
from synth.rewording import close, lower_first, reword, upper_first, verb_phrase

MAX_QUESTIONS = 3
"""Most pairs of question and answer of a chunk."""

MAX_ANSWER_CHARACTERS = 240
"""Of a description only whole sentences up to here answer a question, after the first."""

_VERB = r"(?:is|are|was|were|must|should|can|cannot|will|may|does|do|has|have)"
_SUBJECT = rf"(?P<subject>(?:The|A|An|This|These|Each|All)(?: (?!{_VERB}\b|that\b|which\b|if\b|and\b)[\w`-]+){{1,5}})"
_IS = re.compile(rf"{_SUBJECT} (?P<verb>is|are) (?!not\b)\S")
_MODAL = re.compile(rf"{_SUBJECT} {_VERB} \S")
_ACTS = re.compile(
    r"This (?P<what>function|method|class|module|property|decorator|operator|test|option|object|routine|function|attribute) (?P<verb>[a-z]+s) \S"
)
_CONDITION = re.compile(r"(?P<word>If|When) (?P<condition>[^,.;:()]{3,90}), (?:then )?(?P<rest>\S.*)")
_NOTE = re.compile(r"(?:Note|Please note|Notice)(?: that|:|,) ?(?P<rest>\S.*)")
_DETERMINERS = frozenset("the a an any all one each".split())  # noqa: SIM905
_NO_NOUNS = frozenset(
    "it this these they there only see must used passed not default defaults same can may either both to as note also "  # noqa: SIM905
    "should will optional and or but so true false none please how what where which".split()
)
"""Words no description of a thing begins with that could follow `is the`."""
_WORD = re.compile(r"\b[a-z_][a-z_]{3,}\b")


@dataclass(frozen=True)
class TaughtRecipe:
    """A recipe and what its answers are made by."""

    recipe: Recipe
    task: Task


@dataclass(frozen=True)
class Pair:
    """What a generator is asked, and what it should have answered."""

    recipe: Recipe
    chunk: str
    keywords: tuple[str, ...]
    """Words for `{keywords}`; () where the prompt has none."""
    answer: str


def pairs_of(document: Mapping[str, str], taught: TaughtRecipe, left_out: Counter[str]) -> Iterator[Pair]:
    """Yield the pairs of a document (`doc_id`, `text`) for one recipe, cut into chunks as `rephrase_corpus` will cut it.

    Only answers that the recipe's own thresholds keep are learnt from; the reasons of the others are counted in `left_out`,
    `no_answer` where the rules have none. Raises UserError for a recipe that cuts by tokens: see `check_taught`.
    """
    text, recipe = document["text"], taught.recipe
    spans = _chunks(text, recipe)
    chunks = [text[span.start : span.end] for span in spans]
    words = " ".join(piece for message in recipe.messages for piece in message.pieces()[::2])
    for number, chunk in enumerate(chunks):
        following = chunks[number + 1] if number + 1 < len(chunks) else None
        answer = answer_of(taught.task, chunk, following)
        if answer is None:
            left_out["no_answer"] += 1
            continue
        measures = measure(answer, chunk, words, thresholds=recipe.thresholds)
        if reasons := reject_reasons(measures, "stop", recipe.thresholds):
            left_out.update(reasons)
            continue
        keywords: tuple[str, ...] = ()
        if "keywords" in recipe.placeholders:
            seed = row_seed(0, document["doc_id"], number, recipe.name, 0)
            keywords = tuple(draw_keywords(chunk, recipe.num_keywords, seed))
            if not keywords:
                left_out[NO_KEYWORDS] += 1
                continue
        yield Pair(recipe, chunk, keywords, answer)


def check_taught(taught: TaughtRecipe) -> None:
    """Raise UserError for a recipe that cannot be taught: one whose chunks are counted in tokens of a model to come."""
    recipe = taught.recipe
    if recipe.chunking.unit == "tokens":
        raise UserError(
            f"recipe {recipe.name!r} cuts documents by tokens, and a generator that is yet to be trained has none: give the "
            "recipe chunking.unit = 'characters' or 'words', as the shipped hq_brief and qa_brief have it."
        )


def _chunks(text: str, recipe: Recipe) -> list[Span]:
    chunking = recipe.chunking
    if chunking.max_length is None:
        return [Span(0, len(text))]
    return chunk_spans(
        text, chunking.max_length, count_words if chunking.unit == "words" else count_characters
    )


def answer_of(task: Task, chunk: str, following: str | None = None) -> str | None:
    """Return the answer to a task about a chunk of a docstring, None where the rules have none.

    `following` is the chunk after it, which is what continues it.
    """
    if task == "continue":
        return following
    parts = parts_of(chunk)
    if not parts:
        return None
    if task == "ask":
        return ask(parts)
    return summarise(parts) if task == "summarise" else rewrite(parts)


# --- prose -----------------------------------------------------------------------------------------------------


def rewrite(parts: Sequence[Part]) -> str | None:
    """Return all the parts as prose, in order: sentences in other words, fields in a frame."""
    said = [
        _field_in_prose(part) if isinstance(part, Field) else _sentence_in_prose(part.text, not at)
        for at, part in enumerate(parts)
    ]
    return " ".join(said)


def _sentence_in_prose(text: str, first: bool = False) -> str:
    phrase = verb_phrase(text)
    if phrase is not None:
        return f"{'This' if first else 'It'} {_in_other_words(phrase)}"
    return upper_first(_in_other_words(text))


def _field_in_prose(field: Field) -> str:
    described = field.sentences
    title = _title(field)
    if not described:
        return close(
            f"`{field.name}` is of type {field.type}" if field.name else f"The result is of type {field.type}"
        )
    first, *others = described
    rest = "".join(f" {_sentence_in_prose(sentence)}" for sentence in others)
    if field.kind == "error":
        return f"{title} is raised {_in_other_words(lower_first(first))}{rest}"
    return f"{title} {_in_other_words(_predicate(first))}{rest}"


def _title(field: Field) -> str:
    type_ = f" ({field.type})" if field.type else ""
    if field.kind == "result":
        return f"The result `{field.name}`{type_}" if field.name else f"The result{type_}"
    return f"`{field.name}`{type_}"


def _predicate(sentence: str) -> str:
    """Return what follows a field's name: `is the axis ...`, `tells whether ...`, `controls ...`."""
    first = sentence.split(" ", 1)[0].strip(",:").lower()
    if first == "whether":
        return f"tells {lower_first(sentence)}"
    if first in ("if", "when", "for", "in", "by", "on", "with"):
        return f"works as follows: {lower_first(sentence)}"
    if (phrase := verb_phrase(sentence)) is not None:
        return phrase
    if first in _DETERMINERS:
        return f"is {lower_first(sentence)}"
    if first in _NO_NOUNS or not sentence[:1].isupper():
        return f"is described as follows: {lower_first(sentence)}"
    return f"is the {lower_first(sentence)}"


def _in_other_words(text: str) -> str:
    return close(reword(text))


# --- questions -------------------------------------------------------------------------------------------------


def ask(parts: Sequence[Part]) -> str | None:
    """Return questions about the parts, each with its answer in the words of the source."""
    pairs: dict[str, str] = {}
    for part in parts:
        asked = _about_field(part) if isinstance(part, Field) else _about_sentence(part.text)
        if asked is not None and len(pairs) < MAX_QUESTIONS:
            pairs.setdefault(*asked)
    return (
        "\n".join(f"Question: {question}\nAnswer: {close(answer)}" for question, answer in pairs.items())
        or None
    )


def _about_field(field: Field) -> tuple[str, str] | None:  # noqa: PLR0911 (one return a kind)
    described = _first_sentences(field.sentences)
    if field.kind == "error":
        return (f"When is `{field.name}` raised?", upper_first(described)) if described else None
    if field.kind == "result":
        name = f"`{field.name}`" if field.name else "the result"
        return f"What is {name}?", upper_first(described) or upper_first(field.type)
    name = f"`{field.name}`"
    if not described:
        return f"What type does {name} have?", upper_first(field.type)
    first = described.split(" ", 1)[0].strip(",:").lower()
    if first == "whether":
        return f"What does {name} decide?", upper_first(described)
    if first in ("if", "when"):
        return f"What does {name} change?", upper_first(described)
    if (phrase := verb_phrase(described)) is not None:
        return f"What does {name} do?", f"It {phrase}"
    return f"What is {name}?", upper_first(described)


def _about_sentence(text: str) -> tuple[str, str] | None:  # noqa: PLR0911 (one return a form)
    if (phrase := verb_phrase(text)) is not None:
        return "What does it do?", f"It {phrase}"
    if (match := _NOTE.fullmatch(text)) is not None:
        return "What is to be noted?", upper_first(match["rest"])
    if (match := _ACTS.match(text)) is not None:
        return f"What does the {match['what']} do?", text
    if (match := _CONDITION.fullmatch(text)) is not None:
        return f"What happens {match['word'].lower()} {match['condition']}?", upper_first(match["rest"])
    if (match := _IS.match(text)) is not None:
        return f"What {match['verb']} {lower_first(match['subject'])}?", text
    if (match := _MODAL.match(text)) is not None:
        return f"What is said of {lower_first(match['subject'])}?", text
    words = _WORD.findall(text)
    if not words:
        return None
    return f"What does the text say about {max(words, key=len)}?", upper_first(text)


def _first_sentences(sentences: Sequence[str]) -> str:
    taken = list(sentences[:1])
    for sentence in sentences[1:]:
        if sum(map(len, taken)) + len(sentence) > MAX_ANSWER_CHARACTERS:
            break
        taken.append(sentence)
    return " ".join(taken)


# --- summary ---------------------------------------------------------------------------------------------------


def summarise(parts: Sequence[Part]) -> str | None:
    """Return the first sentence in other words and what fields there are; None of a text that is as short itself."""
    if len(parts) < 2:
        return None
    prose = [part.text for part in parts if isinstance(part, Sentence)]
    said = [_sentence_in_prose(prose[0], first=True)] if prose else []
    names = [f"`{part.name}`" for part in parts if isinstance(part, Field) and part.kind == "parameter"]
    if names:
        said.append(f"The text describes {_enumerated(names)}.")
    if any(isinstance(part, Field) and part.kind == "result" for part in parts):
        said.append("It says what the result is.")
    return " ".join(said)


def _enumerated(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
