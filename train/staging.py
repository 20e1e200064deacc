"""Directories on this node's disk that stand for directories in an object store, because DeepSpeed knows local paths alone.

A process that is killed cannot tidy up, so each directory is locked by the process that made it: the lock goes with the
process, and whoever stages next drops what nobody holds any more.
"""

from __future__ import annotations

import fcntl
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from upath import UPath

from synth.storage import is_local, patiently

PREFIX = "synthscale-staging-"
LOCK_FILE = "lock"


class Staging:
    """A fresh directory in this node's temporary space; a context manager that removes it."""

    def __init__(self) -> None:
        _drop_abandoned()
        self.path, self._lock = _locked_directory()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def upload(source: Path, target: UPath) -> None:
    """Copy a file to the object store. It is there whole or not at all."""
    patiently(target, lambda: target.fs.put_file(str(source), target.path))


def download(source: UPath, target: Path) -> None:
    """Copy a file of the object store to a local one. Raises FileNotFoundError when it is not there."""
    patiently(source, lambda: source.fs.get_file(source.path, str(target)))


def upload_tree(source: Path, target: UPath) -> None:
    """Copy all files below a local directory to the object store, several at once."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    copies = [(target / path.relative_to(source).as_posix()).path for path in files]
    patiently(target, lambda: target.fs.put([str(path) for path in files], copies))


def download_tree(source: UPath, target: Path) -> None:
    """Copy all files below a directory of the object store to a local one, several at once."""
    found = sizes_below(source)
    copies = [target / name for name in found]
    for directory in {copy.parent for copy in copies}:
        directory.mkdir(parents=True, exist_ok=True)
    originals = [(source / name).path for name in found]
    patiently(source, lambda: source.fs.get(originals, [str(copy) for copy in copies]))


def sizes_below(directory: UPath) -> dict[str, int]:
    """Return the size in bytes of every file below a directory of the object store, by its path from there; in one question,
    not one a file."""
    found = patiently(directory, lambda: directory.fs.find(directory.path, detail=True))
    return {posixpath.relpath(path, directory.path): int(info["size"]) for path, info in found.items()}


@contextmanager
def local_copy(directory: UPath) -> Iterator[Path]:
    """Yield a directory as a local one: itself, or a copy on this node that goes afterwards."""
    if is_local(directory):
        yield Path(str(directory))
        return
    with Staging() as staged:
        copy = staged / directory.name
        download_tree(directory, copy)
        yield copy


def _locked_directory() -> tuple[Path, TextIO]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = (path / LOCK_FILE).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (path / LOCK_FILE).exists():
            return path, lock
        lock.close()  # another process that stages took it for abandoned before the lock was on it


def _drop_abandoned() -> None:
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with (left / LOCK_FILE).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        except OSError:  # held by its process, somebody else's, or made this very moment
            continue
