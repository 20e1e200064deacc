"""What a job would send, looked at before anything is started: the recipes there are, and real prompts of a corpus."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from synth.companions import common_words_of
from synth.config import RephraseConfig
from synth.drafts import Draft, draft_rows, prepare_recipe
from synth.engines.factory import open_engine
from synth.prompt import ReadableTokenizer, Tokenizer
from synth.recipe import Recipe, load_recipe, shipped_recipes
from synth.rephrase import RephraseWork, open_work

COUNTED_DOCUMENTS = 64
"""Documents whose tokens are counted, besides those that are shown."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SHOWN_CHUNKS = 3
"""Of a longer document the first chunks are shown."""
SHOWN_CHARACTERS = 6000
"""A longer prompt is shown without its middle."""


@dataclass(frozen=True)
class RecipeCounts:
    """What one recipe makes of a sample of documents."""

    recipe: str
    documents: int
    rows: int
    skipped: int
    """Rows that are not sent: no text, or too short a chunk."""
    prompt_tokens: tuple[int, ...]
    """Length of each prompt sent, tokens."""
    truncated_rows: int
    truncated_tokens: int
    max_output_tokens: int

    @property
    def sentence(self) -> str:
        """Return the counts in words."""
        lengths = sorted(self.prompt_tokens)
        size = (
            f"prompt tokens: mean {sum(lengths) / len(lengths):,.0f}, median {lengths[len(lengths) // 2]:,}, longest {lengths[-1]:,}"
            if lengths
            else "no prompt"
        )
        return (
            f"{self.recipe}: {self.documents} documents -> {self.rows} rows ({self.skipped} not sent); {size}; "
            f"{self.truncated_rows} chunks cut ({self.truncated_tokens:,} tokens lost); answer up to {self.max_output_tokens:,} tokens"
        )


def list_recipes() -> Iterator[str]:
    """Yield the shipped recipes line by line: name, what each makes, its budgets, where the idea comes from."""
    for name in shipped_recipes():
        yield from _described(load_recipe(name))


def _described(recipe: Recipe) -> Iterator[str]:
    chunking, routing = recipe.chunking, recipe.routing
    size = (
        "whole documents"
        if chunking.max_length is None
        else f"chunks of {chunking.max_length} {chunking.unit}"
    )
    yield f"{recipe.name}  [{recipe.hash}]"
    yield f"    {recipe.description}"
    yield f"    {size}, answers up to {recipe.sampling.max_output_tokens} tokens, temperature {recipe.sampling.temperature:g}"
    if not routing.takes_all:
        yield f"    only documents of quality {routing.min_quality:g} to {routing.max_quality:g}"
    yield f"    {recipe.idea}"


def preview_prompts(config: RephraseConfig, num_documents: int) -> Iterator[str]:
    """Yield, piece by piece, the prompts of the first documents of the corpus and token counts of a sample.

    Loads the model's tokenizer and nothing else of it. Raises what `open_work` raises, UserError also when the
    tokenizer cannot be loaded or a recipe does not fit the window.
    """
    work = open_work(config)
    tokenizer = open_engine(config.engine, config.placement, work.model).tokenizer
    sample = work.read_part(0).slice(0, max(num_documents, COUNTED_DOCUMENTS))
    drafts = _drafts(work, tokenizer, sample)
    yield (
        f"corpus {config.corpus}: {len(sample)} documents of its first part; model {config.engine.model}, prompt format "
        f"{tokenizer.prompt_format}, window {config.engine.max_model_len:,} tokens"
    )
    shown = set(sample["doc_id"].to_pylist()[:num_documents])
    for (doc_id, recipe), group in itertools.groupby(
        (draft for draft in _by_recipe(drafts) if draft.doc_id in shown and draft.sample == 0),
        key=lambda draft: (draft.doc_id, draft.prepared.recipe.name),
    ):
        chunks = list(group)
        for draft in chunks[:SHOWN_CHUNKS]:
            yield from _shown(doc_id, recipe, draft, len(chunks), tokenizer)
        if (more := len(chunks) - SHOWN_CHUNKS) > 0:
            yield f"[... {more:,} more chunks of this document not shown ...]"
    if routed_away := shown - {draft.doc_id for draft in drafts}:
        yield f"\n{len(routed_away)} of these documents go through no recipe: none takes their quality score"
    yield f"\n== counts over {len(sample)} documents =="
    for counts in count_drafts(drafts):
        yield counts.sentence


def count_drafts(drafts: Sequence[Draft]) -> list[RecipeCounts]:
    """Return what each recipe makes of a sample, in the order of the recipes' names."""
    counts = []
    for name, group in itertools.groupby(
        sorted(drafts, key=lambda draft: draft.prepared.recipe.name),
        key=lambda draft: draft.prepared.recipe.name,
    ):
        rows = list(group)
        sent = [draft for draft in rows if not draft.skipped]
        counts.append(
            RecipeCounts(
                name, len({draft.doc_id for draft in rows}), len(rows), len(rows) - len(sent),
                tuple(len(draft.prompt_token_ids) for draft in sent),
                sum(draft.input_truncated_tokens > 0 for draft in sent),
                sum(draft.input_truncated_tokens for draft in sent), rows[0].prepared.max_output_tokens,
            )
        )  # fmt: skip
    return counts


def _drafts(work: RephraseWork, tokenizer: Tokenizer, sample: pa.Table) -> list[Draft]:
    config = work.config
    prepared = [prepare_recipe(recipe, tokenizer, config.engine.max_model_len) for recipe in work.recipes]
    return draft_rows(
        sample, prepared, tokenizer, seed=config.seed, samples_per_chunk=config.samples_per_chunk,
        assignment=work.assignment, common_words=common_words_of(work.sources, work.recipes),
    )  # fmt: skip


def _by_recipe(drafts: Sequence[Draft]) -> list[Draft]:
    order = {doc_id: at for at, doc_id in enumerate(dict.fromkeys(draft.doc_id for draft in drafts))}
    return sorted(drafts, key=lambda draft: (order[draft.doc_id], draft.prepared.recipe.name, draft.chunk))


def _shown(
    doc_id: str, recipe: str, draft: Draft, num_chunks: int, tokenizer: ReadableTokenizer
) -> Iterator[str]:
    score = "" if draft.quality is None else f", quality {draft.quality:.2f}"
    yield f"\n== document {doc_id} ({_visible(draft.domain)}{score}), recipe {recipe}, chunk {draft.chunk + 1} of {num_chunks} =="
    if draft.skipped:
        yield f"not sent: {draft.skipped}"
        return
    lost = (
        f"; {draft.input_truncated_tokens:,} tokens of the chunk cut off at its end"
        if draft.input_truncated_tokens
        else ""
    )
    yield f"-- {len(draft.prompt_token_ids):,} prompt tokens, answer up to {draft.prepared.max_output_tokens:,}{lost} --"
    text = _visible(tokenizer.decode(draft.prompt_token_ids))
    if len(text) > SHOWN_CHARACTERS:
        half = SHOWN_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters not shown ...]\n{text[-half:]}"
    yield text


def _visible(text: str) -> str:
    """Return a text a terminal can show without obeying it: control characters in the way Python writes them."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
