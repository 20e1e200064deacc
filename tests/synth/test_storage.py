"""Study files: whole or not there, on every file system, and seen by every process as soon as they are written."""

import errno
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from synth.storage import (
    is_local,
    list_names,
    read_json,
    read_parquet,
    study_path,
    write_bytes_atomic,
    write_json_atomic,
    write_parquet_atomic,
    write_text_atomic,
)
from tests.assets.object_store import object_store

TABLE = pa.table({"n": [1, 2, 3], "text": ["a", None, "ü"]})


@pytest.fixture(scope="module")
def s3():
    with object_store() as client:
        yield client


@pytest.fixture(params=["local", "file", "memory", "s3"])
def root(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://bucket/{tmp_path.name}"
    return {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path.name}"}[
        request.param
    ]


def test_what_is_written_is_read_back(root):
    directory = study_path(root, "corpora", "x")
    write_json_atomic(directory / "a.json", {"b": [1, 2.5, None], "a": "ü"})
    write_text_atomic(directory / "b.txt", "grün\n")
    num_bytes = write_parquet_atomic(directory / "c.parquet", TABLE)
    assert (
        directory / "a.json"
    ).read_bytes() == '{\n  "a": "ü",\n  "b": [\n    1,\n    2.5,\n    null\n  ]\n}\n'.encode()
    assert read_json(directory / "a.json") == {"b": [1, 2.5, None], "a": "ü"}
    assert (directory / "b.txt").read_text(encoding="utf-8") == "grün\n"
    assert read_parquet(directory / "c.parquet").equals(TABLE)
    assert read_parquet(directory / "c.parquet", columns=["n"]).column_names == ["n"]
    assert (directory / "c.parquet").stat().st_size == num_bytes
    assert list_names(directory) == ["a.json", "b.txt", "c.parquet"]
    assert list_names(directory, ".json") == ["a.json"]


def test_what_is_not_there_is_not_there(root):
    directory = study_path(root, "nothing")
    assert list_names(directory) == []
    assert not (directory / "manifest.json").exists()
    with pytest.raises(FileNotFoundError):
        read_json(directory / "manifest.json")


def test_a_file_can_be_replaced(root):
    path = study_path(root, "a.json")
    for value in (1, 2):
        write_json_atomic(path, value)
        assert read_json(path) == value


def test_paths_travel_between_processes(root):
    path = study_path(root, "a.json")
    write_json_atomic(path, 1)
    assert read_json(pickle.loads(pickle.dumps(path))) == 1


def test_an_object_store_shows_what_another_process_wrote(s3):
    directory = study_path("s3://bucket", "shared")
    write_json_atomic(directory / "recipe.json", {})
    assert list_names(directory) == ["recipe.json"]
    assert not (directory / "manifest.json").exists()
    s3.put_object(Bucket="bucket", Key="shared/manifest.json", Body=b"{}")
    assert (directory / "manifest.json").exists()
    assert read_json(directory / "manifest.json") == {}
    assert list_names(directory) == ["manifest.json", "recipe.json"]


def test_local_roots_are_absolute_and_remote_ones_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(study_path("study", "runs", "r1")) == str(tmp_path / "study" / "runs" / "r1")
    assert str(study_path("~/study")) == str(tmp_path / "home" / "study")
    assert str(study_path(f"file://{tmp_path}/study")) == str(tmp_path / "study")
    assert str(study_path("s3://bucket/study", "runs")) == "s3://bucket/study/runs"
    assert is_local(study_path("study"))
    assert is_local(study_path(f"file://{tmp_path}"))
    assert not is_local(study_path("memory://study"))


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, stage):
    path = study_path(str(tmp_path), "a.json")
    write_json_atomic(path, "old")

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, stage, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_bytes_atomic(path, b"new" * 1000)
    assert read_json(path) == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]


def test_a_file_being_written_is_not_listed(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def watch(source, target):
        seen.append((Path(source).exists(), list_names(study_path(str(tmp_path)))))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_text_atomic(study_path(str(tmp_path), "a.txt"), "x")
    assert seen == [(True, [])]
    assert list_names(study_path(str(tmp_path))) == ["a.txt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": {1}}])
def test_what_is_not_json_is_refused_and_nothing_is_written(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json_atomic(study_path(str(tmp_path), "a.json"), value)
    assert list(tmp_path.iterdir()) == []


def test_equal_tables_give_equal_bytes(tmp_path):
    paths = [study_path(str(tmp_path), name) for name in ("a.parquet", "b.parquet")]
    for path in paths:
        write_parquet_atomic(path, TABLE)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_truncated_parquet_file_is_not_read(tmp_path):
    path = study_path(str(tmp_path), "a.parquet")
    write_parquet_atomic(path, TABLE)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(pa.ArrowInvalid):
        read_parquet(path)


def test_a_flipped_bit_in_a_parquet_file_is_noticed(tmp_path):
    path = study_path(str(tmp_path), "a.parquet")
    noise = os.urandom(200_000).hex()
    write_parquet_atomic(path, pa.table({"text": [noise[n : n + 100] for n in range(0, len(noise), 100)]}))
    content = bytearray(path.read_bytes())
    missed = 0
    for position in range(1000, len(content) // 2, len(content) // 40):
        damaged = bytes(content[:position]) + bytes([content[position] ^ 1]) + bytes(content[position + 1 :])
        path.write_bytes(damaged)
        try:
            read_parquet(path)
        except OSError:
            continue
        missed += 1
    assert missed == 0
