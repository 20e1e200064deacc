"""From documents to a packed set: the tokenizer, a token shard for every few input parts, the manifest.

Every function here does one piece of work and leaves it behind whole, so that any piece can be done again, anywhere;
`train.job.pack_tokens` fans them out. The evaluation rows are made in `train.evaluation_rows`; the layout on disk is
described in `train.tokens`.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from upath import UPath

from synth.errors import UserError
from synth.identity import RECIPE_FILE, artefact_hash, claim_directory, finish, is_finished
from synth.plan import Plan
from synth.storage import (
    MARKER,
    exists,
    list_names,
    read_json,
    read_parquet,
    study_path,
    write_bytes_atomic,
    write_json_atomic,
    write_parquet_atomic,
)
from train.config import PackConfig
from train.packed_files import PACKED, ShardInfo
from train.sources import Document, Source, held_out_parts, open_sources
from train.tokenizer import (
    TRAINING_BYTES_PER_TOKEN,
    Encoder,
    TokenizerInfo,
    load_tokenizer,
    train_tokenizer,
)
from train.tokens import FLAG, PackedInfo, SourceInfo, shard_name

KIND = "packed"

EVALUATED_FILE = "documents.parquet"
"""Ids of the documents that the evaluation rows were made of."""

FORMAT = 1
"""Raised whenever the same configuration would give other tokens or another layout; part of the identity."""

MAX_SHARDS = 128
"""Shards of a source: more input parts than this share shards, or a reader would run out of open files."""

ENCODE_BATCH_CHARACTERS = 1 << 20
"""Text handed to the tokenizer at once, characters."""


@dataclass(frozen=True)
class Shard:
    """One unit of work and of commit: some consecutive parts of a source become one token shard."""

    source_name: str
    number: int
    num_shards: int
    source: Source
    """The source, with the parts of this shard only."""

    @property
    def stem(self) -> str:
        """Name of the shard's files without their endings."""
        return shard_name(self.number, self.num_shards)


def packed_directory(config: PackConfig) -> UPath:
    """Return `packed/<name>` under the study root."""
    return study_path(config.root, PACKED, config.name)


def plan_pack(config: PackConfig) -> Plan:
    """Return what packing would do. Raises UserError when an input is missing or the configuration makes no sense."""
    directory = packed_directory(config)
    sources = open_sources(config)
    recipe, parents = _identity(config, sources)
    if exists(directory / RECIPE_FILE):
        claim_directory(directory, KIND, recipe, parents)  # there is one already: this only compares
    if is_finished(directory):
        info = PackedInfo.read(config.root, config.name)
        return Plan("pack_tokens", str(directory), True, _facts_of_finished(info), remarks_on(info))
    shards = list_shards(config)
    facts: dict[str, object] = {"shards missing": len(list_missing(config, shards)), "shards": len(shards)}
    for name, source in sources.items():
        if source.num_documents is not None:
            facts[f"{name}: documents"] = source.num_documents
        facts[f"{name}: text, bytes"] = source.num_bytes
        if config.tokenizer.kind == "train":
            facts[f"{name}: tokens, about"] = round(
                source.num_bytes / _bytes_per_token(config.tokenizer.vocab_size)
            )
    return Plan("pack_tokens", str(directory), False, facts)


def claim(config: PackConfig) -> None:
    """Make `packed/<name>` this configuration's own. Raises UserError when it cannot be, or an input is missing."""
    recipe, parents = _identity(config, open_sources(config))
    claim_directory(packed_directory(config), KIND, recipe, parents)


def list_shards(config: PackConfig) -> list[Shard]:
    """Return the shards of all sources: at most MAX_SHARDS each, of consecutive parts, as even as can be."""
    return [shard for name, source in open_sources(config).items() for shard in _shards(name, source)]


def list_missing(config: PackConfig, shards: list[Shard]) -> list[Shard]:
    """Return those of the shards that have no ledger entry yet."""
    done = {name: set(list_names(_ledger(config, name), ".json")) for name in config.sources}
    return [shard for shard in shards if f"{shard.stem}.json" not in done[shard.source_name]]


