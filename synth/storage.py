"""Files of a study, on a local disk or an object store, written so that a kill never leaves a half file that looks whole.

Every path is a `upath.UPath`: `pathlib` on a local disk, fsspec on `s3://`, `gs://`, `memory://`. A local write
goes to a temporary name in the same directory, is flushed, then renamed; an object-store write is one PUT, which
is atomic by the store's own contract. A store that fails is asked again for about a minute.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from synth.errors import UserError

MARKER = "manifest.json"
"""The file written last into every artefact directory: with it the artefact is finished, without it resumable."""
TEMPORARY_SUFFIX = ".tmp"
"""Ends the hidden name a local file has until it is whole."""


STORE_RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Pauses before an object store that fails is asked again; its own client has tried several times by then, too."""

_STORE_CLIENTS = frozenset(
    {"botocore", "aiobotocore", "aiohttp", "urllib3", "requests", "gcsfs", "google", "azure"}
)
"""Packages whose exceptions mean that a store does not answer, whether or not they are OSErrors."""

_STORE_TROUBLE = frozenset({errno.EIO, errno.EREMOTEIO, errno.EBUSY})
"""What fsspec makes of a store's own "internal error", "slow down" and "service unavailable"."""

_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"})
"""Names of their errors that no waiting mends."""

_T = TypeVar("_T")
Item = TypeVar("Item")
Result = TypeVar("Result")


class StoreAway(OSError):
    """An object store that does not answer, or lets nobody in."""


def study_path(root: str, *parts: str) -> UPath:
    """Return the path of something under a study root; `root` may be local or any URL fsspec knows."""
    path = UPath(root)
    if path.protocol in ("", "file", "local"):
        path = UPath(os.path.abspath(os.path.expanduser(path.path)))
    else:
        # fsspec keeps listings by default, and would not see what another process wrote after the first one.
        path = UPath(root, use_listings_cache=False)
    return path.joinpath(*parts) if parts else path


def check_credentials(root: str) -> None:
    """Raise UserError when a root in Google's store has nobody's credentials to be written with.

    Its client would go on as nobody, and ask for minutes before it says that it may not write.
    """
    if not root.startswith(("gs://", "gcs://")) or "STORAGE_EMULATOR_HOST" in os.environ:
        return
    if any("token" in fsspec.config.conf.get(protocol, {}) for protocol in ("gs", "gcs")):
        return
    import google.auth
    import google.auth.exceptions

    try:
        google.auth.default()
    except google.auth.exceptions.DefaultCredentialsError:
        raise UserError(
            f"root = {root!r} needs Google's credentials and there are none here: run `gcloud auth application-default login`, set "
            "GOOGLE_APPLICATION_CREDENTIALS to a key file, or give the machine a service account."
        ) from None


def node_cache(*parts: str) -> Path:
    """Return a path for copies of remote files in this node's temporary directory, below a directory that is this user's alone.

    Whoever can write there decides what a job reads. Raises UserError when somebody else has taken its name.
    """
    base = Path(tempfile.gettempdir()) / f"synthscale-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = base.lstat()  # a link of somebody else's would lead anywhere
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise UserError(
            f"{base} belongs to another user: remove it, or set TMPDIR to a directory of your own."
        )
    if status.st_mode & 0o077:
        base.chmod(0o700)
    return base.joinpath(*parts)


def is_local(path: UPath) -> bool:
    """Return whether the path lies on a file system of this machine."""
    return isinstance(path, Path)


def patiently(path: UPath, action: Callable[[], _T]) -> _T:
    """Return what reading or writing a path returns; on an object store, after more attempts if it takes them.

    Raises StoreAway when the store does not answer at last or wants credentials, and at once whatever another attempt
    would not change.
    """
    if is_local(path):
        return action()
    pauses = iter(STORE_RETRY_SECONDS)
    while True:
        try:
            return action()
        except Exception as error:
            kind = type(error).__name__
            if kind in _NO_CREDENTIALS:
                raise StoreAway(
                    f"the store asks for credentials and there are none here: {kind}: {error}"
                ) from error
            if not _may_pass(error):
                raise
            if (pause := next(pauses, None)) is None:
                raise StoreAway(f"the store does not answer: {kind}: {error}") from error
        time.sleep(pause)


