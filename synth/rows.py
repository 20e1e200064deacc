"""The rows of a synthetic set: documents -> chunks -> requests, and outcomes -> rows.

Everything here is a pure function of the documents, the recipes, the tokenizer and the outcomes, so the same part
gives the same bytes on any machine and at any attempt.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from synth.assignment import Assignment, heuristic_quality
from synth.chunking import Measure, Span, chunk_spans, count_characters, count_words
from synth.engines.protocol import GenerationRequest, GenerationResult
from synth.engines.supervisor import Outcome, Quarantined
from synth.errors import UserError
from synth.keywords import draw_keywords
from synth.ledger import Tally
from synth.prompt import PromptTemplate, Tokenizer
from synth.quality.decontamination import NgramIndex
from synth.quality.verdict import (
    UNKNOWN_ENDING,
    has_answer_mark,
    measure,
    post_process,
    reject_reasons,
)
from synth.recipe import Recipe

KEPT, REJECTED, QUARANTINED = "kept", "rejected", "quarantined"

NOT_TOLD = "not_told"
"""Under this a tally counts answers of an engine that gives no finish reason; the rows themselves hold null."""

REPHRASED_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("chunk_start", pa.int64(), nullable=False),
        pa.field("chunk_end", pa.int64(), nullable=False),
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("raw_text", pa.string()),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("reject_reasons", pa.list_(pa.string()), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("stop_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
        pa.field("input_truncated_tokens", pa.int32(), nullable=False),
        pa.field("words", pa.int32()),
        pa.field("length_ratio", pa.float32()),
        pa.field("prompt_echo", pa.float32()),
        pa.field("source_words", pa.float32()),
        pa.field("source_overlap", pa.float32()),
        pa.field("repetition", pa.float32()),
        pa.field("is_refusal", pa.bool_()),
        pa.field("has_preamble", pa.bool_()),
        pa.field("has_answer_mark", pa.bool_()),
        pa.field("format_items", pa.int32()),
        pa.field("language", pa.string()),
        pa.field("source_language", pa.string()),
        pa.field("language_drift", pa.bool_()),
        pa.field("held_out_overlap", pa.float32()),
        pa.field("quality", pa.float32()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("recipe_hash", pa.string(), nullable=False),
        pa.field("prompt_hash", pa.string(), nullable=False),
        pa.field("sampling_hash", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_revision", pa.string()),
        pa.field("model_hash", pa.string(), nullable=False),
        pa.field("engine_version", pa.string(), nullable=False),
    ]
)
"""Columns of every part of a synthetic set, one row per (document, chunk, recipe, sample) in that order.

