"""`build_corpus` without Ray: what to build, in which stages, and what is there when it is done.

A corpus is `corpora/<name>/{train,held_out}/part-k-of-n.parquet`, sorted by `doc_id`, with the columns of
`synth.documents.DOCUMENT_SCHEMA`; which documents are in it, and in which part, depends on the inputs alone.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from upath import UPath

from synth.config import CorpusConfig
from synth.documents import SPLITS
from synth.errors import UserError
from synth.identity import claim_directory, finish, is_finished, read_manifest
from synth.inputs import CorpusUnit, SourceInputs, list_source
from synth.plan import Plan
from synth.shuffle import (
    RUN_BYTES,
    MergeTask,
    PartsTask,
    ReadTask,
    Workspace,
    add_counts,
    merge_bucket,
    part_name,
    plan_parts,
    read_entries,
    read_unit,
    write_parts,
)
from synth.storage import list_names, read_parquet, study_path, write_json_atomic

KIND = "corpus"
MADE_BY = "build_corpus"

PARTS_PER_CORPUS_UNIT = 256
"""Parts of a corpus to stay disjoint from that one task reads the ids of."""

MAX_BUCKETS = 4096


def corpus_directory(root: str, name: str) -> UPath:
    """Return `corpora/<name>` under a study root."""
    return study_path(root, "corpora", name)


def open_corpus(root: str, name: str, split: str = "train") -> tuple[list[UPath], dict[str, Any]]:
    """Return the parts of one split (`train` or `held_out`) of a finished corpus, in order, and its manifest.

    The parts' columns are `synth.documents.DOCUMENT_SCHEMA`; the manifest's `splits[split]` says how many parts,
    documents, characters and bytes there are, in all and by domain. Raises IncompleteArtefact when the corpus is
    not finished, UserError when a part has gone since.
    """
    directory = corpus_directory(root, name)
    manifest = read_manifest(directory, MADE_BY)
    num_parts = manifest["splits"][split]["parts"]
    names = [part_name(part, num_parts) for part in range(num_parts)]
    missing = sorted(set(names) - set(list_names(directory / split, ".parquet")))
    if missing:
        raise UserError(
            f"{directory / split} has lost {len(missing)} of {num_parts} parts ({missing[0]}): "
            f"delete {directory} and run {MADE_BY} again."
        )
    return [directory / split / name for name in names], manifest


@dataclass(frozen=True)
class Stage:
    """One stage of a job: independent tasks, each of which leaves a file that says it is done."""

    name: str
    """What the tasks do, such as `read`."""
    unit: str
    """What one task is worth, in the plural, for the progress line."""
    work: Callable[[Any], None]
    todo: list[Any]
    """The tasks that are not done; each has a `number`."""
    num_tasks: int
    """The tasks there are in all."""


class CorpusBuild:
    """One corpus on its way: listed and checked at once, then built stage by stage.

    Raises UserError when an input cannot be listed or a corpus to stay disjoint from is not finished, and
    IdentityMismatch when the directory holds another corpus. Nothing is written before `stages`.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config
        self.directory = corpus_directory(config.root, config.name)
        self.finished = is_finished(self.directory)
        self.sources = [list_source(index, config) for index in range(len(config.sources))]
        self._corpora = {name: self._other_corpus(name) for name in config.disjoint_from}
        self._space = Workspace(config.root, config.name, _num_buckets(self.sources))

    @property
    def parents(self) -> dict[str, str]:
        """What the corpus is made from, role -> fingerprint."""
        fingerprints = {role: value for source in self.sources for role, value in source.parents.items()}
        return fingerprints | {f"disjoint_from.{name}": other["hash"] for name, other in self._corpora.items()}

    def claim(self) -> str:
        """Make the directory this corpus's own and return the corpus's hash. Raises IdentityMismatch."""
        return claim_directory(self.directory, KIND, self.config.identity(), self.parents)

    def stages(self) -> Iterator[Stage]:
        """Yield the stages in order; the tasks of one must be done before the next one is asked for."""
        self.claim()
        yield self._stage("read", "inputs", read_unit, self._read_tasks())
        fraction = self.config.held_out_fraction
        buckets = range(self._space.num_buckets)
        yield self._stage("merge", "buckets", merge_bucket, [MergeTask(self._space, b, fraction) for b in buckets])
        yield self._stage("write", "buckets", write_parts, self._parts_tasks()[1])

    def finish(self) -> dict[str, Any]:
        """Check that every row is accounted for, write the manifest, remove the intermediates, return the manifest."""
        read, merged = read_entries(self._space, "read"), read_entries(self._space, "merge")
        dropped = collections.Counter(_summed(entry["dropped"] for entry in (*read, *merged)))
        ...
