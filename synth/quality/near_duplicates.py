"""Near-duplicate answers of a synthetic set, found without holding the set in memory.

MinHash with the parameters of FineWeb (Penedo et al. 2024, arXiv 2406.17557, 3.4): sets of word 5-grams, 112 hash
functions in 14 bands of 8. Two answers of Jaccard similarity s share a band with probability 1 - (1 - s^8)^14: 0.21 at
0.6, 0.77 at 0.75, 0.92 at 0.8, 0.999 at 0.9. An answer is a near-duplicate when an earlier one shares a band with it.

Every part leaves its answers' band hashes beside it when it is committed. When all parts are there, the set is gone
through band by band: about 80 bytes for each kept row at the peak, whatever the length of the texts. No row is
dropped or changed: what was found stands in files of its own and in the counts.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from upath import UPath

from synth.parts import part_name
from synth.progress import Progress
from synth.quality.decontamination import ngram_hashes
from synth.quality.verdict import words_of
from synth.storage import in_order, read_parquet, write_parquet_atomic

Result = TypeVar("Result")

SHINGLE_WORDS = 5
BANDS, ROWS_PER_BAND = 14, 8
SEED = 1

TOLD_EVERY = 1000
"""Files after which a line says how far it is."""

FINGERPRINTS = "fingerprints"
NEAR_DUPLICATES = "near_duplicates"

KEY = ("doc_id", "chunk", "recipe", "sample")

NEAR_DUPLICATE_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("first_part", pa.int32(), nullable=False),
        pa.field("first_row", pa.int32(), nullable=False),
    ]
)
"""Columns of `near_duplicates/part-*.parquet`: a kept row by its number in the part and by its key, and the earliest row
of the set that shares a band with it."""

_BAND_NAMES = [f"band_{band:02d}" for band in range(BANDS)]
_FINGERPRINT_SCHEMA = pa.schema(
    [pa.field("row", pa.int32(), nullable=False)]
    + [pa.field(name, pa.uint64(), nullable=False) for name in _BAND_NAMES]
)


def fingerprint(text: str) -> NDArray[np.uint64]:
    """Return the band hashes of a text, [BANDS]; texts shorter than a shingle count as one shingle."""
    from datasketch import MinHash

    words = words_of(text)
    shingles = ngram_hashes(words, min(SHINGLE_WORDS, max(1, len(words)))) & np.uint64(0xFFFFFFFF)
    sketch = MinHash(
        BANDS * ROWS_PER_BAND, seed=SEED, hashfunc=int, scheme="affine32", permutations=_permutations()
    )
    if len(shingles):
        sketch.update_batch(np.unique(shingles).tolist())
    bands = np.asarray(sketch.hashvalues, np.uint64).reshape(BANDS, ROWS_PER_BAND)
    mixed = np.zeros(BANDS, np.uint64)
    for column in bands.T:  # arithmetic is modulo 2**64
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(31)
    return mixed


_known: list[Any] = []


def _permutations() -> Any:
    """Return the hash functions, which datasketch would else draw anew for every text."""
    if not _known:
        from datasketch import MinHash

        _known.append(MinHash(BANDS * ROWS_PER_BAND, seed=SEED).permutations)
    return _known[0]


def write_fingerprints(directory: UPath, part: int, num_parts: int, table: pa.Table) -> None:
    """Write the band hashes of the kept rows of a part, which come before its ledger entry."""
    kept = np.flatnonzero(table["keep"].to_numpy(zero_copy_only=False))
    texts = table["text"].take(pa.array(kept)).to_pylist()
    hashes = np.array([fingerprint(text) for text in texts], np.uint64).reshape(len(texts), BANDS)
    columns = [pa.array(kept, pa.int32()), *(pa.array(hashes[:, band]) for band in range(BANDS))]
    write_parquet_atomic(
        directory / FINGERPRINTS / part_name(part, num_parts),
        pa.table(columns, schema=_FINGERPRINT_SCHEMA),
    )


def _first_of_equals(
    fingerprints: Sequence[UPath],
) -> tuple[list[NDArray[np.int32]], NDArray[np.int64]]:
    """Return the kept rows of every part, and of all of them in one line the first one each shares a band with.

    Every file is read once, and its bands wait in a local file each: in memory they would take 14 times as much.
    """
    rows: list[NDArray[np.int32]] = []
    with ExitStack() as stack:
        bands = {name: stack.enter_context(tempfile.TemporaryFile()) for name in _BAND_NAMES}
        tables = in_order(lambda path: read_parquet(path, ["row", *_BAND_NAMES]), fingerprints)
        for table in _told("fingerprints read", tables, len(fingerprints)):
            rows.append(table["row"].to_numpy())
            for name, file in bands.items():
                file.write(table[name].to_numpy().tobytes())
        first = np.arange(sum(map(len, rows)), dtype=np.int64)
        for file in bands.values():
            file.seek(0)
            _, earliest, inverse = np.unique(
                np.fromfile(file, np.uint64), return_index=True, return_inverse=True
            )
            np.minimum(first, earliest[inverse], out=first)
    return rows, first


def _told(what: str, results: Iterable[Result], total: int) -> Iterator[Result]:
    """Yield results, and say once in a thousand how far they are."""
    progress = Progress(f"rephrase_corpus: {what}", total, "parts")
    for number, result in enumerate(results, 1):
        if number % TOLD_EVERY == 0:
            progress.set(number)
        yield result


def find_near_duplicates(directory: UPath, parts: Sequence[UPath]) -> dict[str, Any]:
    """Write `near_duplicates/part-*.parquet` for every part; return the counts, in all and by recipe.

    Deterministic: the first of equals, by part and row, is no duplicate. Memory: about 80 bytes for each kept row.
    """
    rows, first = _first_of_equals([directory / FINGERPRINTS / part.name for part in parts])
    starts = np.concatenate([[0], np.cumsum([len(each) for each in rows])]).astype(np.int64)

    def write(at: int) -> list[str]:
        part, mine = parts[at], np.arange(starts[at], starts[at + 1])
        flagged = mine[first[mine] < mine]
        origin = np.searchsorted(starts, first[flagged], side="right") - 1
        numbers = rows[at][flagged - starts[at]]
        keys = read_parquet(part, list(KEY)).take(pa.array(numbers))
        origin_rows = [rows[p][first[f] - starts[p]] for p, f in zip(origin, flagged, strict=True)]
        columns = [pa.array(numbers, pa.int32()), *(keys[name].combine_chunks() for name in KEY),
                   pa.array(origin, pa.int32()), pa.array(origin_rows, pa.int32())]  # fmt: skip
        write_parquet_atomic(
            directory / NEAR_DUPLICATES / part.name, pa.table(columns, schema=NEAR_DUPLICATE_SCHEMA)
        )
        recipes: list[str] = keys["recipe"].to_pylist()
        return recipes

    found: Counter[str] = Counter()
    for recipes in _told("near duplicates written", in_order(write, range(len(parts))), len(parts)):
        found.update(recipes)
    return {
        "near_duplicates": found.total(),
        "near_duplicates_by_recipe": dict(sorted(found.items())),
        "near_duplicate_parameters": {
            "shingle_words": SHINGLE_WORDS, "bands": BANDS, "rows_per_band": ROWS_PER_BAND, "seed": SEED,
        },
    }  # fmt: skip
