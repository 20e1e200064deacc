"""`rephrase_corpus` without Ray: what there is to do, and how it ends.

The unit of commit is one part: part k of the output is made from part k of the corpus (`synth.part_writer`), by the
workers of `synth.worker` or by Ray Data LLM (`synth.ray_data_llm`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from synth.assignment import Assignment
from synth.card.build import write_card
from synth.companions import attach_quality, check_scores_cover, held_out_corpora, quality_fingerprint
from synth.config import RephraseConfig
from synth.corpus import open_corpus
from synth.errors import UserError, first_line
from synth.identity import claim_directory, finish, is_finished, read_manifest
from synth.ledger import MADE_BY, read_entries, summarise, synthetic_directory
from synth.model_source import ModelSource, find_model
from synth.parts import part_name
from synth.recipe import Recipe, load_recipes
from synth.storage import patiently, read_parquet

KIND = "synthetic"


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
    documents_per_part: int
    """Documents of an input part, on average."""
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

    @property
    def rows_per_part(self) -> int:
        """Rows of a part on average, at least: of one chunk a document."""
        config = self.config
        recipes = config.recipes_per_document if config.recipe_weights else len(self.recipes)
        return self.documents_per_part * recipes * config.samples_per_chunk

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
    if config.recipe_weights and (
        without := sorted({recipe.name for recipe in recipes} - set(config.recipe_weights))
    ):
        raise UserError(
            f"recipe_weights has no weight for {without[0]!r}, which recipes names: give it one (0 leaves it out)."
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
    check_scores_cover(config, [part.name for part in sources])
    split = manifest["splits"]["train"]
    model = _find_model(config)
    return RephraseWork(
        config, recipes, model, manifest["hash"], tuple(map(str, sources)), rest,
        documents_per_part=math.ceil(split["documents"] / split["parts"]),
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
    # All parts but the last one hold the same number of documents: two files tell, however many there are.
    last, left = divmod(max_documents - 1, count_documents(parts[0]))
    if last >= len(parts) or (last == len(parts) - 1 and left + 1 > count_documents(parts[-1])):
        return parts, None
    return parts[: last + 1], left + 1


def count_documents(part: UPath) -> int:
    """Return the documents of an input part, without reading them. Raises UserError when the file cannot be read."""

    def count() -> int:
        with part.open("rb") as handle:
            return int(pq.read_metadata(handle).num_rows)

    try:
        return patiently(part, count)
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
    model = {"reference": work.model.reference, "revision": work.model.revision, "hash": work.model.hash}
    return finish(directory, work.claim(), parts=work.num_parts, model=model, **summary, **found)
