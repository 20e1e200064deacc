"""Near-duplicates: found across parts, the same whatever the order, nothing dropped."""

import numpy as np
import pyarrow as pa
import pytest

from synth.quality.near_duplicates import (
    BANDS,
    NEAR_DUPLICATE_SCHEMA,
    find_near_duplicates,
    fingerprint,
    write_fingerprints,
)
from synth.storage import read_parquet, study_path, write_parquet_atomic

WORDS = np.random.default_rng(0).integers(0, 3000, 20_000)


def text_of(number, length=200):
    return " ".join(f"w{word}" for word in WORDS[number * length : (number + 1) * length])


def changed(text, every):
    words = text.split()
    return " ".join("changed" if at % every == every // 2 else word for at, word in enumerate(words))


def write_set(directory, parts):
    paths = []
    for at, texts in enumerate(parts):
        rows = [
            {"doc_id": f"d{at}-{row}", "chunk": 0, "recipe": "hq" if row % 2 else "qa", "sample": 0, "text": text or "", "keep": text is not None}
            for row, text in enumerate(texts)
        ]  # fmt: skip
        schema = pa.schema([("doc_id", pa.string()), ("chunk", pa.int32()), ("recipe", pa.string()), ("sample", pa.int32()), ("text", pa.string()), ("keep", pa.bool_())])  # fmt: skip
        table = pa.Table.from_pylist(rows, schema=schema)
        path = directory / f"part-{at:05d}-of-{len(parts):05d}.parquet"
        write_parquet_atomic(path, table)
        write_fingerprints(directory, at, len(parts), table)
        paths.append(path)
    return paths


def found(directory, paths):
    return {
        (at, row["row"]): (row["first_part"], row["first_row"])
        for at, path in enumerate(paths)
        for row in read_parquet(directory / "near_duplicates" / path.name).to_pylist()
    }


def test_copies_and_near_copies_are_found_across_parts_and_the_first_stays(tmp_path):
    directory = study_path(str(tmp_path))
    parts = [
        [text_of(0), text_of(1), None],
        [text_of(2), text_of(0), changed(text_of(1), 100)],
        [None, text_of(3), text_of(0)],
    ]
    paths = write_set(directory, parts)
    counts = find_near_duplicates(directory, paths)
    assert found(directory, paths) == {(1, 1): (0, 0), (1, 2): (0, 1), (2, 2): (0, 0)}
    assert counts["near_duplicates"] == 3
    assert counts["near_duplicates_by_recipe"] == {"hq": 1, "qa": 2}
    table = read_parquet(directory / "near_duplicates" / paths[1].name)
    assert table.schema.equals(NEAR_DUPLICATE_SCHEMA)
    assert table["doc_id"].to_pylist() == ["d1-1", "d1-2"]


def test_finding_them_again_gives_the_same_bytes(tmp_path):
    directory = study_path(str(tmp_path))
    paths = write_set(directory, [[text_of(0), text_of(0)], [text_of(0), text_of(1)]])
    find_near_duplicates(directory, paths)
    before = {path.name: path.read_bytes() for path in (directory / "near_duplicates").iterdir()}
    find_near_duplicates(directory, paths)
    assert {path.name: path.read_bytes() for path in (directory / "near_duplicates").iterdir()} == before


def test_a_set_of_which_nothing_was_kept_has_none(tmp_path):
    directory = study_path(str(tmp_path))
    paths = write_set(directory, [[None], [None, None]])
    assert find_near_duplicates(directory, paths)["near_duplicates"] == 0


def test_short_and_empty_texts_are_compared_as_a_whole():
    assert (fingerprint("one two") == fingerprint("One, two!")).all()
    assert not (fingerprint("one two") == fingerprint("one three")).any()
    assert len(fingerprint("")) == BANDS


@pytest.mark.parametrize(("every", "low", "high"), [(100, 0.9, 1.0), (12, 0.0, 0.25)])
def test_sharing_a_band_follows_the_stated_curve(every, low, high):
    """Changing every n-th word of 200 leaves about (1 - 5/n) / (1 + 5/n) of the shingles in common."""
    pairs = [
        (fingerprint(text_of(number)), fingerprint(changed(text_of(number), every))) for number in range(100)
    ]
    share = np.mean([(one == other).any() for one, other in pairs])
    similarity = (1 - 5 / every) / (1 + 5 / every)
    predicted = 1 - (1 - similarity**8) ** 14
    assert low <= share <= high
    assert share == pytest.approx(predicted, abs=0.12)
