"""`rephrase_corpus` without Ray: what to do, and how one part is done.

The unit of commit is one part: part k of the output is made from part k of the corpus, its Parquet file appears
whole, its ledger entry after it. Several parts are in work at once on one engine, so that the engine never waits at
a part's end.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from synth.assignment import Assignment
from synth.card.build import write_card
from synth.companions import (
    attach_quality,
    common_words_of,
    held_out_corpora,
    index_held_out,
    quality_fingerprint,
)
from synth.config import RephraseConfig, RephrasePlacement
from synth.corpus import open_corpus
from synth.decontamination import NgramIndex
from synth.engine import Engine, device_name, open_engine
from synth.errors import UserError, first_line
from synth.identity import claim_directory, finish, is_finished, read_manifest
from synth.ledger import (
    MADE_BY,
    LedgerEntry,
    quarantine_path,
    read_entries,
    read_entry,
    summarise,
    synthetic_directory,
    write_entry,
)
from synth.model_source import ModelSource, find_model
from synth.near_duplicates import write_fingerprints
from synth.recipe import Recipe, load_recipes
from synth.rows import (
    Draft,
    PreparedRecipe,
    Provenance,
    draft_rows,
    finished_table,
    prepare_recipe,
    tally_rows,
)
from synth.shuffle import part_name
from synth.storage import (
    list_names,
    read_json,
    read_parquet,
    study_path,
    write_json_atomic,
    write_parquet_atomic,
)
from synth.supervisor import POISON, Outcome, Quarantined, Supervisor, TooManyDeaths
from synth.tunings import TUNINGS, find_tuning, tuned_placement

KIND = "synthetic"

IN_FLIGHT_PER_SEQUENCE = 1.25
"""Requests handed to the engine per sequence it decodes, so that one is waiting whenever one ends."""


@dataclass(frozen=True)
class RephraseWork:
    """One synthetic set to make: the configuration with everything it refers to found and fixed."""

    config: RephraseConfig
    recipes: tuple[Recipe, ...]
    model: ModelSource
    corpus_hash: str
    sources: tuple[str, ...]
    """Input parts, in order: paths or URLs."""
    last_part_documents: int | None
    """Documents taken of the last part, where max_documents ends within it; None takes all."""
    held_out: tuple[str, ...] = ()
    """Held-out parts that answers are compared with."""
    other_parents: tuple[tuple[str, str], ...] = ()
    """(role, hash) of the quality scores and of corpora that answers are compared with."""

    @property
    def directory(self) -> UPath:
        """`synthetic/<name>`."""
        return synthetic_directory(self.config.root, self.config.name)

    @property
    def num_parts(self) -> int:
        """Parts of the output, and of the input it is made from."""
        return len(self.sources)

    def identity(self) -> dict[str, Any]:
        """Return what decides the rows: the configuration with the recipes' contents in place of their names."""
        recipes = {
            recipe.name: {**recipe.identity(), "prompt_hash": recipe.prompt_hash, "hash": recipe.hash}
            for recipe in self.recipes
        }
        return {
            **self.config.identity(),
            "recipes": recipes,
            "order": [recipe.name for recipe in self.recipes],
        }

    @property
    def parents(self) -> dict[str, str]:
        """The corpus and the model it is made from."""
        return {"corpus": self.corpus_hash, "model": self.model.hash, **dict(self.other_parents)}

    @property
    def assignment(self) -> Assignment:
        """Which recipes a document goes through."""
        config = self.config
        return Assignment(self.recipes, config.recipe_weights, config.recipes_per_document, config.seed)

    def claim(self) -> str:
        """Make the directory this set's own; return the set's hash. Raises IdentityMismatch."""
        return claim_directory(self.directory, KIND, self.identity(), self.parents)

    def read_part(self, part: int) -> pa.Table:
        """Return the documents of an input part. Raises UserError when the file cannot be read."""
        source = self.sources[part]
        try:
            table = read_parquet(UPath(source), columns=["doc_id", "text", "domain", "source"])
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{source} cannot be read ({first_line(error)}): the corpus is damaged; move corpora/{self.config.corpus} "
                "away and run build_corpus again."
            ) from None
        table = attach_quality(table, self.config, UPath(source).name)
        if part == self.num_parts - 1 and self.last_part_documents is not None:
            return table.slice(0, self.last_part_documents)
        return table


