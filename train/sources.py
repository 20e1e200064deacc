"""Where training and evaluation documents come from: the parts of a corpus or of a synthetic set, one at a time.

A synthetic set gives one training document per (doc_id, recipe, sample): its kept chunks in order, a blank line
between them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from synth.corpus import open_corpus
from synth.errors import UserError, first_line
from synth.ledger import open_synthetic
from synth.storage import read_parquet
from train.config import PackConfig, PackSource

CHUNK_SEPARATOR = "\n\n"

PROMPT_CHARACTERS = "prompt_characters"
"""Column of a corpus whose manifest says `prompts = true`: how many leading characters of `text` are a prompt."""


class Document(NamedTuple):
    """One document to train on."""

    doc_id: str
    """The corpus document it is, or is rephrased from."""
    name: str
    """`doc_id`, or `doc_id/recipe/sample` of a synthetic one."""
    text: str
    prompt_characters: int = 0
    """Leading characters that the loss does not count, because they are a prompt."""


@dataclass(frozen=True)
class Parts:
    """The parts of one finished corpus split or synthetic set."""

    paths: tuple[UPath, ...]
    """The Parquet files, in order."""
    hash: str
    """Identity of the corpus or synthetic set."""
    made_by: str
    """Job that makes them."""
    has_prompts: bool = False
    """Whether documents begin with a prompt, see `Source.has_prompts`."""

    def table(self, part: int, columns: list[str]) -> pa.Table:
        """Read some columns of one part. Raises UserError when the file is missing or damaged."""
        path = self.paths[part]
        try:
            return read_parquet(path, columns)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}: {first_line(error)}): if the file is damaged, delete "
                f"{path.parent} and run {self.made_by} again."
            ) from error


@dataclass(frozen=True)
class Source:
    """One training source of a packed set: parts, and how a part becomes documents."""

    parts: Parts
    num_documents: int | None
    """Documents in it; null for a synthetic one, whose manifest counts chunks."""
    num_bytes: int
    """UTF-8 bytes of text in a corpus; characters of kept text in a synthetic set."""
    is_synthetic: bool
    recipe: str | None
    """Only rows of this recipe; null takes all."""
    has_prompts: bool = False
    """Whether its documents begin with a prompt, column `prompt_characters`, and the loss counts what follows it alone."""

    def read(self, part: int) -> list[Document]:
        """Return the training documents of one part, by doc_id. Raises UserError when its file cannot be read."""
        if self.is_synthetic:
            return self._read_synthetic(part)
        columns = ["doc_id", "text", *([PROMPT_CHARACTERS] if self.has_prompts else [])]
        table = self.parts.table(part, columns).sort_by("doc_id")
        return [
            Document(row["doc_id"], row["doc_id"], row["text"], row.get(PROMPT_CHARACTERS, 0))
            for row in table.to_pylist()
        ]

    def _read_synthetic(self, part: int) -> list[Document]:
        order = ["doc_id", "recipe", "sample", "chunk"]
        table = self.parts.table(part, [*order, "text", "keep"])
        wanted = pc.field("keep")
        if self.recipe is not None:
            wanted &= pc.field("recipe") == self.recipe
        table = table.filter(wanted).sort_by([(column, "ascending") for column in order])
        keys = zip(*(table[column].to_pylist() for column in order[:3]), strict=True)
        rows = zip(keys, table["text"].to_pylist(), strict=True)
        return [
            Document(doc_id, f"{doc_id}/{recipe}/{sample}", CHUNK_SEPARATOR.join(text for _, text in chunks))
            for (doc_id, recipe, sample), chunks in itertools.groupby(rows, key=lambda row: row[0])
        ]


def open_sources(config: PackConfig) -> dict[str, Source]:
    """Return the training sources of a packed set by name.

    Raises UserError when one is not finished, has no part, or lacks the recipe it is to give.
    """
    return {name: _open_source(config.root, name, source) for name, source in config.sources.items()}


def held_out_parts(config: PackConfig) -> dict[str, Parts]:
    """Return the held-out split of every corpus to evaluate on. Raises IncompleteArtefact when one is not finished."""
    found = {}
    for name in config.evaluate_on:
        paths, manifest = open_corpus(config.root, name, "held_out")
        has_prompts = manifest.get("prompts", False)
        found[name] = Parts(tuple(paths), manifest["hash"], "build_corpus", has_prompts)
    return found


def _open_source(root: str, name: str, source: PackSource) -> Source:
    if source.corpus is not None:
        paths, manifest = open_corpus(root, source.corpus, "train")
        counts = manifest["splits"]["train"]
        opened = Source(
            parts=Parts(tuple(paths), manifest["hash"], "build_corpus"),
            num_documents=counts["documents"],
            num_bytes=counts["bytes"],
            is_synthetic=False,
            recipe=None,
            has_prompts=manifest.get("prompts", False),
        )
    else:
        assert source.synthetic is not None
        paths, manifest = open_synthetic(root, source.synthetic)
        recipes = manifest["recipes"]
        if source.recipe is not None and source.recipe not in recipes:
            raise UserError(
                f"sources.{name}.recipe = {source.recipe!r} made no row of synthetic/{source.synthetic}: "
                f"choose one of {', '.join(sorted(recipes))}."
            )
        chosen = recipes if source.recipe is None else [source.recipe]
        opened = Source(
            parts=Parts(tuple(paths), manifest["hash"], "rephrase_corpus"),
            num_documents=None,
            num_bytes=sum(recipes[recipe]["kept_characters"] for recipe in chosen),
            is_synthetic=True,
            recipe=source.recipe,
        )
    if not opened.parts.paths:
        raise UserError(f"source {name!r} has no part to pack: take it out of sources, or make a larger one.")
    return opened
