"""One part of a synthetic set without an engine: its rows drafted from the documents, its outcomes committed.

A part's Parquet file appears whole, its ledger entry after it: then the part is done, whoever found the outcomes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synth.companions import common_words_of, index_held_out
from synth.engines.supervisor import Outcome, Quarantined
from synth.errors import UserError, first_line
from synth.ledger import LedgerEntry, quarantine_path, write_entry
from synth.prompt import Tokenizer
from synth.quality.decontamination import NgramIndex
from synth.quality.near_duplicates import write_fingerprints
from synth.rephrase import RephraseWork
from synth.rows import (
    Draft,
    PreparedRecipe,
    Provenance,
    draft_rows,
    finished_row,
    finished_table,
    prepare_recipe,
    tally_rows,
)
from synth.shuffle import part_name
from synth.storage import read_bytes, read_json, write_json_atomic, write_parquet_atomic


@dataclass(frozen=True)
class DraftedPart:
    """A part before generation."""

    part: int
    documents: int
    drafts: list[Draft]
    """Every row it will have, in order."""
    killers: dict[str, Quarantined]
    """Rows known to kill an engine, by key; those found meanwhile are added."""

    def to_ask(self) -> list[int]:
        """Return the numbers of the rows that an engine has to answer."""
        return [
            at
            for at, draft in enumerate(self.drafts)
            if draft.prompt_token_ids and draft.key not in self.killers
        ]


@dataclass(frozen=True)
class Finished:
    """A row after generation: what the engine said, and what goes into the part."""

    outcome: Outcome | None
    row: dict[str, Any]


@dataclass(frozen=True)
class PartCost:
    """What generating a part took; None where the engine does not tell."""

    device_seconds: float | None = None
    engine_start_seconds: float | None = None
    engine_deaths: int | None = None
    retries: int | None = None
    wall_seconds: float | None = None


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

    def note_killers(self, drafted: DraftedPart) -> None:
        """Remember what kills the engine before the part is done, so that the next attempt does not try again."""
        values = {key: {"reason": row.reason, "detail": row.detail} for key, row in drafted.killers.items()}
        write_json_atomic(quarantine_path(self.work.directory, drafted.part, self.work.num_parts), values)

    def finish(self, draft: Draft, outcome: Outcome | None, engine_version: str) -> Finished:
        """Return the row a draft has become. `outcome` is None where nothing was asked."""
        if not self._has_index:
            self._held_out, self._has_index = index_held_out(self.work.held_out), True
        provenance = Provenance(self.work.model.reference, self.work.model.hash, engine_version)
        return Finished(outcome, finished_row(draft, outcome, provenance, self._held_out))

    def commit(
        self, drafted: DraftedPart, finished: Sequence[Finished], generated: GeneratedBy, cost: PartCost
    ) -> LedgerEntry:
        """Write the part, then its ledger entry. `finished` is in the order of the drafts.

        Raises UserError when it cannot be written, RuntimeError when a row is unaccounted for.
        """
        work, drafts = self.work, drafted.drafts
        outcomes = [each.outcome for each in finished]
        table = finished_table([each.row for each in finished])
        path = work.directory / part_name(drafted.part, work.num_parts)
        try:
            num_bytes = write_parquet_atomic(path, table)
            write_fingerprints(work.directory, drafted.part, work.num_parts, table)
            entry = LedgerEntry(
                part=drafted.part, documents=drafted.documents,
                documents_not_routed=drafted.documents - len({draft.doc_id for draft in drafts}),
                recipes=tally_rows(table, drafts, outcomes),
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