def open_work(config: RephraseConfig) -> RephraseWork:
    """Find everything a configuration refers to.

    Raises UserError when a recipe or the model is not there, IncompleteArtefact when the corpus or a generator of
    the study is not finished.
    """
    recipes = load_recipes(config.recipes, config.recipe_overrides)
    if unknown := sorted(set(config.recipe_weights) - {recipe.name for recipe in recipes}):
        raise UserError(
            f"recipe_weights.{unknown[0]}: recipes names no recipe {unknown[0]!r}: add it there, or take its weight out."
        )
    held_out = held_out_corpora(config)
    others = quality_fingerprint(config) | {
        f"held_out.{name}": manifest["hash"]
        for name, (_, manifest) in held_out.items()
        if name != config.corpus
    }
    parts, manifest = open_corpus(config.root, config.corpus, "train")
    if not parts:
        raise UserError(
            f"corpus {config.corpus!r} has no document to rephrase: lower its held_out_fraction or add sources."
        )
    sources, rest = _take(parts, config.max_documents)
    model = _find_model(config)
    return RephraseWork(
        config, recipes, model, manifest["hash"], tuple(map(str, sources)), rest,
        held_out=tuple(str(part) for parts, _ in held_out.values() for part in parts), other_parents=tuple(others.items()),
    )  # fmt: skip


def _find_model(config: RephraseConfig) -> ModelSource:
    """Return the model; of a finished set also when it has been taken away since."""
    try:
        return find_model(config.root, config.engine)
    except UserError:
        directory = synthetic_directory(config.root, config.name)
        if not is_finished(directory):
            raise
        known = read_manifest(directory, MADE_BY)["parents"]["model"]
        return ModelSource(config.engine.model, config.engine.model, None, known)


def _take(parts: list[UPath], max_documents: int | None) -> tuple[list[UPath], int | None]:
    """Return the parts that hold the first `max_documents` documents, and how many are taken of the last one."""
    if max_documents is None:
        return parts, None
    left = max_documents
    for at, part in enumerate(parts):
        num_documents = _num_rows(part)
        if left <= num_documents:
            return parts[: at + 1], left
        left -= num_documents
    return parts, None


def _num_rows(part: UPath) -> int:
    try:
        with part.open("rb") as handle:
            return int(pq.read_metadata(handle).num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{part} cannot be read ({first_line(error)}): the corpus is damaged; run build_corpus again."
        ) from None


# --- the end ------------------------------------------------------------------------------------------------------


def finish_work(work: RephraseWork) -> dict[str, Any]:
    """Account for every row, write the data card and the manifest; return the manifest.

    Raises UserError when more rows were turned down than `max_reject_fraction` allows, RuntimeError when rows are
    unaccounted for.
    """
    config, directory = work.config, work.directory
    entries = list(read_entries(directory, work.num_parts))
    summary = summarise(entries)
    turned_down = summary["rejected"] + summary["quarantined"]
    if summary["rows"] != summary["kept"] + turned_down:
        raise RuntimeError(
            f"{directory}: {summary['rows']} rows, but {summary['kept']} kept and {turned_down} turned down"
        )
    if turned_down > config.max_reject_fraction * summary["rows"]:
        commonest = max(summary["reasons"], key=lambda reason: (summary["reasons"][reason], reason))
        raise UserError(
            f"{turned_down:,} of {summary['rows']:,} rows were rejected or quarantined, most often as {commonest!r}, more than "
            f"max_reject_fraction = {config.max_reject_fraction}: look at the rows in {directory}, then mend the recipe or raise the bound."
        )
    found = write_card(
        directory, config, recipes=work.recipes, summary=summary, entries=entries,
        parts=[directory / part_name(part, work.num_parts) for part in range(work.num_parts)],
        sources=[UPath(source) for source in work.sources], held_out=[UPath(part) for part in work.held_out],
    )  # fmt: skip
    return finish(directory, work.claim(), parts=work.num_parts, **summary, **found)


# --- the work -----------------------------------------------------------------------------------------------------


def tuned_for(work: RephraseWork) -> tuple[RephrasePlacement, str | None]:
    """Return the placement with what tune_engine found for this machine in its open settings, and the tuning's name.

    Raises UserError when a file under `tunings/` is no tuning.
    """
    config, placement = work.config, work.config.placement
    if not placement.use_tuning or not list_names(study_path(config.root, TUNINGS), ".json"):
        return placement, None
    device = device_name(config.engine, placement)
    tuning = find_tuning(config.root, config.engine, work.model.hash, device, work.recipes, work.sources[0])
    if tuning is None:
        return placement, None
    return tuned_placement(placement, tuning.settings), tuning.name


