"""What a recipe is: a prompt, how documents are cut for it, how the model samples, and what output is good enough.

Recipes are data. The shipped ones are TOML files beside this module (`synth/recipes/`); a user's own is one more
TOML file, named by its path. Everything that changes the text or the verdict is in the recipe's hash.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
from pydantic import Field, field_validator, model_validator

from synth.config import Config, Fraction, Name
from synth.errors import UserError
from synth.identity import content_hash

PLACEHOLDERS = ("document", "keywords", "domain")
"""What a message may ask for: the chunk, words drawn from the document, the document's domain."""

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


class Message(Config):
    """One turn of the conversation sent to the model."""

    role: Literal["system", "user", "assistant"]
    """Who speaks. A last message of the assistant is the beginning of the answer."""
    content: str
    """Text; `{document}`, `{keywords}` and `{domain}` stand for data, which is put in as it is."""

    def pieces(self) -> list[str]:
        """Return text and placeholder names in turn: text, name, text, name, ..., text."""
        return _PLACEHOLDER.split(self.content)


class Chunking(Config):
    """How a document is cut into chunks, at sentence ends where there are any."""

    unit: Literal["document", "tokens", "words", "characters"] = "tokens"
    """What `max_length` counts: tokens of the engine's tokenizer, words, characters; `document` does not cut."""
    max_length: int | None = Field(default=None, ge=1)
    """Longest chunk, in `unit`."""
    min_length: int = Field(default=0, ge=0)
    """A chunk shorter than this, in `unit` (characters for `document`), is not sent: its row is there, rejected as
    `chunk_too_short`, and costs nothing."""

    @model_validator(mode="after")
    def _length_given(self) -> Chunking:
        if (self.unit == "document") != (self.max_length is None):
            raise ValueError("give chunking.max_length exactly when chunking.unit is not 'document'")
        return self


class Sampling(Config):
    """How the model draws its answer."""

    temperature: float = Field(default=0.7, ge=0.0)
    """Softmax temperature; 0 takes the most likely token."""
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    """Sample from the smallest set of tokens with this probability, (0, 1]."""
    top_k: int = Field(default=0, ge=0)
    """Sample from so many most likely tokens; 0 from all."""
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    """Above 1 discourages tokens that occurred in the prompt or the answer."""
    max_output_tokens: int = Field(ge=1)
    """Longest answer, tokens; an answer that reaches it has finish_reason `length`."""
    stop: tuple[str, ...] = ()
    """The answer ends before any of these strings."""


Task = Literal["rewrite", "ask", "summarise", "continue", "section"]
"""What a recipe asks for, as far as the rules of `synth.pairs` can answer it."""


class Routing(Config):
    """Which documents a recipe is for, by quality score in [0, 1]: min_quality <= score < max_quality (1 included)."""

    min_quality: Fraction = 0.0
    """Least score of a document."""
    max_quality: Fraction = 1.0
    """The score it must stay below; 1 takes all up to and with 1."""

    @model_validator(mode="after")
    def _not_empty(self) -> Routing:
        if self.min_quality >= self.max_quality:
            raise ValueError(
                "routing.min_quality must be below routing.max_quality: no document has such a score"
            )
        return self

    def takes(self, quality: float) -> bool:
        """Return whether a document of this score goes through the recipe."""
        return self.min_quality <= quality and (quality < self.max_quality or self.max_quality == 1.0)

    @property
    def takes_all(self) -> bool:
        """Whether the score makes no difference."""
        return self.min_quality == 0.0 and self.max_quality == 1.0


class PostProcessing(Config):
    """What is taken off an answer before it is judged; the untouched answer is kept beside a changed one.

    The steps run in the order of the fields.
    """

    strip_reasoning: bool = True
    """Drop an opening `<think> ... </think>` block; one that never closes leaves nothing."""
    answer_after: str | None = Field(default=None, min_length=1)
    """Keep what follows the first occurrence of this text, which the prompt asks for; an answer without it is
    rejected as `no_answer_mark` (a test of whether the model followed the prompt at all)."""
    strip_preamble: bool = True
    """Drop an opening line such as `Sure, here is the rewritten text:`."""
    strip_quotes: bool = True
    """Drop one pair of quotation marks or a code fence around the whole answer."""
    strip_markdown: bool = False
    """Drop headings' marks, emphasis, rules and code fences; the words stay."""
    drop_unfinished_sentence: bool = False
    """Of an answer cut off at max_output_tokens keep whole sentences, if there are any."""
    prepend_source: bool = False
    """Put the chunk and a blank line before a kept answer, which is judged without it (questions need their text)."""


Format = Literal["free", "question_answer", "list", "steps", "table", "problem_solution"]
"""Shapes an answer can be asked to have; `synth.quality.answer_format` counts their items."""


