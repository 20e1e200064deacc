"""Where training and evaluation documents come from: the parts of a corpus or of a synthetic set, part by part.

A synthetic set gives one training document per (doc_id, recipe, sample): its kept chunks in order, a blank line
between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from synth.errors import UserError
from synth.identity import read_manifest
from synth.storage import list_names, read_parquet, study_path
from train.config import PackConfig

CHUNK_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Documents:
    """Some documents, in training order."""

    names: list[str]
    """`doc_id`, or `doc_id/recipe/sample` of a synthetic one."""
    texts: list[str]


@dataclass(frozen=True)
class Source:
    """One training source: finished parts and how to read them."""

    directory: UPath
    made_by: str
    """Job to run again if a part is damaged."""
    hash: str
    """Identity of the corpus or synthetic set."""
    parts: tuple[str, ...]
    """Names of the Parquet files, in order."""
    recipe: str | None
    """Only rows of this recipe."""
    num_documents: int | None
    num_bytes: int | None
    """What the manifest says, for the plan; null where it does not say."""

    def read(self, part: int) -> Documents:
        """Read the training documents of one part, sorted. Raises UserError when the file is missing or damaged."""
        raise NotImplementedError
