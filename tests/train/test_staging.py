"""Staging directories: copies of an object store's files that nobody forgets on a node's disk."""

import fcntl
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from upath import UPath

from synth import storage
from synth.storage import remove_tree, study_path
from tests.assets.object_store import failing_store
from train.staging import Staging, download_tree, local_copy, sizes_below, upload, upload_tree

LEAVES_ONE = "from train.staging import Staging; import os; print(Staging().path, flush=True); os._exit(9)"


@pytest.fixture(autouse=True)
def _own_temporary_space(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(tmp_path):
    dead = subprocess.run([sys.executable, "-c", LEAVES_ONE], capture_output=True, text=True, check=False)
    with Staging() as mine, Staging() as other:
        assert dead.stdout.strip()
        assert set(tmp_path.iterdir()) == {mine, other}
    assert list(tmp_path.iterdir()) == []


def test_a_directory_taken_for_abandoned_while_it_was_made_is_made_again(monkeypatch):
    flock, taken = fcntl.flock, []

    def late(handle, how):
        if (
            how == fcntl.LOCK_EX and not taken
        ):  # as another worker of the node does that saves at the same moment
            taken.append(Path(handle.name).parent)
            shutil.rmtree(taken[0])
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Staging() as path:
        (path / "weights").write_text("1")
        assert path != taken[0]


def test_trees_come_back_from_an_object_store_as_they_were(tmp_path):
    source, store, back = tmp_path / "source", UPath(f"memory://{tmp_path.name}/tree"), tmp_path / "back"
    (source / "deep" / "er").mkdir(parents=True)
    for name, content in (("a", b"1"), ("deep/b", b""), ("deep/er/c.pt", b"3" * 1000)):
        (source / name).write_bytes(content)
    upload_tree(source, store)
    upload(source / "a", store / "deep" / "again")
    download_tree(store, back)
    found = {
        path.relative_to(back).as_posix(): path.read_bytes() for path in back.rglob("*") if path.is_file()
    }
    assert found == {"a": b"1", "deep/b": b"", "deep/er/c.pt": b"3" * 1000, "deep/again": b"1"}
    with local_copy(store) as copy:
        assert (copy / "deep" / "er" / "c.pt").read_bytes() == b"3" * 1000
    assert not copy.exists()
    with local_copy(UPath(source)) as itself:
        assert itself == source
    remove_tree(store)
    assert not store.exists()


def test_a_store_that_goes_away_at_every_step_costs_time_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (0.05,) * 100)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client's own attempts would only take time here
    source, back = tmp_path / "source", tmp_path / "back"
    source.mkdir()
    (source / "a").write_bytes(b"1")
    (source / "b").write_bytes(b"22")
    with failing_store() as store:
        tree = study_path("s3://bucket/tree")

        def meanwhile(action, *arguments):
            store.down()
            returns = threading.Timer(0.15, store.up)
            returns.start()
            try:
                return action(*arguments)
            finally:
                returns.join()

        meanwhile(upload_tree, source, tree)
        meanwhile(upload, source / "a", tree / "c")
        assert meanwhile(sizes_below, tree) == {"a": 1, "b": 2, "c": 1}
        meanwhile(download_tree, tree, back)
        assert {path.name: path.read_bytes() for path in back.iterdir()} == {"a": b"1", "b": b"22", "c": b"1"}
        meanwhile(remove_tree, tree)
        assert not tree.exists()
