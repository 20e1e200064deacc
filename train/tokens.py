"""A packed set on disk: token shards that are memory-mapped and read row by row, and what is known of them.

    packed/<name>/recipe.json                                  what was asked for
    packed/<name>/tokenizer/{tokenizer.json, ..., manifest.json}
    packed/<name>/sources/<source>/part-00000-of-00004.tokens   ids, uint16 or uint32, little-endian, no header
    packed/<name>/sources/<source>/part-00000-of-00004.parquet  its documents: document, num_tokens, num_bytes
    packed/<name>/sources/<source>/ledger/part-00000-of-00004.json  counts and hash; written last, so: this part is done
    packed/<name>/evaluation/{held_out.tokens, documents.parquet, ledger.json}  rows of all domains, one after the other
    packed/<name>/manifest.json                                 everything `PackedInfo` says

A source is one stream of tokens, documents in order, `[EOT, t1 .. tn]` each. Row i of sequence length T is
tokens[i T : i T + T + 1]: T inputs and, one further, T targets. Rows run across shards, so nothing is lost there.
"""

from __future__ import annotations

import bisect
import fcntl
import functools
import hashlib
import itertools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from upath import UPath

from synth.errors import UserError
from synth.identity import read_manifest
from synth.storage import is_local, list_names, node_cache, read_parquet, study_path
from train.record import Record
from train.staging import download, sizes_below

PACKED = "packed"
EVALUATION_FILE = "held_out.tokens"

Tokens = NDArray[np.unsignedinteger[Any]]
"""Token ids, uint16 or uint32 by the size of the vocabulary."""


class ShardInfo(Record):
    """One file of token ids."""

    num_tokens: int
    """Ids in the file."""
    sha256: str
    """SHA-256 of its bytes, hexadecimal."""


class SourceInfo(Record):
    """What a packed set knows of one training source."""

    num_rows: int
    """Rows of sequence_length tokens: (num_tokens - 1) // sequence_length, the first input having no target."""
    num_tokens: int
    """Tokens in the stream, one end-of-text token for each document included."""
    num_documents: int
    """Documents."""
    num_bytes: int
    """UTF-8 bytes of their text."""
    num_dropped_tokens: int
    """Tokens after the last whole row, which no run reads."""
    num_altered_documents: int
    """Documents the tokenizer does not give back byte for byte (it normalises text); 0 for a trained one."""
    num_evaluated_documents: int = 0
    """Documents left out because evaluation rows were made of them, or of what they are rephrased from."""
    shards: tuple[ShardInfo, ...]
    """The files of the stream, in order."""


class EvaluationInfo(Record):
    """What a packed set knows of the evaluation rows of one held-out domain."""

    num_rows: int
    """Rows of sequence_length predicted tokens."""
    num_tokens: int
    """Predicted tokens: num_rows x sequence_length."""
    num_bytes: int
    """UTF-8 bytes the predicted tokens stand for; an end-of-text token stands for none."""
    num_documents: int
    """Documents with at least one predicted token here."""


class PackedInfo(Record):
    """A packed set in numbers, for planning: the manifest, without a single token."""

    hash: str
    """Identity of the set: recipe, parents and tokenizer."""
    sequence_length: int
    """T, tokens."""
    vocab_size: int
    """Ids are below this."""
    eot_id: int
    """Id of the token before every document; a run of tokens attends only within its document."""
    tokenizer_hash: str
    """Hash of tokenizer.json and the choice of the end-of-text token."""
    sources: dict[str, SourceInfo]
    evaluation: dict[str, EvaluationInfo]
    """By held-out domain, sorted; the rows lie in this order in the evaluation file."""
    evaluation_shard: ShardInfo
    """The file with the rows of all domains."""
    domains_left_out: dict[str, str]
    """Held-out domains without an evaluation set, each with its reason."""

    @classmethod
    def read(cls, root: str, name: str) -> PackedInfo:
        """Read the description of a packed set. Raises IncompleteArtefact when it is missing or unfinished."""
        manifest = read_manifest(study_path(root, PACKED, name), "pack_tokens")
        return cls.model_validate({field: manifest[field] for field in cls.model_fields})

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of every source: what `MixtureSampler` and `check_epochs` ask for."""
        return {name: source.num_rows for name, source in self.sources.items()}

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the ids on disk."""
        return token_dtype(self.vocab_size)


