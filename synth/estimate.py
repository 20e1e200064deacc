"""What rephrasing would take, before anything is spent: rows, tokens, device-hours, money, and what each rests on.

Prompts are counted on real documents. How long answers are and how fast they come is only ever taken from what was
measured (this set's finished parts, an earlier set of the same model, a tuning) or from what the user states; where
there is neither, the estimate says so and gives no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from upath import UPath

from synth.card.survey import spaced
from synth.companions import common_words_of
from synth.config import RephraseConfig
from synth.drafts import Draft, draft_rows, prepare_recipe
from synth.engines.factory import open_engine
from synth.engines.tunings import TUNINGS, find_measured_speed
from synth.identity import RECIPE_FILE, is_finished, read_manifest
from synth.ledger import MADE_BY, Tally, missing_parts, parts_to_retry, read_entry, summarise
from synth.plan import Plan
from synth.prompt import plain_concatenation
from synth.recipe import Recipe
from synth.rephrase import RephraseWork, count_documents, open_work
from synth.storage import MARKER, exists, list_directories, study_path

BYTES_PER_TOKEN = 4
"""Rule of thumb where the model's tokenizer is not at hand, English text."""

SAMPLED_DOCUMENTS, SAMPLED_PARTS = 64, 8
"""Documents that are counted, and the parts, evenly spaced, they are taken from."""

MOST_ENTRIES = 256
"""Ledger entries of this set that are read for its speed so far."""


@dataclass(frozen=True)
class Measured:
    """What was seen of a model's answers, and where."""

    where: str
    """In words, such as `synthetic/first (12 parts)`."""
    recipes: Mapping[str, Tally] = field(default_factory=dict)
    """By recipe hash."""
    tokens_per_device_second: float | None = None
    """Output tokens, accepted or not."""

    def answer_tokens(self, recipe: Recipe) -> float | None:
        """Return the mean length of an answer, tokens; None for a recipe that was not seen."""
        tally = self.recipes.get(recipe.hash)
        answered = sum(tally.finish_reasons.values()) if tally else 0
        return tally.completion_tokens / answered if tally and answered else None

    def accepted_fraction(self, recipe: Recipe) -> float | None:
        """Return the fraction of output tokens that was accepted; None for a recipe that was not seen."""
        tally = self.recipes.get(recipe.hash)
        return tally.accepted_tokens / tally.completion_tokens if tally and tally.completion_tokens else None


def plan_rephrase(config: RephraseConfig) -> Plan:
    """Return what `rephrase_corpus` would do and what that takes, each figure with what it rests on.

    Starts neither Ray nor an engine. Raises what `open_work` raises, and IdentityMismatch when the directory holds
    another set.
    """
    work = open_work(config)
    open_engine(config.engine, config.placement, work.model)  # it knows which of its arguments make no sense
    if exists(work.directory / RECIPE_FILE):
        work.claim()
    missing = missing_parts(work.directory, work.num_parts)
    again = parts_to_retry(work.directory, work.num_parts) if config.retry_quarantined else []
    finished = is_finished(work.directory) and not again
    facts: dict[str, object] = {
        "parts missing": len(missing),
        "parts total": work.num_parts,
        "recipes": ", ".join(f"{recipe.name} ({recipe.hash})" for recipe in work.recipes),
        "model": f"{config.engine.model} ({work.model.hash})",
    }
    if config.retry_quarantined:
        facts["parts with rows to ask for again"] = len(again)
    warnings: tuple[str, ...] = ()
    if not finished and missing:
        found, warnings = _estimate(work, missing)
        facts |= found
    return Plan(MADE_BY, str(work.directory), finished, facts, warnings)


