"""What a synthetic set asks for: documents -> chunks -> drafts of rows, each with its prompt and its seed.

Everything here is a pure function of the documents, the recipes and the tokenizer, so the same part asks for the same on any
machine and at any attempt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from synth.assignment import Assignment, heuristic_quality
from synth.chunking import Measure, Span, chunk_spans, count_characters, count_words
from synth.engines.protocol import GenerationRequest
from synth.errors import UserError
from synth.keywords import draw_keywords
from synth.prompt import PromptTemplate, Tokenizer
from synth.recipe import Recipe

EMPTY_INPUT = "empty_input"
"""Reason of the one row that stands for a document without any text."""

CHUNK_TOO_SHORT = "chunk_too_short"
"""Reason of a row whose chunk is shorter than the recipe sends."""

NO_KEYWORDS = "no_keywords"
"""Reason of a row whose recipe asks for keywords of a chunk that has none."""

MIN_ROOM_TOKENS = 16
"""Below this much room for a chunk, or for its answer, a recipe is refused for a model."""


@dataclass(frozen=True)
class PreparedRecipe:
    """A recipe fitted to a tokenizer and a window."""

    recipe: Recipe
    template: PromptTemplate
    max_input_tokens: int
    """Longest chunk sent, tokens."""
    max_output_tokens: int
    """Longest answer, tokens."""
    measure: Measure
    """Length of texts in the chunking's unit."""
    max_chunk_length: int | None
    """Longest chunk in that unit; None does not cut."""
    max_prompt_tokens: int
    """Longest prompt that leaves the answer its room in the window, tokens."""


@dataclass(frozen=True)
class Draft:
    """One row before generation."""

    doc_id: str
    domain: str
    source: str
    chunk: int
    span: Span
    chunk_text: str
    prepared: PreparedRecipe
    sample: int
    seed: int
    prompt_token_ids: tuple[int, ...]
    """() where there is nothing to ask: `skipped` says why."""
    input_truncated_tokens: int
    skipped: str | None = None
    """EMPTY_INPUT, CHUNK_TOO_SHORT, NO_KEYWORDS, or None for a row to be generated."""
    quality: float | None = None
    """Score of the document in [0, 1], where a recipe routes by it."""
    keywords: tuple[str, ...] = ()
    """Words drawn for `{keywords}`."""

    @property
    def key(self) -> str:
        """Identity of the row within its set."""
        return f"{self.doc_id}/{self.chunk}/{self.prepared.recipe.name}/{self.sample}"

    def request(self, request_id: str) -> GenerationRequest:
        """Return what to ask the engine."""
        return GenerationRequest(
            request_id,
            self.prompt_token_ids,
            self.prepared.recipe.sampling,
            self.prepared.max_output_tokens,
            self.seed,
        )