@dataclass(frozen=True)
class EvaluationTokens:
    """The evaluation rows of one domain."""

    num_bytes: int
    """UTF-8 bytes the predicted tokens stand for."""
    num_tokens: int
    """Predicted tokens: the rows' targets."""
    rows: Tokens
    """Ids [n, T+1]."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the little-endian type that holds ids below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 65_535 else "<u4")


def shard_name(part: int, num_parts: int) -> str:
    """Return the stem of a shard's files, `part-00003-of-00012`."""
    return f"part-{part:05d}-of-{num_parts:05d}"


class SourceTokens:
    """One training source of a packed set: rows by number. Nothing is mapped or fetched before the first read."""

    def __init__(self, directory: UPath, info: SourceInfo, sequence_length: int, store: _LocalStore) -> None:
        self.info = info
        self._directory = directory
        self._row_length = sequence_length + 1
        self._store = store
        self._ends = list(itertools.accumulate(shard.num_tokens for shard in info.shards))
        self._starts = [0, *self._ends[:-1]]

    @property
    def num_rows(self) -> int:
        """Rows."""
        return self.info.num_rows

    @property
    def num_tokens(self) -> int:
        """Tokens in the stream."""
        return self.info.num_tokens

    @property
    def num_documents(self) -> int:
        """Documents."""
        return self.info.num_documents

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the documents."""
        return self.info.num_bytes

    def rows(self, indices: NDArray[np.int64]) -> Tokens:
        """Return ids [n, T+1] of the rows with these numbers. Raises IndexError for one that does not exist."""
        out = np.empty((len(indices), self._row_length), self._store.dtype)
        for row, into in zip(np.asarray(indices).tolist(), out, strict=True):
            self.read_row(row, into)
        return out

    def read_row(self, row: int, into: Tokens) -> None:
        """Write the ids of one row into an array [T+1]. Raises IndexError when there is no such row.

        A slice and a copy: a microsecond, which no indexing of many rows at once undercuts by much, nor does it
        need memory for the indices.
        """
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} is not within 0 .. {self.num_rows - 1}")
        begin = row * (self._row_length - 1)
        shard = bisect.bisect_right(self._ends, begin)
        first = begin - self._starts[shard]
        piece = self._maps[shard][first : first + self._row_length]
        # A slice that runs over the end of its shard comes out short.
        into[:] = piece if len(piece) == self._row_length else self.tokens(begin, begin + self._row_length)

    def tokens(self, start: int, stop: int) -> Tokens:
        """Return the ids start .. stop-1 of the stream, across shards. Raises IndexError beyond its end."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} .. {stop} are not within 0 .. {self.num_tokens}")
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, stop)
        pieces = [
            self._maps[shard][max(0, start - self._starts[shard]) : stop - self._starts[shard]]
            for shard in range(first, last)
        ]
        return np.concatenate(pieces) if pieces else np.empty(0, self._store.dtype)

    def documents(self) -> pa.Table:
        """Return the documents in stream order: `document`, `num_tokens` (end-of-text included), `num_bytes`."""
        names = list_names(self._directory, ".parquet")
        return pa.concat_tables([read_parquet(self._directory / name) for name in names])

    @functools.cached_property
    def _maps(self) -> list[Tokens]:
        num_shards = len(self.info.shards)
        return [
            self._store.map(self._directory / f"{shard_name(number, num_shards)}.tokens", shard)
            for number, shard in enumerate(self.info.shards)
        ]


