"""Leaves out of a corpus what is too much like its held-out split: two stages between `merge` and `write` of `synth.shuffle`.

1. `index`: the n-grams of all held-out documents become one file, 8 bytes for each.
2. `compare`: a bucket's training documents are measured against it; those that are too much like it are left out.

A model is evaluated on the held-out split. A training document that repeats it lowers the loss of natural text, which
rephrased text, rejected at the same bound, does not: the comparison the study is about would be tilted.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from upath import UPath

from synth.config import Decontamination
from synth.quality.decontamination import NgramIndex
from synth.quality.verdict import words_of
from synth.shuffle import Workspace, write_sorted
from synth.storage import read_bytes, read_parquet, write_bytes_atomic, write_json_atomic

TOO_SIMILAR = "like_held_out"
"""Reason under which the documents left out are counted."""


@dataclass(frozen=True)
class IndexTask:
    """Index the held-out documents of all buckets."""

    space: Workspace
    number: int
    ngram: int
    held_out: tuple[int, ...]
    """Bucket -> documents from the start of its held-out file."""


@dataclass(frozen=True)
class CompareTask:
    """Compare the training documents of one bucket with the index."""

    space: Workspace
    number: int
    rule: Decontamination
    train: int
    """Documents from the start of the bucket's training file."""


def _index_path(space: Workspace) -> UPath:
    return space.scratch / "index" / "ngrams.npy"


def index_documents(task: IndexTask) -> None:
    """Write the index of the held-out split, and its ledger entry."""
    texts = (
        text
        for bucket, count in enumerate(task.held_out)
        for text in read_parquet(task.space.merged("held_out", bucket), ["text"])["text"]
        .slice(0, count)
        .to_pylist()
    )
    index = NgramIndex((words_of(text) for text in texts), task.ngram)
    buffer = io.BytesIO()
    np.save(buffer, index.hashes, allow_pickle=False)
    write_bytes_atomic(_index_path(task.space), buffer.getvalue())
    write_json_atomic(task.space.ledger("index", task.number), {"ngrams": len(index)})


def compare_bucket(task: CompareTask) -> None:
    """Write the training documents of a bucket that may stay, and its ledger entry: how many, how many may not."""
    space = task.space
    hashes = np.load(io.BytesIO(read_bytes(_index_path(space))), allow_pickle=False)
    index = NgramIndex.of_hashes(hashes, task.rule.ngram)
    documents = read_parquet(space.merged("train", task.number)).slice(0, task.train)
    stays = [
        index.covered_fraction(words_of(text)) <= task.rule.max_fraction
        for text in documents["text"].to_pylist()
    ]
    kept = documents.filter(pa.array(stays, pa.bool_()))
    write_sorted(space.compared(task.number), kept)
    dropped = len(documents) - len(kept)
    entry = {"kept": len(kept), "dropped": {TOO_SIMILAR: dropped} if dropped else {}}
    write_json_atomic(space.ledger("compare", task.number), entry)