def _shards(name: str, source: Source) -> Iterator[Shard]:
    paths = source.parts.paths
    num_shards = min(len(paths), MAX_SHARDS)
    edges = [number * len(paths) // num_shards for number in range(num_shards + 1)]
    for number in range(num_shards):
        own = replace(source.parts, paths=paths[edges[number] : edges[number + 1]])
        yield Shard(name, number, num_shards, replace(source, parts=own))


def _identity(config: PackConfig, sources: dict[str, Source]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the recipe and the parents (role -> hash). Raises UserError when the fields contradict each other."""
    unknown = [name for name in config.tokenizer.train_on if name not in config.sources]
    if unknown:
        raise UserError(
            f"tokenizer.train_on names {unknown[0]!r}, which is not one of the sources ({', '.join(config.sources)})."
        )
    if config.tokenizer.train_on and config.tokenizer.kind == "load":
        raise UserError(
            "tokenizer.train_on has no meaning for a loaded tokenizer: leave it out, or set kind to 'train'."
        )
    if config.max_evaluation_tokens_per_domain < config.sequence_length:
        raise UserError(
            f"max_evaluation_tokens_per_domain = {config.max_evaluation_tokens_per_domain} is less than one row of "
            f"sequence_length = {config.sequence_length}: raise it."
        )
    parents = {f"source.{name}": source.parts.hash for name, source in sources.items()}
    parents |= {f"evaluate_on.{name}": parts.hash for name, parts in held_out_parts(config).items()}
    return {**config.identity(), "format": FORMAT}, parents


def _ledger(config: PackConfig, source: str) -> UPath:
    return packed_directory(config) / "sources" / source / "ledger"


# --- the tokenizer ---------------------------------------------------------------------------------------------


def prepare_tokenizer(config: PackConfig) -> None:
    """Train or load the tokenizer of the set, unless it is there."""
    directory = packed_directory(config) / "tokenizer"
    if is_finished(directory):
        return
    if config.tokenizer.kind == "load":
        load_tokenizer(config.root, str(config.tokenizer.path), directory)
    else:
        train_tokenizer(list(_training_texts(config)), config.tokenizer.vocab_size, directory)


def _training_texts(config: PackConfig) -> Iterator[str]:
    """Yield the first documents of every source to train on: ids are hashes, so the first are a random sample."""
    sources = open_sources(config)
    names = config.tokenizer.train_on or tuple(sorted(sources))
    for name in names:
        yield from _first_texts(
            sources[name], TRAINING_BYTES_PER_TOKEN * config.tokenizer.vocab_size // len(names)
        )


def _first_texts(source: Source, max_bytes: int) -> Iterator[str]:
    for part in range(len(source.parts.paths)):
        for document in source.read(part):
            max_bytes -= len(document.text.encode())
            if max_bytes < 0:
                return
            yield document.text


# --- token shards ----------------------------------------------------------------------------------------------


def tokenize_shard(config: PackConfig, shard: Shard) -> int:
    """Write one token shard, its documents and, last, its ledger entry; return its number of tokens.

    Documents that evaluation rows were made of, or that are rephrased from one of them, are left out and counted.
    """
    directory = packed_directory(config)
    encoder = Encoder.read(directory / "tokenizer")
    evaluated = frozenset(read_parquet(directory / "evaluation" / EVALUATED_FILE)["doc_id"].to_pylist())
    names: list[str] = []
    num_bytes: list[int] = []
    encoded: list[NDArray[Any]] = []
    flags: list[NDArray[Any]] = []
    num_altered = num_evaluated = 0
    for part in range(len(shard.source.parts.paths)):
        found = shard.source.read(part)
        documents = [document for document in found if document.doc_id not in evaluated]
        num_evaluated += len(found) - len(documents)
        names += [document.name for document in documents]
        for batch in _batches(documents):
            texts = [document.text for document in batch]
            if shard.source.has_prompts:
                exchanges = encoder.encode_exchanges(
                    texts, [document.prompt_characters for document in batch]
                )
                ids = [exchange.ids for exchange in exchanges]
                flags += [exchange.counted for exchange in exchanges]
            else:
                ids = encoder.encode(texts)
            num_altered += encoder.count_altered(texts, ids)
            num_bytes += [len(text.encode()) for text in texts]
            encoded += ids
    target = directory / "sources" / shard.source_name
    written = write_tokens(target / f"{shard.stem}.tokens", encoded, encoder.dtype)
    table = pa.table(
        {
            "document": pa.array(names, pa.string()),
            "num_tokens": pa.array([len(ids) for ids in encoded], pa.int64()),
            "num_bytes": pa.array(num_bytes, pa.int64()),
        }
    )
    write_parquet_atomic(target / f"{shard.stem}.parquet", table)
    counted = (
        write_tokens(target / f"{shard.stem}.counted", flags, FLAG) if shard.source.has_prompts else None
    )
    entry = {
        **written.model_dump(),
        "tokenizer": encoder.info.hash,
        "num_documents": len(names),
        "num_bytes": sum(num_bytes),
        "num_altered_documents": num_altered,
        "num_evaluated_documents": num_evaluated,
        "inputs": [path.name for path in shard.source.parts.paths],
    }
    if counted is not None:
        entry |= {
            "counted": counted.model_dump(),
            "num_counted_tokens": int(sum(int(each.sum()) for each in flags)),
        }
    write_json_atomic(_ledger(config, shard.source_name) / f"{shard.stem}.json", entry)
    return written.num_tokens


def _batches(documents: list[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= ENCODE_BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_tokens(path: UPath, pieces: list[NDArray[Any]], dtype: np.dtype[Any]) -> ShardInfo:
    """Write token ids as one file and return what is to be remembered of it."""
    data = b"".join(piece.astype(dtype, copy=False).data for piece in pieces)  # one copy of a shard, not two
    write_bytes_atomic(path, data)
    return ShardInfo(num_tokens=len(data) // dtype.itemsize, sha256=hashlib.sha256(data).hexdigest())


# --- the manifest ----------------------------------------------------------------------------------------------


def finish_pack(config: PackConfig) -> dict[str, Any]:
    """Write the manifest, which makes the set finished, from the ledgers; return it.

    The identity covers the tokenizer too: a hub name or another version of a library may stand for another one.
    """
    directory = packed_directory(config)
    sources = open_sources(config)
    recipe, parents = _identity(config, sources)
    tokenizer = TokenizerInfo.model_validate(read_json(directory / "tokenizer" / MARKER))
    evaluation = _read_entry(directory / "evaluation" / "ledger.json", tokenizer)
    info = PackedInfo(
        hash=artefact_hash(KIND, recipe, {**parents, "tokenizer": tokenizer.hash}),
        sequence_length=config.sequence_length,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        tokenizer_hash=tokenizer.hash,
        sources={name: _source_info(config, name, source, tokenizer) for name, source in sources.items()},
        evaluation=evaluation["domains"],
        evaluation_shard=evaluation["shard"],
        evaluation_counted_shard=evaluation.get("counted_shard"),
        domains_left_out=evaluation["left_out"],
    )
    return finish(directory, info.hash, **info.model_dump(mode="json", exclude={"hash"}))


def _source_info(config: PackConfig, name: str, source: Source, tokenizer: TokenizerInfo) -> SourceInfo:
    entries = [
        _read_entry(_ledger(config, name) / f"{shard.stem}.json", tokenizer)
        for shard in _shards(name, source)
    ]
    total = collections.Counter[str]()
    for entry in entries:
        total.update({count: value for count, value in entry.items() if isinstance(value, int)})
    num_documents = total["num_documents"] + total["num_evaluated_documents"]
    if not source.is_synthetic and num_documents != source.num_documents:
        raise RuntimeError(f"source {name}: {num_documents} documents read of {source.num_documents}")
    num_tokens = total["num_tokens"]
    num_rows = max(0, num_tokens - 1) // config.sequence_length
    return SourceInfo(
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_documents=total["num_documents"],
        num_bytes=total["num_bytes"],
        num_dropped_tokens=num_tokens - (num_rows * config.sequence_length + 1 if num_rows else 0),
        num_altered_documents=total["num_altered_documents"],
        num_evaluated_documents=total["num_evaluated_documents"],
        shards=tuple(ShardInfo(num_tokens=entry["num_tokens"], sha256=entry["sha256"]) for entry in entries),
        num_counted_tokens=total["num_counted_tokens"] if source.has_prompts else None,
        counted_shards=tuple(
            ShardInfo.model_validate(entry["counted"]) for entry in entries if "counted" in entry
        ),
    )


def _read_entry(path: UPath, tokenizer: TokenizerInfo) -> dict[str, Any]:
    entry: dict[str, Any] = read_json(path)
    if entry["tokenizer"] != tokenizer.hash:
        raise UserError(
            f"{path} was made with another tokenizer ({entry['tokenizer']}) than the one beside it ({tokenizer.hash}): "
            "delete the packed set and run pack_tokens again."
        )
    return entry


def remarks_on(info: PackedInfo) -> tuple[str, ...]:
    """Return what a careful person would want to know of a packed set before training on it."""
    remarks = []
    for name, source in info.sources.items():
        if not source.num_rows:
            remarks.append(
                f"source {name} has no row: {source.num_tokens} tokens, one row takes {info.sequence_length + 1}"
            )
        if source.num_evaluated_documents:
            remarks.append(
                f"source {name}: {source.num_evaluated_documents} documents left out, they are evaluated on"
            )
        if source.num_altered_documents:
            remarks.append(
                f"source {name}: {source.num_altered_documents} of {source.num_documents} documents are not given back "
                "byte for byte by the tokenizer"
            )
    if info.domains_left_out:
        some = ", ".join(list(info.domains_left_out)[:5])
        remarks.append(
            f"{len(info.domains_left_out)} domains have too little held-out text to evaluate on ({some})"
        )
    return tuple(remarks)


def _facts_of_finished(info: PackedInfo) -> dict[str, object]:
    facts: dict[str, object] = {
        f"tokens of {name}": source.num_tokens for name, source in info.sources.items()
    }
    return facts | {
        "evaluation domains": len(info.evaluation),
        "domains left out": len(info.domains_left_out),
    }


def _bytes_per_token(vocab_size: int) -> float:
    """Return about how much English a token of a trained vocabulary stands for, for plans: measured on docstrings."""
    return float(
        np.interp(np.log2(vocab_size), [8, 9, 10, 11, 13, 15, 17], [1.0, 1.9, 2.4, 2.9, 3.6, 4.0, 4.3])
    )
