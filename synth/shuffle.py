"""From rows in any order to documents sorted by id, without duplicates, in bounded memory.

Stages, each a set of independent tasks whose files have fixed names under `corpora/<name>/.work`:

1. `read`: a unit of input becomes sorted runs, one row group for each bucket (a range of ids), and a ledger entry.
2. `merge`: a bucket's row groups of all runs become one sorted file for each split, every document once.
3. `index` and `compare` (`synth.held_out`), unless they are off: what is too much like the held-out split is left out.
4. `write` (`synth.parts`): the parts that begin in a bucket are cut from the sorted files; their bytes depend on the documents alone.

A ledger entry (`<stage>/<number>.json`) is written after the task's files: a task with an entry is never redone.
Runs are named in the order of the sources, so the first copy of a document is the one that stays; the ids of the
corpora to stay disjoint from come before all sources, carry no text, and are dropped after they have won.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from synth.config import CorpusSource
from synth.documents import DOCUMENT_SCHEMA, SPLITS, Document, admit, is_held_out
from synth.errors import UserError
from synth.inputs import CorpusUnit, Unit
from synth.readers import read_rows
from synth.storage import (
    list_names,
    patiently,
    read_json,
    read_parquet,
    study_path,
    write_bytes_atomic,
    write_json_atomic,
)

RUN_BYTES = 128 * 2**20
"""Text a reading task holds before it writes a run, and about the text of one bucket: the memory of a task."""

RUN_SCHEMA = pa.schema([("doc_id", pa.string()), ("text", pa.large_string()), ("domain", pa.string()),
                        ("source", pa.string())])  # fmt: skip
ROWS_PER_GROUP = 1024
"""Rows of a row group in a merged file: a part that ends in the next bucket reads no more of it than that."""

BUCKETS_KEY = b"buckets"
SCRATCH = ".work"
"""Directory inside the corpus that holds the intermediates."""


@dataclass(frozen=True)
class Workspace:
    """Where one corpus is built; small, so that every task carries it."""

    root: str
    corpus: str
    num_buckets: int

    @property
    def directory(self) -> UPath:
        """The corpus directory."""
        return study_path(self.root, "corpora", self.corpus)

    @property
    def scratch(self) -> UPath:
        """Everything that is removed when the corpus is finished."""
        return self.directory / SCRATCH

    def ledger(self, stage: str, number: int) -> UPath:
        """The entry that says a task is done."""
        return self.scratch / stage / f"{number:06d}.json"

    def merged(self, split: str, bucket: int) -> UPath:
        """The sorted documents of a bucket and split."""
        return self.scratch / "merge" / f"{bucket:06d}-{split}.parquet"

    def compared(self, bucket: int) -> UPath:
        """The sorted training documents of a bucket that are not too much like the held-out split."""
        return self.scratch / "compare" / f"{bucket:06d}-train.parquet"

    def bucket_of(self, doc_id: str) -> int:
        """The bucket of a document: equal ranges of the first 32 bits of the id."""
        return int(doc_id[:8], 16) * self.num_buckets >> 32


@dataclass(frozen=True)
class ReadTask:
    """Read one unit of a source, or of a corpus to stay disjoint from (`source` is None)."""

    space: Workspace
    number: int
    where: str
    source: CorpusSource | None
    unit: Unit
    min_characters: int


@dataclass(frozen=True)
class MergeTask:
    """Merge one bucket."""

    space: Workspace
    number: int
    held_out_fraction: float


# --- read -------------------------------------------------------------------------------------------------------


def read_unit(task: ReadTask) -> None:
    """Write the runs and the ledger entry of one unit: rows read, dropped by reason, and kept for the merge."""
    dropped: collections.Counter[str] = collections.Counter()
    documents = _parent_documents(task) if task.source is None else _admitted(task, dropped)
    num_kept = 0
    for number, run in enumerate(_runs(documents, dropped)):
        _write_run(task.space, task.space.scratch / "read" / f"{task.number:06d}-{number:04d}.parquet", run)
        num_kept += len(run)
    rows = 0 if task.source is None else num_kept + sum(dropped.values())
    entry = {"where": task.where, "rows": rows, "dropped": dict(dropped)}
    write_json_atomic(task.space.ledger("read", task.number), entry)


def _admitted(task: ReadTask, dropped: collections.Counter[str]) -> Iterator[Document]:
    assert task.source is not None
    for row in read_rows(task.where, task.source, task.unit):
        verdict = admit(row, task.min_characters)
        if isinstance(verdict, Document):
            yield verdict
        else:
            dropped[verdict] += 1


def _parent_documents(task: ReadTask) -> Iterator[Document]:
    """Yield the ids of a corpus as documents with an empty text, which no source has, and its name as domain."""
    assert isinstance(task.unit, CorpusUnit)
    directory = study_path(task.space.root, "corpora", task.unit.corpus)
    for part in task.unit.parts:
        try:
            ids = read_parquet(directory / part, columns=["doc_id"])["doc_id"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{directory / part} is damaged ({' '.join(str(error).split())}): "
                f"delete {directory} and run build_corpus again."
            ) from error
        for doc_id in ids:
            yield Document(doc_id, "", task.unit.corpus, "")


def _runs(documents: Iterable[Document], dropped: collections.Counter[str]) -> Iterator[list[Document]]:
    """Cut documents into sorted runs of about RUN_BYTES of text; within a run the first copy of a document stays."""
    run: dict[str, Document] = {}
    num_bytes = 0
    for document in documents:
        if document.doc_id in run:
            dropped["duplicate"] += 1
            continue
        run[document.doc_id] = document
        num_bytes += len(document.text) + 500  # what a Document costs besides its text
        if num_bytes >= RUN_BYTES:
            yield sorted(run.values())
            run, num_bytes = {}, 0
    if run:
        yield sorted(run.values())


def _write_run(space: Workspace, path: UPath, run: list[Document]) -> None:
    buffer = io.BytesIO()
    buckets = []
    with pq.ParquetWriter(buffer, RUN_SCHEMA, compression="zstd", compression_level=1) as writer:
        for bucket, group in itertools.groupby(run, key=lambda document: space.bucket_of(document.doc_id)):
            columns = zip(*group, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, RUN_SCHEMA, strict=True)]
            table = pa.Table.from_arrays(arrays, schema=RUN_SCHEMA)
            writer.write_table(table, row_group_size=table.num_rows)
            buckets.append(bucket)
        writer.add_key_value_metadata({BUCKETS_KEY: ",".join(map(str, buckets)).encode()})
    write_bytes_atomic(path, buffer.getvalue())


# --- merge ------------------------------------------------------------------------------------------------------


def merge_bucket(task: MergeTask) -> None:
    """Write the sorted documents of one bucket, a file for each split, and its ledger entry."""
    space, bucket = task.space, task.number
    table = pa.concat_tables(list(_row_groups(space, bucket))).combine_chunks()
    kept, dropped = _first_copies(table)
    documents = table.take(kept).cast(DOCUMENT_SCHEMA)
    held_out = np.array(
        [is_held_out(i, task.held_out_fraction) for i in documents["doc_id"].to_pylist()], dtype=bool
    )
    entry: dict[str, Any] = {"dropped": dropped, "kept": {}}
    for split, mask in zip(SPLITS, (~held_out, held_out), strict=True):
        side = documents.filter(pa.array(mask))
        write_sorted(space.merged(split, bucket), side)
        entry["kept"][split] = side.num_rows
    write_json_atomic(space.ledger("merge", bucket), entry)


def write_sorted(path: UPath, documents: pa.Table) -> None:
    """Write the sorted documents of a bucket and split, for stages that read rows out of their middle."""
    buffer = io.BytesIO()
    pq.write_table(documents, buffer, compression="zstd", compression_level=1, row_group_size=ROWS_PER_GROUP)
    write_bytes_atomic(path, buffer.getvalue())


def read_sorted(path: UPath, start: int, stop: int) -> pa.Table:
    """Return the rows [start, stop) of such a file, reading no more row groups than they lie in."""
    groups = range(start // ROWS_PER_GROUP, -(-stop // ROWS_PER_GROUP))
    with path.open("rb") as handle, pq.ParquetFile(handle) as documents:
        rows = documents.read_row_groups(list(groups)).cast(DOCUMENT_SCHEMA)
    first = groups.start * ROWS_PER_GROUP
    return rows[start - first : stop - first]


def _row_groups(space: Workspace, bucket: int) -> Iterator[pa.Table]:
    """Yield an empty table, then the bucket's rows of every run, in the order of the runs."""
    yield RUN_SCHEMA.empty_table()
    for name in list_names(space.scratch / "read", ".parquet"):
        path = space.scratch / "read" / name
        rows = patiently(path, functools.partial(_rows_of_bucket, path, bucket))
        if rows is not None:
            yield rows