def row_seed(run_seed: int, doc_id: str, chunk: int, recipe: str, sample: int) -> int:
    """Return the seed of a row, [0, 2**63): a hash, so that re-sharded and resumed runs draw the same text."""
    key = f"{run_seed}\0{doc_id}\0{chunk}\0{recipe}\0{sample}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def prepare_recipe(recipe: Recipe, tokenizer: Tokenizer, max_model_len: int) -> PreparedRecipe:
    """Fit a recipe to a tokenizer and a window of `max_model_len` tokens.

    Where prompt, chunk and answer do not all fit, the answer may take half of the room beside the prompt, the chunk
    the rest; chunks counted in tokens are then cut shorter rather than truncated. Raises UserError when the window
    leaves no room worth the name.
    """
    template = PromptTemplate.of(recipe, tokenizer)
    room = max_model_len - template.num_tokens
    if room < 2 * MIN_ROOM_TOKENS:
        raise UserError(
            f"engine.max_model_len = {max_model_len} leaves {max(0, room)} tokens beside the prompt of recipe "
            f"{recipe.name!r} ({template.num_tokens} tokens): raise it, or shorten the prompt."
        )
    max_output = min(recipe.sampling.max_output_tokens, max(room // 2, room - recipe.max_input_tokens))
    max_input = min(recipe.max_input_tokens, room - max_output)
    chunking = recipe.chunking
    measures: dict[str, Measure] = {
        "tokens": lambda texts: [len(ids) for ids in tokenizer.encode_data(texts)],
        "words": count_words,
        "characters": count_characters,
        "document": count_characters,
    }
    max_length = chunking.max_length
    if chunking.unit == "tokens" and max_length is not None:
        max_length = min(max_length, max_input)
    return PreparedRecipe(
        recipe,
        template,
        max_input,
        max_output,
        measures[chunking.unit],
        max_length,
        max_model_len - max_output,
    )


def draft_rows(
    documents: pa.Table, recipes: Sequence[PreparedRecipe], tokenizer: Tokenizer, *, seed: int, samples_per_chunk: int,
    assignment: Assignment | None = None, common_words: frozenset[str] = frozenset(),
) -> list[Draft]:  # fmt: skip
    """Return every row a part of the corpus will have, in the order of the output: document, chunk, recipe, sample.

    `assignment` says which recipes a document goes through (None: all of them). `common_words` are never keywords. A
    column `quality` of the documents is their score; without it `heuristic_quality` gives one where it is needed.
    """
    rule = assignment or Assignment(tuple(prepared.recipe for prepared in recipes))
    columns = [
        "doc_id",
        "text",
        "domain",
        "source",
        *(["quality"] if "quality" in documents.column_names else []),
    ]
    drafts: list[Draft] = []
    for document in documents.select(columns).to_pylist():
        quality = document.get("quality")
        if quality is None and rule.needs_quality:
            quality = heuristic_quality(document["text"])
        chosen = [(at, recipes[at]) for at in rule.of(document["doc_id"], quality)]
        rows = [
            (chunk, at, sample, draft)
            for at, prepared in chosen
            for chunk, span in enumerate(_spans(document["text"], prepared))
            for sample, draft in enumerate(
                _DocumentDrafts(document, quality, tokenizer, common_words).samples(
                    chunk, span, prepared, seed, samples_per_chunk
                )
            )
        ]
        drafts.extend(draft for *_, draft in sorted(rows, key=lambda row: row[:3]))
    return drafts


def _spans(text: str, prepared: PreparedRecipe) -> list[Span]:
    """Return the chunks of a document; of one without text a single empty chunk, so that it is accounted for."""
    if prepared.max_chunk_length is None:
        return [Span(0, len(text))]
    return chunk_spans(text, prepared.max_chunk_length, prepared.measure) or [Span(0, len(text))]


@dataclass(frozen=True)
class _DocumentDrafts:
    """Makes the drafts of one document."""

    document: dict[str, Any]
    quality: float | None
    tokenizer: Tokenizer
    common_words: frozenset[str]

    def samples(
        self, chunk: int, span: Span, prepared: PreparedRecipe, run_seed: int, samples: int
    ) -> list[Draft]:
        """Return the drafts of one chunk for one recipe."""
        document, recipe = self.document, prepared.recipe
        text = document["text"][span.start : span.end]
        skipped = _reason_to_skip(text, prepared)
        ids = (
            self.tokenizer.encode_data([text])[0] if "document" in recipe.placeholders and not skipped else []
        )
        drafts = []
        for sample in range(samples):
            seed = row_seed(run_seed, document["doc_id"], chunk, recipe.name, sample)
            words: tuple[str, ...] = ()
            if "keywords" in recipe.placeholders and not skipped:
                words = tuple(draw_keywords(text, recipe.num_keywords, seed, self.common_words))
                skipped = None if words else NO_KEYWORDS
            prompt, truncated = ((), 0) if skipped else self._prompt(prepared, ids, words)
            drafts.append(
                Draft(
                    document["doc_id"], document["domain"], document["source"], chunk, span, text, prepared, sample, seed,
                    prompt, truncated, skipped, self.quality, words,
                )
            )  # fmt: skip
        return drafts

    def _prompt(
        self, prepared: PreparedRecipe, ids: list[int], words: tuple[str, ...]
    ) -> tuple[tuple[int, ...], int]:
        """Return the prompt, and how many tokens of the chunk had no room beside keywords and domain."""
        keywords, domain = self.tokenizer.encode_data([", ".join(words), self.document["domain"]])
        data, slots = {"keywords": keywords, "domain": domain}, prepared.template.slots
        if "document" not in slots:
            return prepared.template.fill(data), 0
        taken = prepared.template.num_tokens + sum(len(data[name]) for name in slots if name in data)
        left = max(0, prepared.max_prompt_tokens - taken) // slots.count("document")
        room = min(prepared.max_input_tokens, left)
        return prepared.template.fill(data | {"document": ids[:room]}), max(0, len(ids) - room)


def _reason_to_skip(text: str, prepared: PreparedRecipe) -> str | None:
    least = prepared.recipe.chunking.min_length
    if not text.strip():
        return EMPTY_INPUT
    return CHUNK_TOO_SHORT if least and prepared.measure([text])[0] < least else None