class PackedSet:
    """A finished packed set, opened for reading. Pickles as its address, so it costs a worker nothing to receive."""

    def __init__(self, root: str, name: str, info: PackedInfo, cache_directory: Path | None) -> None:
        self.info = info
        self._address = (root, name, cache_directory)
        self._directory = study_path(root, PACKED, name)
        self._store = _LocalStore(self._directory, info, cache_directory)
        self.sources: dict[str, SourceTokens] = {
            source: SourceTokens(
                self._directory / "sources" / source, each, info.sequence_length, self._store
            )
            for source, each in info.sources.items()
        }

    @classmethod
    def open(cls, root: str, name: str, cache_directory: Path | None = None) -> PackedSet:
        """Open a packed set for reading.

        On a local disk the shards are mapped where they lie. From an object store each file is copied once to
        `cache_directory` (default: a private directory under the system's temporary one), checked against its
        hash, and mapped there; workers of one node share the copy.

        Raises IncompleteArtefact when the set is missing or unfinished, UserError (on reading) when a shard is
        missing or not as long as the manifest says.
        """
        return cls(root, name, PackedInfo.read(root, name), cache_directory)

    def __reduce__(self) -> tuple[Any, ...]:
        return (PackedSet.open, self._address)

    @property
    def hash(self) -> str:
        """Identity of the set."""
        return self.info.hash

    @property
    def sequence_length(self) -> int:
        """T, tokens."""
        return self.info.sequence_length

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self.info.vocab_size

    @property
    def eot_id(self) -> int:
        """Id of the token before every document."""
        return self.info.eot_id

    @functools.cached_property
    def tokenizer_directory(self) -> Path:
        """A local directory with the tokenizer, for `transformers.AutoTokenizer`."""
        return self._store.directory(self._directory / "tokenizer")

    @functools.cached_property
    def evaluation(self) -> dict[str, EvaluationTokens]:
        """Evaluation rows by held-out domain."""
        row_length = self.sequence_length + 1
        path = self._directory / "evaluation" / EVALUATION_FILE
        rows = self._store.map(path, self.info.evaluation_shard).reshape(-1, row_length)
        found: dict[str, EvaluationTokens] = {}
        begin = 0
        for domain, each in self.info.evaluation.items():
            found[domain] = EvaluationTokens(
                each.num_bytes, each.num_tokens, rows[begin : begin + each.num_rows]
            )
            begin += each.num_rows
        return found

    def gather(self, names: Sequence[str], sources: NDArray[np.int64], rows: NDArray[np.int64]) -> Tokens:
        """Return ids [n, T+1]: row `rows[i]` of source `names[sources[i]]`, as `MixtureSampler.slots` gives them."""
        out = np.empty((len(rows), self.sequence_length + 1), self._store.dtype)
        readers = [self.sources[name].read_row for name in names]
        for source, row, into in zip(sources.tolist(), rows.tolist(), out, strict=True):
            readers[source](row, into)
        return out


class _LocalStore:
    """The files of one packed set as local files: where they lie, or as a copy fetched once per node."""

    def __init__(self, directory: UPath, info: PackedInfo, cache_directory: Path | None) -> None:
        self.dtype = info.dtype
        self._directory = directory
        self._hash = info.hash
        self._cache_directory = cache_directory

    def map(self, path: UPath, shard: ShardInfo) -> Tokens:
        """Map a file of ids, read-only. Raises UserError when it is missing, cut short or damaged on the way."""
        local = Path(str(path)) if is_local(path) else self._fetched(path, shard.sha256)
        try:
            num_bytes = local.stat().st_size
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing: delete {self._directory} and run pack_tokens again."
            ) from None
        if num_bytes != shard.num_tokens * self.dtype.itemsize:
            raise UserError(
                f"{path} has {num_bytes} bytes where its manifest says {shard.num_tokens * self.dtype.itemsize}: "
                f"delete {self._directory} and run pack_tokens again."
            )
        if not num_bytes:
            return np.empty(0, self.dtype)
        # A plain array over the map: slicing numpy's memmap class costs ten times as much.
        return np.asarray(np.memmap(local, self.dtype, mode="r"))

    def directory(self, path: UPath) -> Path:
        """Return a local directory with all files below a directory of the set."""
        if is_local(path):
            return Path(str(path))
        for name in sizes_below(path):
            self._fetched(path / name)
        return self._local_copy(path)

    def _local_copy(self, path: UPath) -> Path:
        return self._cache() / path.relative_to(self._directory).as_posix()

    def _fetched(self, path: UPath, sha256: str | None = None) -> Path:
        local = self._local_copy(path)
        if local.exists():
            return local
        local.parent.mkdir(parents=True, exist_ok=True)
        with _locked(local.parent / ".lock"):
            if not local.exists():
                _copy(path, local, sha256)
        return local

    def _cache(self) -> Path:
        # Private: tokens read from a directory that others can write to are not the tokens of the set.
        base = self._cache_directory or node_cache()
        return base / PACKED / self._hash


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between the processes of a node; a process that dies lets go of it."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _copy(remote: UPath, local: Path, sha256: str | None) -> None:
    temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}.tmp")
    try:
        download(remote, temporary)
        if sha256 is not None:
            with temporary.open("rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
            if found != sha256:
                raise UserError(f"{remote} is damaged: its SHA-256 is {found}, its manifest says {sha256}.")
        temporary.replace(local)
    except FileNotFoundError:
        raise UserError(
            f"{remote} is missing although its manifest is there: run pack_tokens again."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