def _rows_of_bucket(path: UPath, bucket: int) -> pa.Table | None:
    with path.open("rb") as handle, pq.ParquetFile(handle) as run:
        buckets = run.metadata.metadata[BUCKETS_KEY].decode().split(",")
        return run.read_row_group(buckets.index(str(bucket))) if str(bucket) in buckets else None


def _first_copies(table: pa.Table) -> tuple[pa.Array, dict[str, int]]:
    """Return the rows to keep, sorted by id, and how many rows are dropped by reason."""
    ids = np.array(table["doc_id"].to_pylist(), dtype=bytes)
    if not len(ids):
        return pa.array([], pa.int64()), {}
    order = np.argsort(ids, kind="stable")
    is_first = np.append(True, ids[order][1:] != ids[order][:-1])
    winners = order[is_first]
    is_parent = pc.equal(pc.binary_length(table["text"]), 0).to_numpy()
    num_copies = np.add.reduceat((~is_parent[order]).astype(np.int64), np.flatnonzero(is_first))
    parent_wins = is_parent[winners]
    dropped = collections.Counter(duplicate=int((num_copies - 1)[~parent_wins].sum()))
    names = table["domain"].take(pa.array(winners[parent_wins])).to_pylist()
    for name, copies in zip(names, num_copies[parent_wins], strict=True):
        dropped[f"in_{name}"] += int(copies)
    return pa.array(winners[~parent_wins]), {reason: count for reason, count in dropped.items() if count}


def lowest_documents(space: Workspace, kept: list[dict[str, int]], limit: int) -> list[dict[str, int]]:
    """Return how many documents of each bucket and split are among the `limit` lowest ids of all."""
    left = limit
    lowest = []
    for bucket, counts in enumerate(kept):
        if not left:
            counts = dict.fromkeys(counts, 0)
        elif sum(counts.values()) > left:
            # Only the bucket the limit falls into is looked at: the splits take turns inside it.
            ids = {
                split: read_parquet(space.merged(split, bucket), ["doc_id"])["doc_id"].to_pylist()
                for split in SPLITS
            }
            taken = sorted((doc_id, split) for split, in_split in ids.items() for doc_id in in_split)[:left]
            counts = {split: sum(side == split for _, side in taken) for split in SPLITS}
        lowest.append(counts)
        left -= sum(counts.values())
    return lowest


def read_entries(space: Workspace, stage: str) -> list[Any]:
    """Return the ledger entries of a stage, in order."""
    directory = space.scratch / stage
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda name: read_json(directory / name), list_names(directory, ".json")))
