"""Finished corpora, synthetic sets and packed sets of a handful of documents, as the earlier steps leave them."""

from collections.abc import Callable, Iterable
from typing import Any

import hypothesis
import pyarrow as pa
import pytest

from synth.documents import DOCUMENT_SCHEMA, document_id
from synth.identity import claim_directory, finish, is_finished, read_manifest
from synth.rows import REPHRASED_SCHEMA
from synth.storage import study_path, write_bytes_atomic, write_json_atomic, write_parquet_atomic
from train import packing
from train.checkpoint_files import CompleteCheckpoint, RunState
from train.config import PackConfig
from train.evaluation_rows import build_evaluation
from train.tokens import PackedSet

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


@pytest.fixture
def write_corpus() -> Callable[..., list[str]]:
    """`write_corpus(root, name, texts, held_out={domain: texts})` -> the train texts in the order they are packed."""
    return _write_corpus


@pytest.fixture
def write_synthetic() -> Callable[..., None]:
    """`write_synthetic(root, name, parts)`: each part a list of rows (doc_id, recipe, sample, chunk, text, keep)."""
    return _write_synthetic


@pytest.fixture
def pack() -> Callable[[PackConfig], PackedSet]:
    """`pack(config)` packs in this process, piece by piece as the job does, and opens the set."""

    def pack(config: PackConfig) -> PackedSet:
        pack_serially(config)
        return PackedSet.open(config.root, config.name)

    return pack


def pack_serially(config: PackConfig) -> dict[str, Any]:
    packing.claim(config)
    directory = packing.packed_directory(config)
    if is_finished(directory):
        return read_manifest(directory, "pack_tokens")
    packing.prepare_tokenizer(config)
    build_evaluation(config)
    for shard in packing.list_missing(config, packing.list_shards(config)):
        packing.tokenize_shard(config, shard)
    return packing.finish_pack(config)


def _write_corpus(
    root: str,
    name: str,
    texts: Iterable[str],
    held_out: dict[str, list[str]] | None = None,
    documents_per_part: int = 3,
) -> list[str]:
    directory = study_path(root, "corpora", name)
    identity = claim_directory(
        directory, "corpus", {"texts": document_id("\0".join(texts := list(texts)))}, {}
    )
    splits = {
        "train": [(document_id(text), text, "web", "test") for text in texts],
        "held_out": [
            (document_id(text), text, domain, "test")
            for domain, each in (held_out or {}).items()
            for text in each
        ],
    }
    counts = {}
    for split, rows in splits.items():
        rows.sort()
        num_parts = -(-len(rows) // documents_per_part)
        for part in range(num_parts):
            columns = zip(*rows[part * documents_per_part : (part + 1) * documents_per_part], strict=True)
            table = pa.table([list(column) for column in columns], schema=DOCUMENT_SCHEMA)
            write_parquet_atomic(directory / split / f"part-{part:05d}-of-{num_parts:05d}.parquet", table)
        num_bytes = sum(len(text.encode()) for _, text, _, _ in rows)
        counts[split] = {"parts": num_parts, "documents": len(rows), "bytes": num_bytes}
    finish(directory, identity, splits=counts)
    return [text for _, text, _, _ in splits["train"]]


def _write_synthetic(root: str, name: str, parts: list[list[tuple[str, str, int, int, str, bool]]]) -> None:
    directory = study_path(root, "synthetic", name)
    identity = claim_directory(directory, "synthetic", {"rows": document_id(repr(parts))}, {})
    columns = ("doc_id", "recipe", "sample", "chunk", "text", "keep")
    recipes: dict[str, dict[str, int]] = {}
    for part, rows in enumerate(parts):
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        schema = pa.schema([REPHRASED_SCHEMA.field(column) for column in columns])
        table = pa.Table.from_pylist(named, schema=schema)
        write_parquet_atomic(directory / f"part-{part:05d}-of-{len(parts):05d}.parquet", table)
        for row in named:
            tally = recipes.setdefault(row["recipe"], {"kept_characters": 0})
            tally["kept_characters"] += len(row["text"]) * row["keep"]
    finish(directory, identity, parts=len(parts), recipes=recipes)


def leave_checkpoint(home, step, zero_stage):
    """Leave a checkpoint as a worker group would."""
    checkpoint = home / f"step-{step:08d}-x"
    write_bytes_atomic(checkpoint / "state" / "weights.pt", b"1234")
    complete = CompleteCheckpoint(
        state=RunState(step=step), world_size=1, zero_stage=zero_stage, optimizer="Adam", files={"weights.pt": 4}
    )  # fmt: skip
    write_json_atomic(checkpoint / "complete.json", complete.model_dump(mode="json"))
