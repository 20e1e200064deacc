"""What a corpus is made from: the inputs of every source, listed, fingerprinted and cut into units of reading.

A unit is what one task reads: some files of one package, some files of one source, one shard of a hub dataset, or
some parts of another corpus. Units follow from the listing alone, never from the size of the cluster.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import fsspec

from synth.config import CorpusConfig, DocstringSource, FileSource, HuggingFaceSource
from synth.docstrings import PythonFile, list_package, package_version
from synth.errors import UserError
from synth.identity import content_hash

FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".txt": "text", ".text": "text",
}  # fmt: skip
"""File ending -> format, a compression ending (.gz, .zst, .bz2) taken off first. `.json` holds one value a line."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""File ending -> name of the compression in pyarrow."""

UNIT_BYTES = 64 * 2**20
"""Small files are read together until they reach this many bytes on disk, so a task is worth its start."""
UNIT_FILES = 1000
PACKAGE_UNIT_BYTES = 2 * 2**20
"""Python source is parsed at about 3 MB/s and core, far slower than text is read."""

_SIGNED_URL = re.compile(r"[?&](x-amz-signature|x-goog-signature|signature|sig|token)=", re.IGNORECASE)


class InputFile(NamedTuple):
    """One file of a file source."""

    url: str
    """What fsspec opens."""
    label: str
    """Name that goes into the `source` column: the URL, or the local path from the listed directory's name on."""
    num_bytes: int | None
    version: str
    """ETag or modification time, whatever the file system knows; empty when it knows neither."""


@dataclass(frozen=True)
class PackageUnit:
    """Some files of an installed package."""

    package: str
    files: tuple[PythonFile, ...]

    @property
    def num_pieces(self) -> int:
        """What it holds of the source's listing: files, shards, parts."""
        return len(self.files)


@dataclass(frozen=True)
class FileUnit:
    """Some files of a file source."""

    files: tuple[InputFile, ...]

    @property
    def num_pieces(self) -> int:
        """As of a PackageUnit."""
        return len(self.files)


@dataclass(frozen=True)
class ShardUnit:
    """One of `num_shards` shards of a hub dataset at a commit."""

    revision: str
    index: int
    num_shards: int

    @property
    def num_pieces(self) -> int:
        """As of a PackageUnit."""
        return 1


@dataclass(frozen=True)
class CorpusUnit:
    """Some parts of a finished corpus under the same root, of which only the ids are read."""

    corpus: str
    parts: tuple[str, ...]
    """Paths relative to the corpus directory."""

    @property
    def num_pieces(self) -> int:
        """As of a PackageUnit."""
        return len(self.parts)


Unit = PackageUnit | FileUnit | ShardUnit | CorpusUnit


@dataclass(frozen=True)
class SourceInputs:
    """One source of a corpus, listed."""

    units: tuple[Unit, ...]
    parents: dict[str, str]
    """What this source was when it was listed, role -> fingerprint: part of the corpus's identity."""
    num_files: int
    num_bytes: int
    """Bytes on disk of the files whose size is known."""
    text_bytes: int
    """Rough estimate of the text in it, which only sizes the shuffle."""
    warnings: tuple[str, ...] = ()
    listing: list[dict[str, Any]] = field(default_factory=list)
    """One entry a file, for the record: path, bytes, version."""


def list_source(index: int, config: CorpusConfig) -> SourceInputs:
    """Return the inputs of `config.sources[index]`. Raises UserError naming the field when there is none to read."""
    source = config.sources[index]
    where = f"sources.{index}"
    if isinstance(source, DocstringSource):
        return _list_packages(where, source)
    if isinstance(source, FileSource):
        return _list_files(where, source)
    return _list_dataset(where, source)


def file_format(source: FileSource, url: str) -> str | None:
    """Return the format a file is read in: the source's, or the one its ending says; None when it says none."""
    return source.format if source.format != "auto" else FORMATS.get(_endings(url)[0])


def compression_of(url: str) -> str | None:
    """Return pyarrow's name of the compression a file's ending says, or None."""
    return _endings(url)[1]


def _endings(url: str) -> tuple[str, str | None]:
    path = PurePosixPath((urlsplit(url).path if "://" in url else url).lower())
    compression = COMPRESSIONS.get(path.suffix)
    return (PurePosixPath(path.stem).suffix if compression else path.suffix), compression