class RephraseWorker:
    """Makes parts of one synthetic set on one engine, several at a time on one event loop."""

    def __init__(self, work: RephraseWork, engine: Engine | None = None) -> None:
        config, (placement, self.tuning) = work.config, tuned_for(work)
        self.work, self.placement = work, placement
        self._engine = engine or open_engine(config.engine, placement, work.model)
        self._supervisor = Supervisor(
            self._engine,
            math.ceil(placement.num_seqs * IN_FLIGHT_PER_SEQUENCE),
            config.max_engine_deaths_per_part,
            placement.request_timeout_seconds,
        )
        self._prepared: tuple[PreparedRecipe, ...] | None = None
        self._common_words: frozenset[str] = frozenset()
        self._held_out: NgramIndex | None = None
        # One thread: tokenizers are not made for several, and the event loop must never wait for their work.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rephrase")

    async def make_part(self, part: int) -> LedgerEntry:
        """Make one part unless it is done; return its ledger entry.

        Raises UserError: the engine does not start, the input is damaged, the output cannot be written, or the
        part's rows kill the engine more often than `max_engine_deaths_per_part`.
        """
        work, began = self.work, time.monotonic()
        if entry := read_entry(work.directory, part, work.num_parts):
            return entry
        loop = asyncio.get_running_loop()
        await self._supervisor.ready(part)
        documents, drafts, known = await loop.run_in_executor(self._thread, self._load, part)
        answers = [
            asyncio.create_task(self._answer(part, at, draft, known)) for at, draft in enumerate(drafts)
        ]
        try:
            outcomes = await asyncio.gather(*answers)
        except TooManyDeaths as error:
            raise UserError(
                f"part {part}: its rows have killed the engine {error.deaths} times, more than "
                f"max_engine_deaths_per_part = {work.config.max_engine_deaths_per_part}; the rows found guilty are noted and "
                "will be left out: run the job again, with a higher bound if the engine itself is sound."
            ) from None
        finally:
            for answer in answers:
                answer.cancel()
        return await loop.run_in_executor(
            self._thread, self._commit, part, documents, drafts, outcomes, began
        )

    @property
    def load(self) -> tuple[int, int]:
        """Requests in the engine, and requests that wait."""
        return self._supervisor.load

    async def close(self) -> None:
        """Take the engine down."""
        await self._supervisor.close()
        self._thread.shutdown()

    def _load(self, part: int) -> tuple[int, list[Draft], dict[str, Quarantined]]:
        """Return the number of documents, the rows to make, and those known to kill an engine."""
        config, tokenizer = self.work.config, self._engine.tokenizer
        if self._prepared is None:
            self._prepared = tuple(
                prepare_recipe(recipe, tokenizer, config.engine.max_model_len) for recipe in self.work.recipes
            )
            self._common_words = common_words_of(self.work.sources, self.work.recipes)
            self._held_out = index_held_out(self.work.held_out)
        documents = self.work.read_part(part)
        drafts = draft_rows(
            documents, self._prepared, tokenizer, seed=config.seed, samples_per_chunk=config.samples_per_chunk,
            assignment=self.work.assignment, common_words=self._common_words,
        )  # fmt: skip
        try:
            known = read_json(quarantine_path(self.work.directory, part, self.work.num_parts))
        except FileNotFoundError:
            known = {}
        return len(documents), drafts, {key: Quarantined(**value) for key, value in known.items()}

    async def _answer(
        self, part: int, at: int, draft: Draft, known: dict[str, Quarantined]
    ) -> Outcome | None:
        if not draft.prompt_token_ids:
            return None
        if draft.key in known:
            return known[draft.key]
        outcome = await self._supervisor.generate(part, draft.request(f"{part}-{at}"))
        if isinstance(outcome, Quarantined) and outcome.reason == POISON:
            known[draft.key] = outcome
            self._note_killers(part, known)
        return outcome

    def _note_killers(self, part: int, known: dict[str, Quarantined]) -> None:
        """Remember what kills the engine before the part is done, so that the next attempt does not try again."""
        values = {key: {"reason": row.reason, "detail": row.detail} for key, row in known.items()}
        write_json_atomic(quarantine_path(self.work.directory, part, self.work.num_parts), values)

    def _commit(
        self, part: int, documents: int, drafts: list[Draft], outcomes: list[Outcome | None], began: float
    ) -> LedgerEntry:
        """Write the part, then its ledger entry."""
        work, model, devices = self.work, self.work.model, self.work.config.placement.gpus_per_engine or 1.0
        provenance = Provenance(model.reference, model.hash, self._engine.version)
        table = finished_table(drafts, outcomes, provenance, self._held_out)
        path = work.directory / part_name(part, work.num_parts)
        usage = self._supervisor.usage(part)
        try:
            num_bytes = write_parquet_atomic(path, table)
            write_fingerprints(work.directory, part, work.num_parts, table)
            entry = LedgerEntry(
                part=part, documents=documents, documents_not_routed=documents - len({draft.doc_id for draft in drafts}),
                recipes=tally_rows(table, drafts, outcomes),
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=num_bytes,
                prompt_format=self._engine.tokenizer.prompt_format, engine_version=self._engine.version, tuning=self.tuning,
                device_seconds=usage.device_seconds * devices, engine_start_seconds=usage.start_seconds * devices,
                engine_deaths=usage.deaths + usage.shared_deaths, retries=usage.retries, wall_seconds=time.monotonic() - began,
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
        self._supervisor.forget(part)
        return entry