def _may_pass(error: Exception) -> bool:
    """Return whether an error says that a store is not there at the moment, not that a file is missing or damaged."""
    if type(error).__module__.split(".")[0] in _STORE_CLIENTS:
        return True
    return isinstance(error, (ConnectionError, TimeoutError)) or (
        isinstance(error, OSError) and error.errno in _STORE_TROUBLE
    )


def exists(path: UPath) -> bool:
    """Return whether there is a file or directory at a path."""
    return patiently(path, path.exists)


def write_bytes_atomic(path: UPath, data: bytes) -> None:
    """Write a whole file or nothing. Raises OSError when the disk is full or the store cannot be written."""
    if not is_local(path):
        patiently(path, lambda: path.write_bytes(data))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporaries(directory: UPath) -> None:
    """Remove what writers killed in the middle of a file left anywhere below; nobody may be writing there still."""
    if is_local(directory):
        for leftover in list(directory.rglob(f".*{TEMPORARY_SUFFIX}")):
            leftover.unlink(missing_ok=True)


def write_text_atomic(path: UPath, text: str) -> None:
    """Write a whole UTF-8 text file or nothing."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: UPath, value: Any) -> None:
    """Write a whole JSON file or nothing: sorted keys, two spaces, NaN refused, so equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def read_bytes(path: UPath) -> bytes:
    """Read a whole file. Raises FileNotFoundError when it is not there."""
    return patiently(path, path.read_bytes)


def read_json(path: UPath) -> Any:
    """Read a JSON file. Raises FileNotFoundError when it is not there."""
    return json.loads(patiently(path, lambda: path.read_text(encoding="utf-8")))


def write_parquet_atomic(path: UPath, table: pa.Table) -> int:
    """Write a whole Parquet file (zstd, a checksum on every page) or nothing; return its size in bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    data = buffer.getvalue()
    write_bytes_atomic(path, data)
    return len(data)


def read_parquet(path: UPath, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or some of its columns.

    Raises pyarrow.ArrowInvalid when it is truncated, OSError when a page is not what was written or the store does not
    answer.
    """

    def read() -> pa.Table:
        with path.open("rb") as handle:
            return pq.read_table(handle, columns=columns, page_checksum_verification=True)

    return patiently(path, read)


def remove_file(path: UPath) -> None:
    """Remove a file if it is there."""
    patiently(path, lambda: path.unlink(missing_ok=True))


def remove_tree(directory: UPath) -> None:
    """Remove a directory and all below it, wherever it lies, if it is there."""
    if is_local(directory):
        shutil.rmtree(str(directory), ignore_errors=True)
    elif exists(directory):
        with contextlib.suppress(FileNotFoundError):  # gone at an attempt whose answer did not arrive
            patiently(directory, lambda: directory.fs.rm(directory.path, recursive=True))


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int = 16) -> Iterator[Result]:
    """Yield `work(item)` of every item, in order; threads are some items ahead, and never more than a few results wait."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def list_names(directory: UPath, suffix: str = "") -> list[str]:
    """Return the sorted names in a directory that end in `suffix`, temporary files left out; [] if there is none."""
    try:
        names = patiently(directory, lambda: [child.name for child in directory.iterdir()])
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))


def list_directories(directory: UPath) -> list[str]:
    """Return the sorted names of the directories in a directory, hidden ones left out; [] if there is none."""
    try:
        names = patiently(directory, lambda: [child.name for child in directory.iterdir() if child.is_dir()])
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name and not name.startswith("."))
