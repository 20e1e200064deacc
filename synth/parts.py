"""The parts of a corpus, cut from the sorted documents of its buckets (`synth.shuffle`): which rows go where, and their counts."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synth.documents import DOCUMENT_SCHEMA, SPLITS
from synth.shuffle import Workspace, read_sorted
from synth.storage import patiently, write_json_atomic
from synth.storage import write_parquet_atomic as write_parquet

COUNTS = ("documents", "characters", "bytes")
"""What is counted of every split and domain; bytes are of UTF-8."""


class Slice(NamedTuple):
    """Rows [start, stop) of the merged file of a bucket."""

    bucket: int
    start: int
    stop: int


@dataclass(frozen=True)
class PartsTask:
    """Write the parts that begin in one bucket."""

    space: Workspace
    number: int
    documents_per_part: int
    num_parts: dict[str, int]
    """Split -> parts in all, which the names carry."""
    first_part: dict[str, int]
    slices: dict[str, tuple[Slice, ...]]
    """Split -> the rows of its parts, in order."""
    compared: bool
    """Whether training documents are those that a comparison with the held-out split has left."""


def plan_parts(
    space: Workspace, kept: list[dict[str, int]], documents_per_part: int, *, compared: bool = False
) -> tuple[dict[str, int], list[PartsTask]]:
    """Return the parts of each split in all, and the tasks that write them: one for each bucket a part begins in.

    `kept[bucket][split]` is the number of documents to take from the start of that bucket's sorted file.
    """
    num_parts: dict[str, int] = {}
    first_part: dict[str, list[int]] = {}
    slices: dict[str, list[tuple[Slice, ...]]] = {}
    for split in SPLITS:
        ends = np.cumsum([0] + [counts[split] for counts in kept])
        total = int(ends[-1])
        num_parts[split] = -(-total // documents_per_part)
        # Bucket b holds the documents [ends[b], ends[b + 1]); a part belongs to the bucket of its first document.
        first = [min(-(-int(end) // documents_per_part), num_parts[split]) for end in ends]
        first_part[split] = first
        slices[split] = [
            tuple(
                _slices(
                    ends,
                    bucket,
                    first[bucket] * documents_per_part,
                    min(total, first[bucket + 1] * documents_per_part),
                )
            )
            for bucket in range(len(kept))
        ]
    tasks = [
        PartsTask(
            space=space,
            number=bucket,
            documents_per_part=documents_per_part,
            num_parts=num_parts,
            first_part={split: first_part[split][bucket] for split in SPLITS},
            slices={split: slices[split][bucket] for split in SPLITS},
            compared=compared,
        )
        for bucket in range(len(kept))
        if any(slices[split][bucket] for split in SPLITS)
    ]
    return num_parts, tasks


def _slices(ends: Any, bucket: int, start: int, stop: int) -> Iterator[Slice]:
    while start < stop:
        if ends[bucket + 1] > start:
            upto = min(stop, int(ends[bucket + 1]))
            yield Slice(bucket, start - int(ends[bucket]), upto - int(ends[bucket]))
            start = upto
        bucket += 1


def write_parts(task: PartsTask) -> None:
    """Write the parts that begin in one bucket and their ledger entry: documents, characters, bytes by domain."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for split in SPLITS:
        counts[split] = {}
        for position, part in enumerate(_parts(task, split)):
            name = part_name(task.first_part[split] + position, task.num_parts[split])
            write_parquet(task.space.directory / split / name, part)
            add_counts(counts[split], _count(part))
    write_json_atomic(task.space.ledger("write", task.number), counts)


def part_name(part: int, num_parts: int) -> str:
    """Return the file name of a part, counted from 0: `part-00000-of-00012.parquet`."""
    return f"part-{part:05d}-of-{num_parts:05d}.parquet"


def _parts(task: PartsTask, split: str) -> Iterator[pa.Table]:
    pending = DOCUMENT_SCHEMA.empty_table()
    for piece in _sliced(task, split):
        pending = pa.concat_tables([pending, piece])
        while pending.num_rows >= task.documents_per_part:
            yield pending.slice(0, task.documents_per_part).combine_chunks()
            pending = pending.slice(task.documents_per_part)
    if pending.num_rows:
        yield pending.combine_chunks()


def _sliced(task: PartsTask, split: str) -> Iterator[pa.Table]:
    for bucket, start, stop in task.slices[split]:
        path = task.space.merged(split, bucket)
        if task.compared and split == "train":
            path = task.space.compared(bucket)
        yield patiently(path, functools.partial(read_sorted, path, start, stop))


def _count(part: pa.Table) -> dict[str, dict[str, int]]:
    sizes = pa.table(
        {
            "domain": part["domain"],
            "documents": pa.array(np.ones(part.num_rows, dtype=np.int64)),
            "characters": pc.utf8_length(part["text"]),
            "bytes": pc.binary_length(part["text"]),
        }
    )
    sums = sizes.group_by("domain").aggregate([(name, "sum") for name in COUNTS]).to_pylist()
    return {row["domain"]: {name: row[f"{name}_sum"] for name in COUNTS} for row in sums}


def add_counts(total: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> None:
    """Add counts by domain to others, in place."""
    for domain, counts in more.items():
        into = total.setdefault(domain, dict.fromkeys(counts, 0))
        for name, count in counts.items():
            into[name] += count
