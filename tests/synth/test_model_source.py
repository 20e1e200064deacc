"""Which model it is, byte for byte, and where a copy of it is kept; on a disk and on an object store."""

import contextlib
import json
import os
import shutil

import pytest

from synth import model_source, storage
from synth.config import EngineConfig
from synth.engines.protocol import EngineStartFailed
from synth.engines.tokenizer import load_tokenizer
from synth.errors import UserError
from synth.model_source import DIGESTS_FILE, find_model, locate_model
from synth.storage import StoreAway, read_json, study_path
from tests.assets.object_store import failing_store

LOCATION = "s3://bucket/models/tiny"


@pytest.fixture
def model(tmp_path):
    """A directory that looks like a model, its weights larger than what is hashed in one block."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 40_000)
    return directory


def hash_of(place):
    return find_model("unused", EngineConfig(model=str(place))).hash


@pytest.fixture
def _kept_from_the_first_byte(monkeypatch):
    monkeypatch.setattr(model_source, "KEPT_BYTES", 0)


def test_one_byte_in_the_middle_of_the_weights_makes_another_model(model):
    before = hash_of(model)
    with (model / "model.safetensors").open("r+b") as handle:
        handle.seek(5_000_000)
        handle.write(b"\x00\x01")
    assert hash_of(model) != before


@pytest.mark.usefixtures("_kept_from_the_first_byte")
def test_large_files_are_read_once_and_again_when_they_change(model, monkeypatch):
    before = hash_of(model)
    kept = read_json(study_path(str(model)) / DIGESTS_FILE)
    assert set(kept) == {"config.json", "model.safetensors"}
    read = []
    copy = model_source._copy
    monkeypatch.setattr(
        model_source, "_copy", lambda source, target: read.append(source.name) or copy(source, target)
    )
    assert hash_of(model) == before
    assert read == []
    (model / "model.safetensors").write_bytes(bytes(range(255, -1, -1)) * 40_000)
    assert hash_of(model) != before
    assert read == ["model.safetensors"]
    (model / DIGESTS_FILE).write_text("no json")
    hash_of(model)
    assert read[1:] == ["config.json", "model.safetensors"]


def test_a_model_in_a_bucket_is_the_same_model_and_is_copied_once(model, monkeypatch, tmp_path):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with failing_store():
        for name in ("config.json", "model.safetensors"):
            study_path(LOCATION, name).write_bytes((model / name).read_bytes())
        found = find_model("unused", EngineConfig(model=LOCATION))
        assert found.hash == hash_of(model)
        copy = found.local_directory()
        assert sorted(path.name for path in copy.iterdir()) == ["config.json", "model.safetensors"]
        assert found.local_directory() == copy
        assert (tmp_path / "tmp" / f"synthscale-{os.getuid()}").stat().st_mode & 0o777 == 0o700
        study_path(LOCATION, "model.safetensors").write_bytes(b"another model")
        changed = study_path(LOCATION)
        assert find_model("unused", EngineConfig(model=LOCATION)).hash != found.hash
        (copy / "model.safetensors").unlink()
        (copy / "config.json").unlink()
        copy.rmdir()
        with pytest.raises(UserError, match=rf"{changed} has changed since the job began"):
            found.local_directory()
        assert not list(copy.parent.iterdir()), "no half copy stays"


def test_a_bucket_that_is_away_is_waited_for_and_then_one_sentence(model, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (0.0, 0.0))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with failing_store() as store:
        study_path(LOCATION, "config.json").write_bytes(b"{}")
        found = find_model("unused", EngineConfig(model=LOCATION))
        store.down()
        try:
            with pytest.raises(StoreAway, match="the store does not answer: EndpointConnectionError"):
                find_model("unused", EngineConfig(model=LOCATION))
            with pytest.raises(
                EngineStartFailed, match=r"no tokenizer that loads: the store does not answer"
            ):
                load_tokenizer(EngineConfig(model=LOCATION), found)
        finally:
            store.up()


def test_copies_are_not_taken_from_a_directory_of_somebody_else(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"synthscale-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="belongs to another user"):
        storage.node_cache("models")


def test_a_hub_model_without_a_revision_is_recorded_by_its_commit(monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--someone--tiny"
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "snapshots" / commit / "config.json").write_text("{}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = find_model("unused", EngineConfig(model="someone/tiny"))
    assert (found.reference, found.revision) == ("someone/tiny", commit)


@pytest.mark.parametrize(
    ("changes", "settings", "refused"),
    [
        ({}, {"max_model_len": 1025}, True),
        ({}, {"max_model_len": 1024}, False),
        ({}, {"max_model_len": 1025, "engine_arguments": {"hf_overrides": {}}}, False),
        ({"rope_parameters": {"rope_type": "default"}}, {"max_model_len": 1025}, True),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {"max_model_len": 1025}, False),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, {"max_model_len": 1025}, False),
    ],
)
def test_a_window_beyond_the_models_is_refused_before_an_engine_starts(
    tiny_tokenizer, tmp_path, changes, settings, refused
):
    model = shutil.copytree(tiny_tokenizer, tmp_path / "model")
    described = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(described))
    says = pytest.raises(UserError, match=r"engine.max_model_len = 1025, but .* takes 1024 tokens")
    with says if refused else contextlib.nullcontext():
        find_model("unused", EngineConfig(model=str(model), **settings))


def test_a_model_is_located_whatever_window_an_engine_would_ask_of_it(tiny_tokenizer, tmp_path):
    model = shutil.copytree(tiny_tokenizer, tmp_path / "model")
    found = locate_model("unused", str(model))
    assert found == find_model("unused", EngineConfig(model=str(model), max_model_len=1024))
