"""What is said of a cluster that is not there: one sentence, where Ray asks for two minutes and ends in a traceback."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rayjobs import cluster
from synth.config import CorpusConfig
from synth.errors import UserError
from tests.assets.ray_head import ROOT, free_port

SMALL = {"sources": [{"kind": "docstrings", "packages": ["optuna"]}], "max_documents": 8}


@pytest.fixture
def dead(monkeypatch):
    """Return the address of a cluster that has been killed."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.1)
    return f"127.0.0.1:{free_port()}"


def connect():
    cluster.connect("1/1 build_corpus natural", CorpusConfig.model_validate(SMALL | {"root": "/study"}))


def test_an_address_where_nothing_answers_is_named_with_its_remedy(dead, monkeypatch):
    for address in (dead, f"ray://{dead}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError) as error:
            connect()
        assert str(error.value) == (
            f"RAY_ADDRESS: no Ray cluster answers at {address} ([Errno 111] Connection refused): start it, correct the "
            "address, or set RAY_ADDRESS=local to start one on this machine."
        )


@pytest.mark.parametrize("address", ["head", "head:one", "[::1"])
def test_an_address_that_is_none_is_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.1)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="no Ray cluster answers at"):
        connect()


def test_the_address_a_killed_cluster_has_left_is_said_with_its_file(dead, tmp_path, monkeypatch):
    left = tmp_path / "ray" / "ray_current_cluster"
    left.parent.mkdir()
    left.write_text(dead)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    # Ray prefers a cluster whose processes it sees, and another test may have one on this machine.
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    with pytest.raises(
        UserError, match=rf"{left}: no Ray cluster answers at {dead} .*run `ray stop` or delete"
    ):
        connect()


def test_a_relative_root_is_refused_on_a_cluster(dead, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", dead)
    config = CorpusConfig.model_validate(
        {"root": "studies/mine", "name": "natural", "sources": SMALL["sources"]}
    )
    with pytest.raises(UserError, match=r"build_corpus: root = 'studies/mine' is relative"):
        cluster.connect("build_corpus", config)


@pytest.mark.slow
def test_a_job_without_an_address_starts_its_own_cluster_whatever_another_has_left(dead, tmp_path):
    with tempfile.TemporaryDirectory(prefix="left-") as directory:  # short: Ray's sockets lie below
        left = Path(directory, "ray", "ray_current_cluster")
        left.parent.mkdir()
        left.write_text(dead)
        argv = ["--root", str(tmp_path), "--name", "natural", "--sources", json.dumps(SMALL["sources"]), "--max_documents", "8"]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "-m", "rayjobs.build_corpus", *argv],
            cwd=ROOT, env=environment | {"RAY_TMPDIR": directory}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "corpora/natural/manifest.json").exists()