class Thresholds(Config):
    """When an answer is rejected. Every measure is recorded whatever the threshold; see `synth.quality.verdict`."""

    min_words: int = Field(default=1, ge=0)
    """Fewest words of an answer."""
    reject_truncated: bool = True
    """Reject answers cut off at max_output_tokens."""
    reject_refusals: bool = True
    """Reject answers that decline the task."""
    reject_preambles: bool = True
    """Reject answers that still talk about the task after post-processing."""
    min_length_ratio: float = Field(default=0.0, ge=0.0)
    """Least length of the answer over length of its source, characters by characters."""
    max_length_ratio: float | None = Field(default=None, gt=0.0)
    """Greatest such ratio; null for no limit."""
    max_prompt_echo: Fraction = 0.2
    """Greatest fraction of the answer's word 5-grams that are in the prompt's own words, [0, 1]."""
    min_source_words: Fraction = 0.0
    """Least fraction of the answer's words that occur in the source: below it the answer is about something else."""
    max_source_overlap: Fraction = 1.0
    """Greatest fraction of the answer's word 5-grams that are in the source: above it the answer is a copy."""
    max_repetition: Fraction = 1.0
    """Greatest fraction of the answer's word 4-grams that occurred earlier in the answer, [0, 1]."""
    reject_language_drift: bool = True
    """Reject answers in another language than `language` says, where texts are long enough to tell and the tool is sure."""
    language: str = Field(default="source", pattern=r"^(source|[a-z]{2})$")
    """Language an answer must be in: `source` for that of its source, or an ISO 639-1 code where the prompt asks for one."""
    min_language_letters: int = Field(default=120, ge=1)
    """Fewer letters than this, of answer or source, and no language is told."""
    format: Format = "free"
    """What the answer must look like; its items are counted in the column `format_items`."""
    min_format_items: int = Field(default=1, ge=0)
    """Fewest items of that format: pairs of question and answer, list entries, steps, table rows, solved problems."""
    max_held_out_overlap: Fraction = 0.2
    """Greatest fraction of the answer's words that lie in a 13-gram of the held-out split; 0.2 is where Llama 2
    (arXiv 2307.09288, A.6) stops calling a sample clean. 1 records and rejects nothing."""


class Recipe(Config):
    """One way to make synthetic text from a document."""

    not_identity: ClassVar[frozenset[str]] = frozenset({"description", "idea"})

    name: Name
    """Name of the recipe, as it stands in the `recipe` column."""
    description: str
    """What it makes, in one sentence."""
    idea: str
    """Where the idea comes from: paper or system; the prompt's words are our own."""
    messages: tuple[Message, ...] = Field(min_length=1)
    """The conversation sent to the model."""
    chunking: Chunking
    max_input_tokens: int = Field(ge=1)
    """Longest chunk sent, tokens of the engine's tokenizer; what is cut off is counted in `input_truncated_tokens`."""
    num_keywords: int = Field(default=8, ge=1)
    """Words drawn from the document for `{keywords}`, words that are common in the corpus left out."""
    routing: Routing = Routing()
    sampling: Sampling
    post_processing: PostProcessing = PostProcessing()
    thresholds: Thresholds = Thresholds()

    @field_validator("messages")
    @classmethod
    def _placeholders_known(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        used = [name for message in messages for name in message.pieces()[1::2]]
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        if unknown := [name for name in used if name not in PLACEHOLDERS]:
            raise ValueError(f"unknown placeholder {{{unknown[0]}}}; there are {known}")
        if not used:
            raise ValueError(f"no message asks for anything of the document; use one of {known}")
        return messages

    @property
    def placeholders(self) -> frozenset[str]:
        """Placeholders the messages use."""
        return frozenset(name for message in self.messages for name in message.pieces()[1::2])

    @functools.cached_property
    def hash(self) -> str:
        """Identity of the whole recipe."""
        return content_hash(self.identity())

    @functools.cached_property
    def prompt_hash(self) -> str:
        """Identity of the messages alone."""
        return content_hash([message.identity() for message in self.messages])

    @functools.cached_property
    def sampling_hash(self) -> str:
        """Identity of the sampling settings alone."""
        return content_hash(self.sampling.identity())


def _shipped() -> Traversable:
    return files("synth") / "recipes"


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with synthscale."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in _shipped().iterdir() if entry.name.endswith(".toml")
    )


def load_recipe(reference: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return a recipe by shipped name or by path of a TOML file, some of its values replaced.

    `overrides` has the shape of the recipe file; tables are merged key by key. Raises UserError when there is no
    such recipe, when the file cannot be read, or when a value makes no sense.
    """
    if reference.endswith(".toml"):
        path = Path(reference).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"recipes: {reference} cannot be read ({error}): give the path of a TOML file."
            ) from None
    elif reference in shipped_recipes():
        text = (_shipped() / f"{reference}.toml").read_text(encoding="utf-8")
    else:
        there = ", ".join(shipped_recipes())
        raise UserError(
            f"recipes: there is no recipe {reference!r} (shipped: {there}); give one of these or the path of a .toml file."
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipes: {reference} is not valid TOML: {error}.") from None
    try:
        return Recipe.model_validate(_merged(values, overrides or {}))
    except pydantic.ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in detail["loc"]) or "the recipe"
        message = detail["msg"].removeprefix("Value error, ")
        raise UserError(f"recipe {reference}: {field}: {message}.") from None


def load_recipes(references: Sequence[str], overrides: Mapping[str, Any] | None = None) -> tuple[Recipe, ...]:
    """Return several recipes in the order asked for. Raises UserError also when two of them have the same name."""
    recipes = tuple(load_recipe(reference, overrides) for reference in references)
    names = [recipe.name for recipe in recipes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"recipes: two recipes are called {twice[0]!r}: give each its own name in its file.")
    return recipes


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
        )
    return merged
