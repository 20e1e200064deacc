"""From inputs to rows: each kind of unit is read as a stream, and a broken input is one sentence that names it.

A row that is not text is yielded as it is found, so that its loss is counted; only an input that cannot be read on
(corrupt, cut off, not what its ending says) stops the job, because the rows behind the break cannot be counted.
"""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from synth.config import CorpusSource, DocstringSource, FileSource, HuggingFaceSource
from synth.docstrings import is_english_prose, read_docstrings
from synth.documents import Row
from synth.errors import UserError
from synth.inputs import (
    FileUnit,
    InputFile,
    PackageUnit,
    ShardUnit,
    Unit,
    compression_of,
    file_format,
    open_dataset,
)

ROWS_PER_BATCH = 512
"""Parquet rows decoded at a time: a batch of long documents still fits in memory."""


def read_rows(where: str, source: CorpusSource, unit: Unit) -> Iterator[Row]:
    """Yield every row of a unit in a fixed order. `where` is the source's place in the config (`sources.0`).

    Raises UserError naming the file when an input is corrupt or cut off, or naming the field when it has no such
    column.
    """
    if isinstance(source, DocstringSource) and isinstance(unit, PackageUnit):
        return _read_package(unit)
    if isinstance(source, FileSource) and isinstance(unit, FileUnit):
        return _read_files(where, source, unit)
    if isinstance(source, HuggingFaceSource) and isinstance(unit, ShardUnit):
        return _read_shard(where, source, unit)
    raise TypeError(f"a {type(unit).__name__} is not a unit of a {type(source).__name__}")


def _read_package(unit: PackageUnit) -> Iterator[Row]:
    reason: str | None
    for docstring in read_docstrings(unit.package, unit.files):
        if docstring.text is None:
            reason = "unparsable_file"
        else:
            reason = None if is_english_prose(docstring.text) else "not_prose"
        yield Row(docstring.text, unit.package, docstring.source, reason)


def _read_files(where: str, source: FileSource, unit: FileUnit) -> Iterator[Row]:
    readers = {"parquet": _read_parquet, "jsonl": _read_jsonl, "text": _read_text}
    for file in unit.files:
        reader = readers[file_format(source, file.url) or "text"]
        with _one_sentence(file.label):
            yield from reader(where, source, file)


@contextlib.contextmanager
def _one_sentence(label: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{label} cannot be read to its end ({reason}): replace the file or leave it out."
        ) from error


@contextlib.contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    """Open a file, decompressed by its ending. pyarrow notices a stream that is cut off; zstandard's reader does not."""
    compression = compression_of(file.url)
    if compression is not None and file.num_bytes == 0:
        raise EOFError("it is empty, which no compressed file is")
    with fsspec.open(file.url, "rb") as raw:
        if compression is None:
            yield raw
        else:
            with pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression) as stream:
                yield io.BufferedReader(stream, 2**20)


def _read_text(where: str, source: FileSource, file: InputFile) -> Iterator[Row]:
    with _opened(file) as stream:
        yield Row(stream.read(), source.domain, file.label)


def _read_jsonl(where: str, source: FileSource, file: InputFile) -> Iterator[Row]:
    keys: list[str] | None = None
    found_text = False
    with _opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not content.strip():
                continue
            try:
                value = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{file.label} is not JSON in line {number} ({error}): replace the file (it may be cut off) or leave it out."
                ) from None
            place = f"{file.label}#{number}"
            if isinstance(value, dict):
                keys = keys or list(value)
                found_text = found_text or source.text_field in value
                yield Row(value.get(source.text_field), _domain(source, value), place)
            else:
                yield Row(None, source.domain, place, "not_an_object")
    if keys is not None and not found_text:
        raise _no_such_column(f"{where}.text_field", source.text_field, file.label, keys)


def _read_parquet(where: str, source: FileSource, file: InputFile) -> Iterator[Row]:
    with _opened(file) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as parquet:
        columns = _parquet_columns(where, source, file, parquet.schema_arrow)
        number = 0
        for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=columns):
            texts = _undecoded(batch.column(source.text_field))
            domains = (
                batch.column(source.domain_field).to_pylist() if source.domain_field else [None] * len(texts)
            )
            for text, domain in zip(texts, domains, strict=True):
                number += 1
                yield Row(text, source.domain if domain is None else str(domain), f"{file.label}#{number}")


def _parquet_columns(where: str, source: FileSource, file: InputFile, schema: pa.Schema) -> list[str]:
    columns = [source.text_field] + ([source.domain_field] if source.domain_field else [])
    for field, column in zip(("text_field", "domain_field"), columns, strict=False):
        if column not in schema.names:
            raise _no_such_column(f"{where}.{field}", column, file.label, schema.names)
    return list(dict.fromkeys(columns))


def _no_such_column(field: str, column: str, label: str, columns: list[str]) -> UserError:
    return UserError(f"{field} = {column!r} is not a column of {label}: choose one of {', '.join(columns)}.")


def _undecoded(column: pa.Array) -> list[Any]:
    """Return strings as their bytes, so that one text that is not UTF-8 costs its row and not its file."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if (
        pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
        or pa.types.is_string_view(column.type)
    ):
        column = column.cast(pa.large_binary())
    values: list[Any] = column.to_pylist()
    return values


def _read_shard(where: str, source: HuggingFaceSource, unit: ShardUnit) -> Iterator[Row]:
    label = (
        f"{source.dataset.rstrip('/').rpartition('/')[2]}/{source.split}-{unit.index}-of-{unit.num_shards}"
    )
    with _one_sentence(label):
        shard = open_dataset(source, unit.revision).shard(num_shards=unit.num_shards, index=unit.index)
        for number, value in enumerate(shard, start=1):
            yield Row(value.get(source.text_field), _domain(source, value), f"{label}#{number}")


def _domain(source: FileSource | HuggingFaceSource, value: dict[str, Any]) -> str:
    found = value.get(source.domain_field) if source.domain_field else None
    return source.domain if found is None else str(found)
