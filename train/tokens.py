"""A packed set on disk: token shards that are memory-mapped and read row by row, and what is known of them.

    packed/<name>/recipe.json                                  what was asked for
    packed/<name>/tokenizer/{tokenizer.json, ..., manifest.json}
    packed/<name>/sources/<source>/part-00000-of-00004.tokens   ids, uint16 or uint32, little-endian, no header
    packed/<name>/sources/<source>/part-00000-of-00004.counted  of a source with prompts: one byte a token, 1 where it counts
    packed/<name>/sources/<source>/part-00000-of-00004.parquet  its documents: document, num_tokens, num_bytes
    packed/<name>/sources/<source>/ledger/part-00000-of-00004.json  counts and hash; written last, so: this part is done
    packed/<name>/evaluation/{held_out.tokens, documents.parquet, ledger.json}  rows of all domains, one after the other
    packed/<name>/manifest.json                                 everything `PackedInfo` says

A source is one stream of tokens, documents in order, `[EOT, t1 .. tn]` each. Row i of sequence length T is
tokens[i T : i T + T + 1]: T inputs and, one further, T targets. Rows run across shards, so nothing is lost there.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from upath import UPath

from synth.identity import read_manifest
from synth.storage import list_names, read_parquet, study_path
from train.packed_files import PACKED, LocalStore, ShardInfo, Tokens
from train.record import Record

EVALUATION_FILE = "held_out.tokens"
EVALUATION_COUNTED_FILE = "held_out.counted"

Flags = NDArray[np.bool_]
"""Whether the loss counts the prediction of a token."""

FLAG = np.dtype(np.uint8)
"""Type of flags on disk, 0 or 1."""


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
    num_counted_tokens: int | None = None
    """Tokens whose prediction the loss counts, those of answers and the end-of-text tokens; null where it counts all."""
    counted_shards: tuple[ShardInfo, ...] = ()
    """The files of flags beside `shards`, one byte a token; () where the loss counts all."""


class EvaluationInfo(Record):
    """What a packed set knows of the evaluation rows of one held-out domain."""

    num_rows: int
    """Rows of sequence_length predicted tokens."""
    num_tokens: int
    """Predicted tokens that count: num_rows x sequence_length where there are no prompts."""
    num_bytes: int
    """UTF-8 bytes these tokens stand for; an end-of-text token stands for none."""
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
    evaluation_counted_shard: ShardInfo | None = None
    """The file of flags beside it, one byte a token; null where all predictions count."""
    domains_left_out: dict[str, str]
    """Held-out domains without an evaluation set, each with its reason."""

    @classmethod
    def read(cls, root: str, name: str) -> PackedInfo:
        """Read the description of a packed set. Raises IncompleteArtefact when it is missing or unfinished."""
        manifest = read_manifest(study_path(root, PACKED, name), "pack_tokens")
        return cls.model_validate({field: manifest[field] for field in cls.model_fields if field in manifest})

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
    counted: Flags | None = None
    """Which predictions count, [n, T]; None where all do."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the little-endian type that holds ids below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 65_535 else "<u4")


def shard_name(part: int, num_parts: int) -> str:
    """Return the stem of a shard's files, `part-00003-of-00012`."""
    return f"part-{part:05d}-of-{num_parts:05d}"


class SourceTokens:
    """One training source of a packed set: rows by number. Nothing is mapped or fetched before the first read."""

    def __init__(self, directory: UPath, info: SourceInfo, sequence_length: int, store: LocalStore) -> None:
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

    def read_flags(self, row: int, into: Flags) -> None:
        """Write which tokens of one row the loss counts into an array [T+1]; all of them where there are no prompts."""
        if not self.info.counted_shards:
            into[:] = True
            return
        begin = row * (self._row_length - 1)
        into[:] = self._across(self._flag_maps, begin, begin + self._row_length)

    def tokens(self, start: int, stop: int) -> Tokens:
        """Return the ids start .. stop-1 of the stream, across shards. Raises IndexError beyond its end."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} .. {stop} are not within 0 .. {self.num_tokens}")
        return self._across(self._maps, start, stop)

    def _across(self, maps: list[Tokens], start: int, stop: int) -> Tokens:
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, stop)
        pieces = [
            maps[shard][max(0, start - self._starts[shard]) : stop - self._starts[shard]]
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

    @functools.cached_property
    def _flag_maps(self) -> list[Tokens]:
        num_shards = len(self.info.shards)
        return [
            self._store.map(self._directory / f"{shard_name(number, num_shards)}.counted", shard, FLAG)
            for number, shard in enumerate(self.info.counted_shards)
        ]


class PackedSet:
    """A finished packed set, opened for reading. Pickles as its address, so it costs a worker nothing to receive."""

    def __init__(self, root: str, name: str, info: PackedInfo, cache_directory: Path | None) -> None:
        self.info = info
        self._address = (root, name, cache_directory)
        self._directory = study_path(root, PACKED, name)
        self._store = LocalStore(self._directory, info.dtype, info.hash, cache_directory)
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
        flags = self._evaluation_flags(rows)
        found: dict[str, EvaluationTokens] = {}
        begin = 0
        for domain, each in self.info.evaluation.items():
            own = slice(begin, begin + each.num_rows)
            found[domain] = EvaluationTokens(
                each.num_bytes, each.num_tokens, rows[own], None if flags is None else flags[own]
            )
            begin += each.num_rows
        return found

    def _evaluation_flags(self, rows: Tokens) -> Flags | None:
        shard = self.info.evaluation_counted_shard
        if shard is None:
            return None
        path = self._directory / "evaluation" / EVALUATION_COUNTED_FILE
        return in_whole_documents(
            rows, self._store.map(path, shard, FLAG).reshape(rows.shape).astype(bool), self.eot_id
        )

    def gather(self, names: Sequence[str], sources: NDArray[np.int64], rows: NDArray[np.int64]) -> Tokens:
        """Return ids [n, T+1]: row `rows[i]` of source `names[sources[i]]`, as `MixtureSampler.slots` gives them."""
        out = np.empty((len(rows), self.sequence_length + 1), self._store.dtype)
        readers = [self.sources[name].read_row for name in names]
        for source, row, into in zip(sources.tolist(), rows.tolist(), out, strict=True):
            readers[source](row, into)
        return out

    def counts_all(self, names: Sequence[str]) -> bool:
        """Return whether the loss counts every token of these sources: none has prompts."""
        return not any(self.info.sources[name].counted_shards for name in names)

    def gather_counted(
        self, names: Sequence[str], sources: NDArray[np.int64], rows: NDArray[np.int64], tokens: Tokens
    ) -> Flags:
        """Return which predictions of some rows count, [n, T]; `tokens` are these rows as `gather` gave them.

        In a source with prompts a document whose beginning lies in the row before does not count: what it answers is not
        there to be read.
        """
        flags = np.empty(tokens.shape, bool)
        readers = [self.sources[name].read_flags for name in names]
        for source, row, into in zip(sources.tolist(), rows.tolist(), flags, strict=True):
            readers[source](row, into)
        prompted = np.array([bool(self.info.sources[name].counted_shards) for name in names])[sources]
        counted = flags[:, 1:].copy()
        counted[prompted] = in_whole_documents(tokens[prompted], flags[prompted], self.eot_id)
        return counted


def in_whole_documents(rows: Tokens, flags: Flags, eot_id: int) -> Flags:
    """Return the flags [n, T] of the predicted tokens of rows [n, T+1], off where their document begins before the row."""
    begun: Flags = np.cumsum(rows[:, :-1] == eot_id, axis=1) > 0
    return flags[:, 1:] & begun
