"""The files of a packed set as local files, mapped into memory: where they lie, or copied once per node."""

from __future__ import annotations

import fcntl
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from synth.errors import UserError
from synth.storage import is_local, node_cache
from train.record import Record
from train.staging import download, sizes_below

PACKED = "packed"

Tokens = NDArray[np.unsignedinteger[Any]]
"""Token ids, uint16 or uint32 by the size of the vocabulary."""


class ShardInfo(Record):
    """One file of token ids."""

    num_tokens: int
    """Ids in the file."""
    sha256: str
    """SHA-256 of its bytes, hexadecimal."""


class LocalStore:
    """The files of one packed set as local files: where they lie, or as a copy fetched once per node."""

    def __init__(
        self, directory: UPath, dtype: np.dtype[Any], packed_hash: str, cache_directory: Path | None
    ) -> None:
        """Take the set's directory, the type of its ids, its hash (the name of a copy) and where copies go."""
        self.dtype = dtype
        self._directory = directory
        self._hash = packed_hash
        self._cache_directory = cache_directory

    def map(self, path: UPath, shard: ShardInfo, dtype: np.dtype[Any] | None = None) -> Tokens:
        """Map a file of ids, or of another type, read-only. Raises UserError when it is missing, cut short or damaged on the way."""
        local = Path(str(path)) if is_local(path) else self._fetched(path, shard.sha256)
        try:
            num_bytes = local.stat().st_size
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing: delete {self._directory} and run pack_tokens again."
            ) from None
        dtype = dtype or self.dtype
        if num_bytes != shard.num_tokens * dtype.itemsize:
            raise UserError(
                f"{path} has {num_bytes} bytes where its manifest says {shard.num_tokens * dtype.itemsize}: "
                f"delete {self._directory} and run pack_tokens again."
            )
        if not num_bytes:
            return np.empty(0, dtype)
        # A plain array over the map: slicing numpy's memmap class costs ten times as much.
        return np.asarray(np.memmap(local, dtype, mode="r"))

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
