"""Artefacts: one directory, one recipe; finished only when the manifest is there."""

import json
import pickle
import subprocess
import sys

import pytest

from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from synth.identity import (
    artefact_hash,
    claim_directory,
    content_hash,
    finish,
    is_finished,
    provenance,
    read_manifest,
)
from synth.storage import list_names, read_json, study_path

RECIPE = {"sources": [{"kind": "files", "paths": ["a"]}], "held_out_fraction": 0.05}


@pytest.fixture(params=["local", "memory"])
def directory(request, tmp_path):
    root = str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"
    return study_path(root, "corpora", "x")


def test_a_hash_depends_on_values_and_not_on_their_order():
    assert content_hash({"a": 1, "b": [1, "ü"]}) == content_hash({"b": [1, "ü"], "a": 1})
    assert content_hash({"a": 1}) == "015abd7f5cc57a2d"  # SHA-256 of {"a":1}
    different = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {"b": 1}, [1], {}, {"a": [1]}]
    assert len({content_hash(value) for value in different}) == len(different)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), b"x"])
def test_what_has_no_canonical_form_has_no_hash(value):
    with pytest.raises((TypeError, ValueError)):
        content_hash(value)


def test_kind_recipe_and_parents_all_make_the_artefact():
    hashes = {
        artefact_hash("corpus", {"a": 1}, {}),
        artefact_hash("packed", {"a": 1}, {}),
        artefact_hash("corpus", {"a": 2}, {}),
        artefact_hash("corpus", {"a": 1}, {"corpus": "abc"}),
    }
    assert len(hashes) == 4


def test_a_directory_is_claimed_once_and_recognised_again(directory):
    first = claim_directory(directory, "corpus", RECIPE, {"source": "1"})
    assert first == artefact_hash("corpus", RECIPE, {"source": "1"})
    assert list_names(directory) == ["recipe.json"]
    before = (directory / "recipe.json").read_bytes()
    assert claim_directory(directory, "corpus", json.loads(json.dumps(RECIPE)), {"source": "1"}) == first
    assert (directory / "recipe.json").read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "recipe", "parents", "field", "values"),
    [
        (
            "corpus",
            RECIPE | {"held_out_fraction": 0.1},
            {"source": "1"},
            "recipe.held_out_fraction",
            (0.05, 0.1),
        ),
        ("corpus", RECIPE | {"extra": 1}, {"source": "1"}, "recipe.extra", (None, 1)),
        ("corpus", RECIPE, {"source": "2"}, "parents.source", ("1", "2")),
        ("corpus", RECIPE, {}, "parents.source", ("1", None)),
        ("packed", RECIPE, {"source": "1"}, "kind", ("corpus", "packed")),
    ],
)
def test_another_artefact_in_the_directory_is_not_touched(directory, kind, recipe, parents, field, values):
    claim_directory(directory, "corpus", RECIPE, {"source": "1"})
    before = (directory / "recipe.json").read_bytes()
    with pytest.raises(IdentityMismatch) as caught:
        claim_directory(directory, kind, recipe, parents)
    assert caught.value.differences == {field: values}
    assert f"{field}: there {values[0]!r}, asked for {values[1]!r}" in str(caught.value)
    assert (directory / "recipe.json").read_bytes() == before


def test_an_artefact_is_finished_with_its_manifest_and_not_before(directory):
    identity = claim_directory(directory, "corpus", RECIPE, {"source": "1"})
    assert not is_finished(directory)
    with pytest.raises(IncompleteArtefact, match="run build_corpus first"):
        read_manifest(directory, "build_corpus")
    manifest = finish(directory, identity, documents=7)
    assert is_finished(directory)
    assert read_manifest(directory, "build_corpus") == manifest == read_json(directory / "manifest.json")
    assert manifest["hash"] == identity
    assert manifest["documents"] == 7
    assert (manifest["kind"], manifest["recipe"], manifest["parents"]) == ("corpus", RECIPE, {"source": "1"})


def test_what_a_killed_writer_left_is_gone_once_the_artefact_is_finished(tmp_path):
    directory = study_path(str(tmp_path / "artefact"))
    identity = claim_directory(directory, "corpus", RECIPE, {})
    script = (
        "import os, sys\n"
        "from synth.storage import study_path, write_bytes_atomic\n"
        "os.replace = os.rename = lambda *_: os.kill(os.getpid(), 9)\n"
        "write_bytes_atomic(study_path(sys.argv[1]), b'whole')"
    )
    subprocess.run([sys.executable, "-c", script, str(directory / "train" / "part.parquet")], check=False)
    assert [path.suffix for path in (directory / "train").iterdir()] == [".tmp"]
    finish(directory, identity)
    assert sorted(path.name for path in directory.rglob("*.*")) == ["manifest.json", "recipe.json"]


def test_provenance_says_where_a_result_is_from_and_nothing_secret(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    provenance.cache_clear()
    found = provenance()
    assert {"commit", "argv", "created_at", "python", "machine", "packages"} == set(found)
    assert found["packages"]["pyarrow"]
    assert found["created_at"].endswith("+00:00")
    assert "hunter2" not in json.dumps(found)
    provenance.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        UserError("one sentence"),
        IdentityMismatch("d", {"recipe.a": (1, 2)}),
        IncompleteArtefact("d", "build_corpus"),
        IncompleteArtefact("d", "build_corpus", "half of it is there"),
    ],
)
def test_errors_cross_processes_whole(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