# --- installed packages -----------------------------------------------------------------------------------------


def _list_packages(where: str, source: DocstringSource) -> SourceInputs:
    units: list[Unit] = []
    parents: dict[str, str] = {}
    num_bytes = 0
    for position, package in enumerate(source.packages):
        try:
            files = list_package(package)
        except UserError as error:
            raise UserError(f"{where}.packages.{position}: {error}") from None
        package_bytes = sum(file.num_bytes for file in files)
        # The bytes tell a locally edited package from the released one of the same version.
        parents[f"{where}.{package}"] = (
            f"{package_version(package)}, {len(files)} files, {package_bytes} bytes of Python source"
        )
        groups = _grouped(((file, file.num_bytes) for file in files), PACKAGE_UNIT_BYTES)
        units += [PackageUnit(package, group) for group in groups]
        num_bytes += package_bytes
    num_files = sum(len(unit.files) for unit in units if isinstance(unit, PackageUnit))
    listing = [{"package": role.removeprefix(f"{where}."), "version": parents[role]} for role in parents]
    return SourceInputs(tuple(units), parents, num_files, num_bytes, num_bytes // 3, listing=listing)


# --- files ------------------------------------------------------------------------------------------------------


def _list_files(where: str, source: FileSource) -> SourceInputs:
    files: dict[str, InputFile] = {}
    warnings: list[str] = []
    for position, pattern in enumerate(source.paths):
        name = f"{where}.paths.{position}"
        _refuse_secrets(name, pattern)
        found, single = _find(name, pattern)
        readable = [file for file in found if file_format(source, file.url)]
        if not readable:
            raise UserError(_nothing_to_read(name, pattern, found))
        if len(readable) < len(found) and not single:
            skipped = next(file.label for file in found if not file_format(source, file.url))
            warnings.append(
                f"{name}: {len(found) - len(readable)} files of unknown ending are not read ({skipped})"
            )
        files.update((file.url, file) for file in readable)
    ordered = [files[url] for url in sorted(files)]
    groups = _grouped(((file, file.num_bytes or UNIT_BYTES) for file in ordered), UNIT_BYTES)
    num_bytes = sum(file.num_bytes or 0 for file in ordered)
    listing = [{"path": file.label, "bytes": file.num_bytes, "version": file.version} for file in ordered]
    fingerprint = f"{len(ordered)} files, {num_bytes} bytes, listing {content_hash(listing)}"
    return SourceInputs(
        units=tuple(FileUnit(group) for group in groups),
        parents={where: fingerprint},
        num_files=len(ordered),
        num_bytes=num_bytes,
        text_bytes=sum(_text_bytes(source, file) for file in ordered),
        warnings=tuple(warnings),
        listing=listing,
    )


def _find(name: str, pattern: str) -> tuple[list[InputFile], bool]:
    """Return the files a path stands for, and whether it names a single file.

    Of a directory or a pattern, files and directories below it that begin with a dot or an underscore are left out, as
    Spark and pyarrow do: they are marks, and unfinished work, of other tools.
    """
    named = False
    try:
        file_system, path = fsspec.core.url_to_fs(pattern)
        if fsspec.core.has_magic(path):
            infos = file_system.glob(path, detail=True)
            base = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        elif "http" not in _protocols(file_system) and file_system.isdir(path):
            infos = file_system.find(path, detail=True)  # a web server has no directories to list
            base = path
        else:
            infos, named = {path: file_system.info(path)}, True
            base = path.rpartition("/")[0]
    except FileNotFoundError:
        raise UserError(f"{name} = {pattern!r} is not there: correct the path.") from None
    except Exception as error:  # every fsspec backend raises its own library's errors
        raise UserError(
            f"{name} = {pattern!r} cannot be listed ({type(error).__name__}: {error})."
        ) from error
    found = [
        _input_file(file_system, base, path, info)
        for path, info in infos.items()
        if info.get("type") != "directory" and (named or not _is_hidden(path.removeprefix(base)))
    ]
    return found, len(infos) == 1


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _input_file(file_system: Any, base: str, path: str, info: dict[str, Any]) -> InputFile:
    version = next(
        (info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if info.get(key)), ""
    )
    if "file" in _protocols(file_system):
        url = path
        label = PurePosixPath(os.path.relpath(path, os.path.dirname(base) or "/")).as_posix()
    else:
        url = file_system.unstrip_protocol(path)
        label = url.split("?")[0]
    return InputFile(url, label, info.get("size"), str(version))


def _protocols(file_system: Any) -> tuple[str, ...]:
    protocol = file_system.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _nothing_to_read(name: str, pattern: str, found: list[InputFile]) -> str:
    if not found:
        return f"{name} = {pattern!r} matches no file: correct the path."
    endings = ", ".join(sorted(FORMATS))
    return (
        f"{name} = {pattern!r} has no file of a known ending ({endings}, also with {', '.join(COMPRESSIONS)}), "
        f"only such as {found[0].label!r}: set the source's format."
    )


def _refuse_secrets(name: str, url: str) -> None:
    # The paths are part of the recipe, which is written into the corpus and read by everyone who uses it.
    if _SIGNED_URL.search(url) or urlsplit(url).password:
        raise UserError(
            f"{name} carries a credential, which would be written into the manifest: give the plain URL and put the "
            "credential into the environment or the file system's own configuration."
        )


def _text_bytes(source: FileSource, file: InputFile) -> int:
    # Web text shrinks 3- to 4-fold in gzip, zstd and zstd Parquet.
    packed = file_format(source, file.url) == "parquet" or compression_of(file.url) is not None
    return (file.num_bytes or UNIT_BYTES) * (4 if packed else 1)


# --- Hugging Face datasets --------------------------------------------------------------------------------------


def open_dataset(source: HuggingFaceSource, revision: str) -> Any:
    """Return the dataset as a `datasets.IterableDataset`, nothing downloaded. Code of a dataset is never run."""
    import datasets

    local = os.path.isdir(source.dataset)
    return datasets.load_dataset(
        source.dataset,
        source.subset,
        split=source.split,
        revision=None if local else revision,
        streaming=True,
    )


def _list_dataset(where: str, source: HuggingFaceSource) -> SourceInputs:
    local = os.path.isdir(source.dataset)
    try:
        if local:
            revision, num_bytes, fingerprint = "local", *_directory_fingerprint(source.dataset)
        else:
            revision, num_bytes = _hub_commit(source), 0
            fingerprint = f"commit {revision}"
        dataset = open_dataset(source, revision)
    except Exception as error:  # the hub client, datasets and its readers each raise their own errors
        raise UserError(
            f"{where}.dataset = {source.dataset!r} cannot be opened ({type(error).__name__}: {error})."
        ) from error
    for key in ("text_field", "domain_field"):
        column = getattr(source, key)
        if column is not None and dataset.column_names is not None and column not in dataset.column_names:
            raise UserError(
                f"{where}.{key} = {column!r} is not a column of {source.dataset!r}: "
                f"choose one of {', '.join(dataset.column_names)}."
            )
    num_shards = dataset.num_shards
    units = tuple(ShardUnit(revision, index, num_shards) for index in range(num_shards))
    return SourceInputs(
        units=units,
        parents={where: fingerprint},
        num_files=num_shards,
        num_bytes=num_bytes,
        text_bytes=4 * (num_bytes or num_shards * UNIT_BYTES),
        listing=[{"dataset": source.dataset, "revision": revision, "shards": num_shards}],
    )


def _hub_commit(source: HuggingFaceSource) -> str:
    import huggingface_hub

    return str(huggingface_hub.HfApi().dataset_info(source.dataset, revision=source.revision).sha)


def _directory_fingerprint(directory: str) -> tuple[int, str]:
    found, _ = _find("dataset", directory)
    listing = sorted([file.label, file.num_bytes, file.version] for file in found)
    num_bytes = sum(file.num_bytes or 0 for file in found)
    return num_bytes, f"{len(found)} files, {num_bytes} bytes, listing {content_hash(listing)}"


# --- units ------------------------------------------------------------------------------------------------------

_Item = TypeVar("_Item")


def _grouped(sized: Iterable[tuple[_Item, int]], group_bytes: int) -> Iterator[tuple[_Item, ...]]:
    """Cut a sequence of items with sizes into runs of at most `group_bytes` (one larger item makes its own run)."""
    group: list[_Item] = []
    total = 0
    for item, size in sized:
        if group and (total + size > group_bytes or len(group) == UNIT_FILES):
            yield tuple(group)
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield tuple(group)
