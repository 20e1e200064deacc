"""One part of a synthetic set without an engine: its rows drafted from the documents, its outcomes committed.

A part's Parquet file appears whole, its ledger entry after it: then the part is done, whoever found the outcomes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.parquet as pq

from synth.companions import common_words_of, index_held_out
from synth.drafts import Draft, PreparedRecipe, draft_rows, prepare_recipe
from synth.engines.protocol import PASSING_REASONS, GenerationResult
from synth.engines.supervisor import Outcome, Quarantined
from synth.errors import UserError, first_line
from synth.ledger import LedgerEntry, Tally, known_sum, quarantine_path, remove_entry, write_entry
from synth.parts import part_name
from synth.prompt import Tokenizer
from synth.quality.decontamination import NgramIndex
from synth.quality.near_duplicates import write_fingerprints
from synth.rephrase import RephraseWork
from synth.rows import Provenance, finished_row, finished_table, tally_rows
from synth.storage import read_bytes, read_json, write_json_atomic, write_parquet_atomic


@dataclass(frozen=True)
class Finished:
    """A row after generation: what the engine said, and what goes into the part."""

    outcome: Outcome | None
    row: dict[str, Any]


@dataclass(frozen=True)
class DraftedPart:
    """A part before generation."""

    part: int
    documents: int
    drafts: list[Draft]
    """Every row it will have, in order."""
    killers: dict[str, Quarantined]
    """Rows known to kill an engine, by key; those found meanwhile are added."""
    stays: dict[int, Finished] = field(default_factory=dict)
    """Of a part that is made again: rows that are taken over, by number."""
    earlier: LedgerEntry | None = None
    """Of a part that is made again: its entry until now."""

    def to_ask(self) -> list[int]:
        """Return the numbers of the rows that an engine has to answer."""
        return [
            at
            for at, draft in enumerate(self.drafts)
            if draft.prompt_token_ids and draft.key not in self.killers
        ]


@dataclass(frozen=True)
class PartCost:
    """What generating a part took; None where the engine does not tell."""

    device_seconds: float | None = None
    engine_start_seconds: float | None = None
    engine_deaths: int | None = None
    retries: int | None = None
    lost_attempts: int | None = None
    lost_device_seconds: float | None = None
    wall_seconds: float | None = None

    def with_that_of(self, earlier: LedgerEntry) -> PartCost:
        """Return what a part that was made again took together."""
        return PartCost(
            **{name: known_sum((value, getattr(earlier, name))) for name, value in vars(self).items()}
        )


@dataclass(frozen=True)
class GeneratedBy:
    """What answered a part."""

    engine_version: str
    prompt_format: str
    tuning: str | None = None


class PartWriter:
    """Drafts and commits parts of one set; holds what all parts have in common. Not for several threads at once."""

    def __init__(self, work: RephraseWork) -> None:
        self.work = work
        self._prepared: tuple[PreparedRecipe, ...] | None = None
        self._common_words: frozenset[str] = frozenset()
        self._held_out: NgramIndex | None = None
        self._has_index = False

    def draft(self, part: int, tokenizer: Tokenizer) -> DraftedPart:
        """Return the rows a part will have. Raises UserError when the input is damaged or a recipe does not fit."""
        work, config = self.work, self.work.config
        if self._prepared is None:
            self._prepared = tuple(
                prepare_recipe(recipe, tokenizer, config.engine.max_model_len) for recipe in work.recipes
            )
            self._common_words = common_words_of(work.sources, work.recipes)
        documents = work.read_part(part)
        drafts = draft_rows(
            documents, self._prepared, tokenizer, seed=config.seed, samples_per_chunk=config.samples_per_chunk,
            assignment=work.assignment, common_words=self._common_words,
        )  # fmt: skip
        try:
            known = read_json(quarantine_path(work.directory, part, work.num_parts))
        except FileNotFoundError:
            known = {}
        killers = {key: Quarantined(**value) for key, value in known.items()}
        return DraftedPart(part, len(documents), drafts, killers)

    def redraft(self, entry: LedgerEntry, tokenizer: Tokenizer) -> DraftedPart:
        """Return a part that is done, with all rows taken over but those that may be answered another time.

        Raises UserError when the part is not what its entry says.
        """
        work = self.work
        drafted = self.draft(entry.part, tokenizer)
        path = work.directory / part_name(entry.part, work.num_parts)
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise UserError(
                f"{path} is not what its ledger entry says: delete both and run rephrase_corpus again."
            )
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
        quarantined = {each["row"]: Quarantined(each["reason"], each["detail"]) for each in entry.quarantined}
        finished = [
            Finished(quarantined.get(draft.key) or _answer_of(row), row)
            for draft, row in zip(drafted.drafts, rows, strict=True)
        ]
        stays = {at: each for at, each in enumerate(finished) if not _may_pass(each.outcome)}
        return replace(drafted, stays=stays, earlier=entry)

    def note_killers(self, drafted: DraftedPart) -> None:
        """Remember what kills the engine before the part is done, so that the next attempt does not try again."""
        values = {key: {"reason": row.reason, "detail": row.detail} for key, row in drafted.killers.items()}
        write_json_atomic(quarantine_path(self.work.directory, drafted.part, self.work.num_parts), values)

    def finish(self, draft: Draft, outcome: Outcome | None, engine_version: str) -> Finished:
        """Return the row a draft has become. `outcome` is None where nothing was asked."""
        if not self._has_index:
            self._held_out, self._has_index = index_held_out(self.work.held_out), True
        model = self.work.model
        provenance = Provenance(model.reference, model.revision, model.hash, engine_version)
        return Finished(outcome, finished_row(draft, outcome, provenance, self._held_out))

    def commit(
        self, drafted: DraftedPart, finished: Sequence[Finished], generated: GeneratedBy, cost: PartCost
    ) -> LedgerEntry:
        """Write the part, then its ledger entry. `finished` is in the order of the drafts.

        Raises UserError when it cannot be written, RuntimeError when a row is unaccounted for.
        """
        work, drafts = self.work, drafted.drafts
        outcomes, earlier = [each.outcome for each in finished], drafted.earlier
        table = finished_table([each.row for each in finished])
        path = work.directory / part_name(drafted.part, work.num_parts)
        tallies = tally_rows(table, drafts, outcomes)
        if earlier is not None:
            cost = cost.with_that_of(earlier)
            # Rows that stay were counted as if nothing had been cached.
            for name, tally in earlier.recipes.items():
                tallies[name] += Tally(cached_prompt_tokens=tally.cached_prompt_tokens)
        try:
            # A kill between here and the end leaves a part that is missing, never one that is wrong.
            if earlier is not None:
                remove_entry(work.directory, drafted.part, work.num_parts)
            num_bytes = write_parquet_atomic(path, table)
            write_fingerprints(work.directory, drafted.part, work.num_parts, table)
            entry = LedgerEntry(
                part=drafted.part, documents=drafted.documents,
                documents_not_routed=drafted.documents - len({draft.doc_id for draft in drafts}),
                recipes=tallies,
                sha256=hashlib.sha256(read_bytes(path)).hexdigest(), bytes=num_bytes, **vars(generated), **vars(cost),
                quarantined=[
                    {"row": draft.key, "reason": outcome.reason, "detail": outcome.detail}
                    for draft, outcome in zip(drafts, outcomes, strict=True) if isinstance(outcome, Quarantined)
                ],
            )  # fmt: skip
            write_entry(work.directory, work.num_parts, entry)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({first_line(error)}): make room or mend the store, then run the job again."
            ) from None
        return entry


def _may_pass(outcome: Outcome | None) -> bool:
    return isinstance(outcome, Quarantined) and outcome.reason in PASSING_REASONS


def _answer_of(row: Mapping[str, Any]) -> Outcome | None:
    """Return the answer a row was made of, as far as its counts go; None where nothing was asked."""
    if row["words"] is None:
        return None
    return GenerationResult(
        text=row["raw_text"] or row["text"], finish_reason=row["finish_reason"], stop_reason=row["stop_reason"],
        prompt_tokens=row["prompt_tokens"], cached_prompt_tokens=0, completion_tokens=row["completion_tokens"], seconds=0.0,
    )  # fmt: skip