`chunk_start`, `chunk_end` are characters of the document. `raw_text` is the answer as generated where post-processing
changed it, else null. `verdict` is kept, rejected or quarantined (no answer: `finish_reason` and the measures are
null; an engine that gives no finish reason leaves it null on all its rows); `keep` says the same for readers. `quality` is the document's score where a recipe routes by it. Only what the recipe, the model and the document decide is here; what a run
happened to do (cached prompt tokens, times, engine deaths) is in the ledger, so that a resumed run gives the same bytes.
"""

EMPTY_INPUT = "empty_input"
"""Reason of the one row that stands for a document without any text."""

CHUNK_TOO_SHORT = "chunk_too_short"
"""Reason of a row whose chunk is shorter than the recipe sends."""

NO_KEYWORDS = "no_keywords"
"""Reason of a row whose recipe asks for keywords of a chunk that has none."""

MIN_ROOM_TOKENS = 16
"""Below this much room for a chunk, or for its answer, a recipe is refused for a model."""


@dataclass(frozen=True)
class Provenance:
    """What all rows of a set have in common."""

    model: str
    model_revision: str | None
    """Commit of a model of the hub; null for a directory, which its hash tells."""
    model_hash: str
    engine_version: str


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


# --- documents -> drafts ------------------------------------------------------------------------------------------


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


# --- outcomes -> rows ---------------------------------------------------------------------------------------------


def finished_row(
    draft: Draft, outcome: Outcome | None, provenance: Provenance, held_out: NgramIndex | None = None
) -> dict[str, Any]:
    """Return the output row of a draft. `outcome` is None exactly where the draft was skipped."""
    recipe = draft.prepared.recipe
    row: dict[str, Any] = {
        "doc_id": draft.doc_id, "domain": draft.domain, "source": draft.source,
        "chunk": draft.chunk, "chunk_start": draft.span.start, "chunk_end": draft.span.end,
        "recipe": recipe.name, "recipe_hash": recipe.hash, "sampling_hash": recipe.sampling_hash,
        "prompt_hash": recipe.prompt_hash,
        "sample": draft.sample, "seed": draft.seed, "text": "", "keep": False, "reject_reasons": [],
        "prompt_tokens": len(draft.prompt_token_ids), "completion_tokens": 0, "quality": draft.quality,
        "input_truncated_tokens": draft.input_truncated_tokens, **vars(provenance),
    }  # fmt: skip
    if outcome is None:
        return row | {"verdict": REJECTED, "reject_reasons": [draft.skipped or EMPTY_INPUT]}
    if isinstance(outcome, Quarantined):
        return row | {"verdict": QUARANTINED, "reject_reasons": [outcome.reason]}
    ending = ending_of(outcome, draft.prepared.max_output_tokens)
    text = post_process(outcome.text, recipe.post_processing, ending)
    measures = measure(
        text, draft.chunk_text, draft.prepared.template.words, thresholds=recipe.thresholds,
        has_mark=has_answer_mark(outcome.text, recipe.post_processing), held_out=held_out,
        trained_with_source=recipe.post_processing.prepend_source,
    )  # fmt: skip
    reasons = reject_reasons(measures, ending, recipe.thresholds)
    if recipe.post_processing.prepend_source and not reasons:
        text = f"{draft.chunk_text.strip()}\n\n{text}"
    return row | vars(measures) | {
        "text": text, "raw_text": outcome.text if outcome.text != text else None,
        "keep": not reasons, "verdict": REJECTED if reasons else KEPT, "reject_reasons": reasons,
        "finish_reason": outcome.finish_reason, "stop_reason": outcome.stop_reason,
        "prompt_tokens": outcome.prompt_tokens, "completion_tokens": outcome.completion_tokens,
    }  # fmt: skip


def ending_of(result: GenerationResult, max_output_tokens: int) -> str:
    """Return how an answer ended, for its verdict: `stop`, `length`, or UNKNOWN_ENDING where nobody knows.

    Of an engine that does not say, an answer shorter than it was allowed to be has ended by itself.
    """
    if result.finish_reason is not None:
        return result.finish_reason
    return "stop" if result.completion_tokens < max_output_tokens else UNKNOWN_ENDING


def finished_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the output part of its finished rows, columns REPHRASED_SCHEMA."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=REPHRASED_SCHEMA)


def tally_rows(
    table: pa.Table, drafts: Sequence[Draft], outcomes: Sequence[Outcome | None]
) -> dict[str, Tally]:
    """Return the counts of an output part by recipe.

    Raises RuntimeError when a row is unaccounted for: drafted rows = kept + rejected + quarantined.
    """
    columns = [
        "recipe",
        "verdict",
        "reject_reasons",
        "finish_reason",
        "text",
        "prompt_tokens",
        "completion_tokens",
    ]
    tallies: dict[str, Tally] = {draft.prepared.recipe.name: Tally() for draft in drafts}
    for row, draft, outcome in zip(table.select(columns).to_pylist(), drafts, outcomes, strict=True):
        kept = row["verdict"] == KEPT
        tallies[row["recipe"]] += Tally(
            rows=1, kept=int(kept), rejected=int(row["verdict"] == REJECTED),
            quarantined=int(row["verdict"] == QUARANTINED), reasons=dict(Counter(row["reject_reasons"])),
            finish_reasons={row["finish_reason"] or NOT_TOLD: 1} if isinstance(outcome, GenerationResult) else {},
            prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"],
            cached_prompt_tokens=outcome.cached_prompt_tokens if isinstance(outcome, GenerationResult) else 0,
            accepted_tokens=row["completion_tokens"] if kept else 0,
            input_truncated_tokens=draft.input_truncated_tokens, source_characters=len(draft.chunk_text),
            kept_characters=len(row["text"]) if kept else 0,
        )  # fmt: skip
    for name, tally in tallies.items():
        if tally.rows != tally.kept + tally.rejected + tally.quarantined:
            raise RuntimeError(
                f"recipe {name}: {tally.rows} rows, but {tally.kept} + {tally.rejected} + {tally.quarantined}"
            )
    return tallies
