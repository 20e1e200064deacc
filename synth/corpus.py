"""`build_corpus` without Ray: what to build, in which stages, and what is there when it is done.

A corpus is `corpora/<name>/{train,held_out}/part-k-of-n.parquet`, sorted by `doc_id`, with the columns of
`synth.documents.DOCUMENT_SCHEMA`; which documents are in it, and in which part, depends on the inputs alone.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from upath import UPath

from synth.config import CorpusConfig, CorpusSource
from synth.documents import SPLITS
from synth.errors import UserError
from synth.held_out import CompareTask, IndexTask, compare_bucket, index_documents
from synth.identity import (
    RECIPE_FILE,
    artefact_hash,
    claim_directory,
    content_hash,
    finish,
    is_finished,
    read_manifest,
)
from synth.inputs import CorpusUnit, Unit, list_source
from synth.parts import COUNTS, PartsTask, add_counts, part_name, plan_parts, write_parts
from synth.plan import Plan
from synth.shuffle import (
    ROWS_PER_GROUP,
    RUN_BYTES,
    SCRATCH,
    MergeTask,
    ReadTask,
    Workspace,
    lowest_documents,
    merge_bucket,
    read_entries,
    read_unit,
)
from synth.storage import exists, list_names, read_json, remove_tree, study_path, write_json_atomic

Split = Literal["train", "held_out"]

KIND = "corpus"
MADE_BY = "build_corpus"

PARTS_PER_CORPUS_UNIT = 256
"""Parts of a corpus to stay disjoint from that one task reads the ids of."""

LAYOUT = "layout.json"
"""Among the intermediates: how the work was cut into tasks when the build began."""

MAX_BUCKETS = 4096
ID_BYTES = 100
"""What one id of another corpus takes in a merge."""
SMALL_BUCKET_BYTES = 4 * 2**20
"""A small corpus is cut into up to 16 buckets of at least this much text, so that its merge runs in parallel."""


def corpus_directory(root: str, name: str) -> UPath:
    """Return `corpora/<name>` under a study root."""
    return study_path(root, "corpora", name)


def open_corpus(root: str, name: str, split: Split = "train") -> tuple[list[UPath], dict[str, Any]]:
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
    """One corpus on its way: inputs listed and checked at once, then built stage by stage.

    Raises UserError when an input cannot be listed or a corpus to stay disjoint from is not finished. Nothing is
    written before `stages`.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config
        self.directory = corpus_directory(config.root, config.name)
        self.corpora = {name: _other_corpus(config, name) for name in config.disjoint_from}
        self.sources = [list_source(index, config) for index in range(len(config.sources))]
        self._space = Workspace(config.root, config.name, self._num_buckets())

    @property
    def parents(self) -> dict[str, str]:
        """What the corpus is made from, role -> fingerprint."""
        fingerprints = {role: value for source in self.sources for role, value in source.parents.items()}
        return fingerprints | {
            f"disjoint_from.{name}": manifest["hash"] for name, manifest in self.corpora.items()
        }

    def stages(self) -> Iterator[Stage]:
        """Claim the directory, then yield the stages in order; one must be done before the next is asked for.

        Raises IdentityMismatch when the directory holds another corpus, UserError when its intermediates were cut into
        other tasks.
        """
        claim_directory(self.directory, KIND, self.config.identity(), self.parents)
        if not self.check_layout():
            write_json_atomic(self._space.scratch / LAYOUT, self._layout())
        yield self.read_stage()
        fraction = self.config.held_out_fraction
        buckets = range(self._space.num_buckets)
        yield self._stage(
            "merge", "buckets", merge_bucket, [MergeTask(self._space, b, fraction) for b in buckets]
        )
        if self._compares:
            rule, kept = self.config.decontaminate, self._limited()
            held_out = tuple(counts["held_out"] for counts in kept)
            yield self._stage(
                "index", "indices", index_documents, [IndexTask(self._space, 0, rule.ngram, held_out)]
            )
            tasks = [CompareTask(self._space, b, rule, counts["train"]) for b, counts in enumerate(kept)]
            yield self._stage("compare", "buckets", compare_bucket, tasks)
        yield self._stage("write", "buckets", write_parts, self._parts_tasks()[1])

    def check_layout(self) -> bool:
        """Return whether it is noted that the work is cut into these tasks. Raises UserError when a version that cuts the
        same inputs otherwise has done some of it.

        Tasks are known by their number alone, so what is done would be mixed with what is not.
        """
        scratch = self._space.scratch
        begun = read_json(scratch / LAYOUT) if exists(scratch / LAYOUT) else {}
        now = self._layout()
        differing = sorted(name for name in begun.keys() | now.keys() if begun.get(name) != now.get(name))
        if differing and list_names(scratch / "read", ".json"):
            raise UserError(
                f"{scratch} was begun by another version of synthscale, which cut the work otherwise ({', '.join(differing)}): "
                f"delete {scratch} to begin anew, or finish the corpus with the version that began it."
            )
        return not differing

    def _layout(self) -> dict[str, Any]:
        tasks = [[task.where, task.unit.num_pieces] for task in self._read_tasks()]
        return {
            "num_buckets": self._space.num_buckets,
            "rows_per_group": ROWS_PER_GROUP,
            "read_tasks": content_hash(tasks),
        }

    def read_stage(self) -> Stage:
        """Return the first stage, by far the longest, as it stands now."""
        return self._stage("read", "inputs", read_unit, self._read_tasks())

    def finish(self) -> dict[str, Any]:
        """Account for every row, write the manifest, remove the intermediates, return the manifest.

        Raises UserError when no document is left, RuntimeError when a row is unaccounted for.
        """
        read, merged = read_entries(self._space, "read"), read_entries(self._space, "merge")
        compared = read_entries(self._space, "compare") if self._compares else []
        num_parts, _ = self._parts_tasks()
        splits = self._split_counts(num_parts)
        num_kept = sum(split["documents"] for split in splits.values())
        num_merged = sum(sum(entry["kept"].values()) for entry in merged)
        num_limited = sum(sum(counts.values()) for counts in self._limited())
        dropped = collections.Counter(over_max_documents=num_merged - num_limited)
        for entry in (*read, *merged, *compared):
            dropped.update(entry["dropped"])
        dropped = +dropped
        num_rows = sum(entry["rows"] for entry in read)
        if num_rows != num_kept + dropped.total():
            raise RuntimeError(
                f"{num_rows} rows read, but {num_kept} kept and {dropped.total()} dropped: {dropped}"
            )
        if not num_kept:
            raise UserError(
                f"No document is left of {num_rows} rows ({_spoken(dropped)}): change sources or min_characters."
            )
        write_json_atomic(
            self.directory / "inputs.json", [file for source in self.sources for file in source.listing]
        )
        manifest = finish(
            self.directory,
            artefact_hash(KIND, self.config.identity(), self.parents),
            rows_read=num_rows,
            documents_kept=num_kept,
            dropped=dict(dropped),
            splits=splits,
            sources=self._source_counts(read),
        )
        remove_intermediates(self.config)
        return manifest

    def _num_buckets(self) -> int:
        text_bytes = sum(source.text_bytes for source in self.sources)
        num_ids = sum(int(manifest["documents_kept"]) for manifest in self.corpora.values())
        by_memory = -(-(text_bytes + ID_BYTES * num_ids) // RUN_BYTES)
        for_parallelism = min(16, -(-text_bytes // SMALL_BUCKET_BYTES))
        return min(MAX_BUCKETS, max(1, by_memory, for_parallelism))

    def _stage(self, name: str, unit: str, work: Callable[[Any], None], tasks: Sequence[Any]) -> Stage:
        done = set(list_names(self._space.scratch / name, ".json"))
        todo = [task for task in tasks if self._space.ledger(name, task.number).name not in done]
        return Stage(name, unit, work, todo, len(tasks))

    def _read_tasks(self) -> list[ReadTask]:
        units: list[tuple[str, CorpusSource | None, Unit]] = []
        for name, manifest in self.corpora.items():
            parts = tuple(
                f"{split}/{part_name(part, counts['parts'])}"
                for split, counts in manifest["splits"].items()
                for part in range(counts["parts"])
            )
            groups = (
                parts[i : i + PARTS_PER_CORPUS_UNIT] for i in range(0, len(parts), PARTS_PER_CORPUS_UNIT)
            )
            units += [(f"disjoint_from.{name}", None, CorpusUnit(name, group)) for group in groups]
        for index, source in enumerate(self.sources):
            units += [(f"sources.{index}", self.config.sources[index], unit) for unit in source.units]
        return [
            ReadTask(self._space, number, where, source, unit, self.config.min_characters)
            for number, (where, source, unit) in enumerate(units)
        ]

    @property
    def _compares(self) -> bool:
        """Whether training documents are compared with the held-out split."""
        return self.config.held_out_fraction > 0 and self.config.decontaminate.max_fraction < 1

    def _limited(self) -> list[dict[str, int]]:
        """Return how many merged documents of each bucket and split are taken."""
        kept = [entry["kept"] for entry in read_entries(self._space, "merge")]
        if self.config.max_documents is None:
            return kept
        return lowest_documents(self._space, kept, self.config.max_documents)

    def _parts_tasks(self) -> tuple[dict[str, int], list[PartsTask]]:
        kept = self._limited()
        if self._compares:
            left = read_entries(self._space, "compare")
            kept = [counts | {"train": entry["kept"]} for counts, entry in zip(kept, left, strict=True)]
        return plan_parts(self._space, kept, self.config.documents_per_part, compared=self._compares)

    def _split_counts(self, num_parts: dict[str, int]) -> dict[str, dict[str, Any]]:
        domains: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
        for entry in read_entries(self._space, "write"):
            for split in SPLITS:
                add_counts(domains[split], entry[split])
        return {
            split: {
                "parts": num_parts[split],
                **{name: sum(counts[name] for counts in by_domain.values()) for name in COUNTS},
                "domains": by_domain,
            }
            for split, by_domain in domains.items()
        }

    def _source_counts(self, read: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows: collections.Counter[str] = collections.Counter()
        dropped: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for entry in read:
            rows[entry["where"]] += entry["rows"]
            dropped[entry["where"]].update(entry["dropped"])
        return [
            {
                "kind": self.config.sources[index].kind,
                "files": source.num_files,
                "bytes": source.num_bytes,
                "rows_read": rows[f"sources.{index}"],
                "dropped_on_reading": dict(dropped[f"sources.{index}"]),
            }
            for index, source in enumerate(self.sources)
        ]


def plan_corpus(config: CorpusConfig) -> Plan:
    """Return what `build_corpus` would do, every input listed and checked; nothing is written.

    Raises UserError naming the field when an input is not there, IncompleteArtefact when a corpus to stay disjoint
    from is not finished or the build was begun by another version, IdentityMismatch when the directory holds another corpus.
    """
    directory = corpus_directory(config.root, config.name)
    if (manifest := finished_manifest(config)) is not None:
        facts = {"documents": manifest["documents_kept"], "rows read": manifest["rows_read"]}
        return Plan(MADE_BY, str(directory), finished=True, facts=facts)
    build = CorpusBuild(config)
    if exists(directory / RECIPE_FILE):
        claim_directory(directory, KIND, config.identity(), build.parents)
        build.check_layout()
    read = build.read_stage()
    facts = {
        "input files": sum(source.num_files for source in build.sources),
        "input bytes": sum(source.num_bytes for source in build.sources),
        "inputs to read": read.num_tasks,
        "inputs read already": read.num_tasks - len(read.todo),
    }
    warnings = tuple(warning for source in build.sources for warning in source.warnings)
    return Plan(MADE_BY, str(directory), finished=False, facts=facts, warnings=warnings)


def finished_manifest(config: CorpusConfig) -> dict[str, Any] | None:
    """Return the manifest of the corpus if it is finished, None if there is work to do.

    A finished corpus stays usable when its inputs have gone; when they are there and differ from those it was made
    from, or the recipe differs, IdentityMismatch is raised.
    """
    directory = corpus_directory(config.root, config.name)
    if not is_finished(directory):
        return None
    manifest = read_manifest(directory, MADE_BY)
    try:
        parents = CorpusBuild(config).parents
    except UserError:
        parents = manifest["parents"]
    claim_directory(directory, KIND, config.identity(), parents)
    return manifest


def remove_intermediates(config: CorpusConfig) -> None:
    """Remove what only an unfinished corpus needs, if it is there."""
    remove_tree(corpus_directory(config.root, config.name) / SCRATCH)


def _other_corpus(config: CorpusConfig, name: str) -> dict[str, Any]:
    if name == config.name:
        raise UserError(f"disjoint_from names the corpus {name!r} itself: leave it out.")
    return read_manifest(corpus_directory(config.root, name), MADE_BY)


def _spoken(dropped: Mapping[str, int]) -> str:
    return (
        ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items()))
        or "none read"
    )