def _estimate(work: RephraseWork, missing: Sequence[int]) -> tuple[dict[str, object], tuple[str, ...]]:
    parts = [missing[at] for at in spaced(len(missing), SAMPLED_PARTS)]
    sample = pa.concat_tables(
        [work.read_part(part).slice(0, -(-SAMPLED_DOCUMENTS // len(parts))) for part in parts]
    )
    tokenizer, counted = _tokenizer(work)
    prepared = [
        prepare_recipe(recipe, tokenizer, work.config.engine.max_model_len) for recipe in work.recipes
    ]
    drafts = draft_rows(
        sample, prepared, tokenizer, seed=work.config.seed, samples_per_chunk=work.config.samples_per_chunk,
        assignment=work.assignment, common_words=common_words_of(work.sources, work.recipes),
    )  # fmt: skip
    documents = _documents(work, missing)
    scale = documents / max(1, len(sample))
    facts: dict[str, object] = {
        "documents to rephrase": documents,
        "rows, estimated": round(len(drafts) * scale),
        "prompt tokens, estimated": round(sum(len(draft.prompt_token_ids) for draft in drafts) * scale),
        "prompt tokens rest on": f"{len(sample)} documents of {len(parts)} of these parts, {counted}",
    }
    facts |= _output_facts(work, drafts, scale)
    warnings = [
        f"engine.max_model_len = {work.config.engine.max_model_len} leaves recipe {fitted.recipe.name!r} about "
        f"{fitted.max_input_tokens} tokens for a chunk and {fitted.max_output_tokens} for its answer "
        f"(it asks for {fitted.recipe.max_input_tokens} and {fitted.recipe.sampling.max_output_tokens})"
        for fitted in prepared
        if fitted.max_output_tokens < fitted.recipe.sampling.max_output_tokens
    ]
    return facts, tuple(warnings)


def _documents(work: RephraseWork, parts: Sequence[int]) -> int:
    """Return the documents of some parts: all but the last one are of one size."""
    last, of_each = work.num_parts - 1, count_documents(UPath(work.sources[0]))
    if last not in parts:
        return of_each * len(parts)
    in_last = work.last_part_documents or count_documents(UPath(work.sources[last]))
    return of_each * (len(parts) - 1) + in_last


def _output_facts(work: RephraseWork, drafts: Sequence[Draft], scale: float) -> dict[str, object]:
    """Return output tokens, device-hours and money with what they rest on."""
    sent = [draft for draft in drafts if not draft.skipped]
    measured = _find_measured(work)
    lengths = {recipe.hash: measured.answer_tokens(recipe) if measured else None for recipe in work.recipes}
    unseen = sorted({d.prepared.recipe.name for d in sent if lengths[d.prepared.recipe.hash] is None})
    output = scale * sum(
        lengths[draft.prepared.recipe.hash] or draft.prepared.max_output_tokens for draft in sent
    )
    facts: dict[str, object] = {}
    if unseen:
        facts["output tokens at most, estimated"] = round(output)
        facts["output tokens rest on"] = (
            f"the longest answer each recipe allows, for {', '.join(unseen)}: none was measured with this model"
        )
    elif measured:
        accepted = {recipe.hash: measured.accepted_fraction(recipe) or 0.0 for recipe in work.recipes}
        facts["output tokens, estimated"] = round(output)
        facts["accepted tokens, estimated"] = round(
            scale
            * sum((lengths[d.prepared.recipe.hash] or 0.0) * accepted[d.prepared.recipe.hash] for d in sent)
        )
        facts["output tokens rest on"] = f"the mean answers of {measured.where}"
    return facts | _cost_facts(work, output, measured, at_most=bool(unseen))


def _cost_facts(
    work: RephraseWork, output_tokens: float, measured: Measured | None, *, at_most: bool
) -> dict[str, object]:
    cost = work.config.cost
    rate, basis = (measured.tokens_per_device_second, measured.where) if measured else (None, "")
    if rate is None and (tuned := _tuned(work)):
        rate, basis = tuned.tokens_per_device_second, tuned.where
    if rate is None and cost.tokens_per_device_second:
        rate, basis = cost.tokens_per_device_second, "cost.tokens_per_device_second, which is assumed"
    bound = " at most" if at_most else ""
    if rate is None:
        return {
            f"device-hours{bound}, estimated": "unknown: no run of this model was measured under this root; run tune_engine "
            "first, or give cost.tokens_per_device_second"
        }
    hours = output_tokens / rate / 3600
    facts: dict[str, object] = {
        f"device-hours{bound}, estimated": hours,
        "device-hours rest on": f"{rate:,.1f} output tokens a device-second: {basis}; engine starts not counted",
    }
    if cost.device_hour_price is not None:
        facts[f"price{bound}, {cost.currency}, estimated"] = hours * cost.device_hour_price
        facts["price rests on"] = f"{cost.device_hour_price:g} {cost.currency} a device-hour"
    return facts


# --- what was measured --------------------------------------------------------------------------------------------


def _find_measured(work: RephraseWork) -> Measured | None:
    """Return what this set's finished parts say, else the earlier set of this model, or its tuning, that saw most of the
    recipes: of both the set, which saw more of the corpus."""
    done = sorted(set(range(work.num_parts)) - set(missing_parts(work.directory, work.num_parts)))
    entries = [read_entry(work.directory, part, work.num_parts) for part in done[:MOST_ENTRIES]]
    if known := [entry for entry in entries if entry is not None]:
        hashes = {recipe.name: recipe.hash for recipe in work.recipes}
        return _measured(f"the {len(known)} parts done so far", summarise(known), hashes)
    wanted = {recipe.hash for recipe in work.recipes}
    found = [
        _measured(f"synthetic/{name} ({manifest['parts']} parts)", manifest, hashes)
        for name, manifest, hashes in _earlier_sets(work)
    ]
    if tuned := _tuned(work):
        found.insert(0, tuned)
    if not found:
        return None
    return max(enumerate(found), key=lambda each: (len(wanted & set(each[1].recipes)), each[0]))[1]


def _tuned(work: RephraseWork) -> Measured | None:
    """Return what the fastest tuning of this model saw."""
    tuned = find_measured_speed(work.config.root, work.config.engine, work.model.hash)
    if tuned is None:
        return None
    where = f"{TUNINGS}/{tuned.name} on {tuned.device}"
    return Measured(where, tuned.recipes, tuned.tokens_per_device_second)


def _earlier_sets(work: RephraseWork) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    """Return name, manifest and recipe hashes of every finished set this model made under the same root."""
    sets = []
    directory = study_path(work.config.root, "synthetic")
    for name in list_directories(directory):
        if not exists(directory / name / MARKER):
            continue
        manifest = read_manifest(directory / name, MADE_BY)
        if manifest["parents"].get("model") == work.model.hash:
            recipes = manifest["recipe"].get("recipes", {})
            sets.append((name, manifest, {key: value.get("hash", "") for key, value in recipes.items()}))
    return sets


def _measured(where: str, summary: Mapping[str, Any], hashes: Mapping[str, str]) -> Measured:
    seconds, tokens = summary["device_seconds"], summary["completion_tokens"]
    return Measured(
        where,
        {hashes[name]: Tally.model_validate(tally) for name, tally in summary["recipes"].items() if name in hashes},
        tokens / seconds if tokens and seconds else None,
    )  # fmt: skip


# --- counting tokens without an engine ----------------------------------------------------------------------------


def _tokenizer(work: RephraseWork) -> tuple[_CountingTokenizer, str]:
    """Return a tokenizer fit for counting and what it counts by: the model's own file where it is on this machine."""
    file = Path(work.model.location) / "tokenizer.json"
    if work.config.engine.kind != "fake" and work.model.revision is None and file.is_file():
        import tokenizers

        return _CountingTokenizer(
            tokenizers.Tokenizer.from_file(str(file))
        ), "the model's tokenizer, chat marks aside"
    return _CountingTokenizer(None), f"{BYTES_PER_TOKEN} bytes guessed a token"


class _CountingTokenizer:
    """Counts tokens by a tokenizer file, or one for every BYTES_PER_TOKEN bytes, so that a plan loads no model."""

    prompt_format = "plain"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the messages joined by blank lines."""
        return plain_concatenation(messages)

    def encode_markup(self, text: str) -> list[int]:
        """Return as many ids as the text has tokens."""
        return self.encode_data([text])[0]

    def encode_data(self, texts: Sequence[str]) -> list[list[int]]:
        """Return as many ids as each text has tokens."""
        if self._tokenizer is None:
            return [[0] * -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN) for text in texts]
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [list(each.ids) for each in encoded]
