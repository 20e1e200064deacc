"""The rows of a synthetic set: drafts and their outcomes -> rows and their counts.

Everything here is a pure function of the drafts and the outcomes, so the same part gives the same bytes on any machine and at
any attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from synth.drafts import EMPTY_INPUT, Draft
from synth.engines.protocol import GenerationResult
from synth.engines.supervisor import Outcome, Quarantined
from synth.ledger import Tally
from synth.quality.decontamination import NgramIndex
from synth.quality.verdict import (
    UNKNOWN_ENDING,
    has_answer_mark,
    measure,
    post_process,
    reject_reasons,
)

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


@dataclass(frozen=True)
class Provenance:
    """What all rows of a set have in common."""

    model: str
    model_revision: str | None
    """Commit of a model of the hub; null for a directory, which its hash tells."""
    model_hash: str
    engine_version: str


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
