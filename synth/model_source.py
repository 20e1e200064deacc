"""Where a generator's weights are and which weights they are: a directory, one under the study root, one that comes with
synthscale, or the hub."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from upath import UPath

from synth.config import EngineConfig
from synth.errors import IncompleteArtefact, UserError, first_line
from synth.identity import RECIPE_FILE, content_hash
from synth.storage import (
    MARKER,
    exists,
    is_local,
    list_directories,
    node_cache,
    patiently,
    read_json,
    study_path,
    write_json_atomic,
)

STUDY_PREFIX = "root:"
"""`root:models/mine` is a directory under the study root."""

GENERATOR_PREFIX = f"{STUDY_PREFIX}generators/"
"""`root:generators/tiny` is the generator that the study trains under the name `tiny`."""

SHIPPED_PREFIX = "shipped:"
"""`shipped:docstrings-6m` is a generator that comes with synthscale: a directory of `synth/generators/`."""

DIGESTS_FILE = ".synthscale-sha256.json"
KEPT_BYTES = 64 * 2**20
"""Digests of files from this size on are kept in DIGESTS_FILE: reading them again takes seconds to minutes."""

BLOCK_BYTES = 4 * 2**20

CONFIG_FILE = "config.json"

CARD_FILE = "card.json"
"""Beside a model: its files by name, each with `bytes` and `sha256`. A model that has one is checked against it."""

NOT_THE_MODEL = frozenset({CARD_FILE, "README.md", MARKER, RECIPE_FILE})
"""Files beside a model that say what it is and how and when it was made."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """A model found, before anything is loaded."""

    reference: str
    """As the configuration names it."""
    location: str
    """Directory or URL, or repository id on the hub."""
    revision: str | None
    """Commit of a hub model, found by name where the configuration gives none."""
    hash: str
    """Identity of the weights, tokenizer and configuration."""

    def local_directory(self) -> Path:
        """Return a directory on this machine that holds the model, after copying or downloading it if need be.

        A copy is named by the model's hash, holds what the hash says and appears whole or not at all. Raises UserError when
        the hub does not give it or the directory has changed, OSError when the store does not answer.
        """
        if self.revision is not None:
            return self._download()
        directory = study_path(self.location)
        if is_local(directory):
            return Path(str(directory))
        copy = node_cache("models", self.hash)
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            unfinished = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
            unfinished.mkdir()
            try:
                self._copy_to(unfinished)
                unfinished.rename(copy)
            except OSError:
                if not copy.exists():  # else another engine of this machine was faster
                    raise
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return copy

    def _download(self) -> Path:
        from huggingface_hub import snapshot_download

        wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
        try:
            return Path(snapshot_download(self.location, revision=self.revision, allow_patterns=wanted))
        # The hub's own errors, and those of its HTTP client, which are no OSErrors.
        except Exception as error:
            raise UserError(
                f"engine.model = {self.reference!r} does not come from the hub ({first_line(error)}): check the network of the nodes "
                "that run engines, or give a directory."
            ) from None

    def _copy_to(self, target: Path) -> None:
        directory, digests = study_path(self.location), {}
        for name in _model_files(directory):
            digests[name] = patiently(directory, functools.partial(_copy, directory / name, target / name))
        if content_hash(digests) != self.hash:
            raise UserError(
                f"engine.model: {directory} has changed since the job began: give a changed model a directory of its own."
            )


def find_model(root: str, config: EngineConfig) -> ModelSource:
    """Return the model an engine is to serve.

    Raises UserError when it takes fewer tokens than `max_model_len`, and what `locate_model` raises.
    """
    if config.kind == "fake":
        return ModelSource(config.model, config.model, None, content_hash(["fake", config.model]))
    found = locate_model(root, config.model, config.revision)
    if found.revision is None:
        _check_window(config, study_path(found.location) / CONFIG_FILE)
    else:
        _check_window(config, _cached_config(config.model, found.revision))
    return found


def locate_model(root: str, reference: str, revision: str | None = None) -> ModelSource:
    """Return the model of a reference, as `engine.model` has it.

    Raises IncompleteArtefact for a generator of the study that is not trained yet, UserError when a directory or
    hub repository is not there or is not a model.
    """
    if reference.startswith(STUDY_PREFIX):
        directory = study_path(root, reference.removeprefix(STUDY_PREFIX))
        if not exists(directory / MARKER) and directory.parent.name == "generators":
            raise IncompleteArtefact(str(directory), "train_generator")
    elif reference.startswith(SHIPPED_PREFIX):
        directory = _shipped(reference)
    else:
        directory = study_path(reference)
    if patiently(directory, directory.is_dir):
        return ModelSource(reference, str(directory), None, _checked_hash(directory))
    looks_local = reference.startswith((STUDY_PREFIX, "/", ".", "~")) or "://" in reference
    if looks_local or not _HUB_ID.fullmatch(reference):
        raise UserError(
            f"engine.model = {reference!r} does not exist ({directory} is not a directory): give a model directory, "
            "root:generators/<name>, or an organisation/name of the Hugging Face hub."
        )
    commit = _hub_commit(reference, revision)
    return ModelSource(reference, reference, commit, content_hash(["hub", reference, commit]))


def _shipped(reference: str) -> UPath:
    place, name = UPath(str(files("synth") / "generators")), reference.removeprefix(SHIPPED_PREFIX)
    there = list_directories(place)
    if name not in there:
        raise UserError(
            f"engine.model = {reference!r}: no generator of this name comes with synthscale; there is "
            f"{', '.join(SHIPPED_PREFIX + each for each in there) or 'none'}."
        )
    return place / name


def shipped_num_params(reference: str) -> int | None:
    """Return all parameters of a shipped generator, as its card says; None for any other model.

    Raises UserError for a name that is not shipped.
    """
    if not reference.startswith(SHIPPED_PREFIX):
        return None
    return int(read_json(_shipped(reference) / CARD_FILE)["num_params_total"])


def write_card(directory: UPath, **facts: Any) -> dict[str, dict[str, Any]]:
    """Write `card.json` for the files of a model, with further facts; return the files by name, each with `bytes` and `sha256`."""
    described = {name: _described(directory / name) for name in _model_files(directory)}
    write_json_atomic(directory / CARD_FILE, {**facts, "files": described})
    return described


def _checked_hash(directory: UPath) -> str:
    """Return the hash of the model's files by name and content, every byte of it: fine-tunes differ anywhere.

    Raises UserError when they are not those on the model's card, where it has one, or no checkpoint.
    """
    names = _model_files(directory)
    if CONFIG_FILE not in names:
        raise UserError(
            f"engine.model: {directory} holds no config.json: give the directory of a Hugging Face checkpoint "
            "(config.json, *.safetensors, tokenizer.json)."
        )
    described = _described_files(directory, names)
    if exists(directory / CARD_FILE):
        _check_card(directory, described)
    return content_hash({name: each["sha256"] for name, each in described.items()})


def _check_card(directory: UPath, there: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError when a file of a model, given as described, is not the one its card describes."""
    remedy = "fetch the model again, or take its card.json away if the change is your own"
    try:
        listed = read_json(directory / CARD_FILE)["files"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"engine.model: {directory / CARD_FILE} cannot be read as a card: {remedy}."
        ) from None
    for name in sorted({*listed, *there}):
        if name not in there:
            raise UserError(f"engine.model: {directory} lacks {name}, which its card lists: {remedy}.")
        if name not in listed:
            raise UserError(f"engine.model: {directory / name} is not on the model's card: {remedy}.")
        if there[name] != listed[name]:
            raise UserError(
                f"engine.model: {directory / name} is not the file that the model's card describes (another SHA-256 or size): "
                f"{remedy}."
            )


def _described(path: UPath) -> dict[str, Any]:
    digest = patiently(path, functools.partial(_copy, path, None))
    return {"bytes": patiently(path, path.stat).st_size, "sha256": digest}


def _model_files(directory: UPath) -> list[str]:
    """Return the files that make the model."""
    return sorted(
        patiently(
            directory,
            lambda: [
                p.name
                for p in directory.iterdir()
                if not p.name.startswith(".") and p.name not in NOT_THE_MODEL and p.is_file()
            ],
        )
    )


def _described_files(directory: UPath, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return `bytes` and `sha256` of files of a model by name.

    The SHA-256 of large files is kept beside them where that is allowed, by size and time.
    """
    kept = directory / DIGESTS_FILE
    try:
        known = read_json(kept)
    except (OSError, ValueError):
        known = {}
    found, new = {}, {}
    for name in names:
        path = directory / name
        status = patiently(path, path.stat)
        version = [status.st_size, getattr(status, "st_mtime_ns", None) or status.st_mtime]
        entry = known.get(name)
        if not (isinstance(entry, dict) and entry.get("version") == version and version[1]):
            entry = {"version": version, "sha256": _described(path)["sha256"]}
            if status.st_size >= KEPT_BYTES:
                new[name] = entry
        found[name] = {"bytes": status.st_size, "sha256": str(entry["sha256"])}
    if new:
        with contextlib.suppress(OSError):  # a directory that is read-only is read again the next time
            write_json_atomic(kept, {name: each for name, each in {**known, **new}.items() if name in names})
    return found


def _copy(source: UPath, target: Path | None) -> str:
    """Read a file, into another one if there is one; return its SHA-256."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") if target else contextlib.nullcontext() as writer:
        while block := reader.read(BLOCK_BYTES):
            digest.update(block)
            if writer:
                writer.write(block)
    return digest.hexdigest()


def _check_window(config: EngineConfig, model_config: UPath | None) -> None:
    """Raise UserError when vLLM would refuse `max_model_len`, as far as that can be told before it has loaded the model.

    Positions that are scaled are left to vLLM: how far they reach hangs on the kind of scaling. A server tells its own window.
    """
    if model_config is None or config.kind not in ("vllm", "ray_data_llm"):
        return
    if config.engine_arguments.keys() & {"hf_overrides", "max_model_len"}:
        return
    read = read_json(model_config)
    rope = read.get("rope_scaling") or read.get("rope_parameters") or {}
    longest = read.get("max_position_embeddings")
    by_layer = any(isinstance(value, dict) for value in rope.values())
    scaled = by_layer or rope.get("rope_type", rope.get("type", "default")) != "default"
    if isinstance(longest, int) and not scaled and config.max_model_len > longest:
        raise UserError(
            f"engine.max_model_len = {config.max_model_len}, but {config.model} takes {longest} tokens (max_position_embeddings "
            f"in its config.json): set engine.max_model_len to {longest} or less."
        )


def _cached_config(repository: str, commit: str) -> UPath | None:
    """Return the configuration of a hub model if it is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, CONFIG_FILE, revision=commit)
    return study_path(found) if isinstance(found, str) else None


def _hub_commit(repository: str, revision: str | None) -> str:
    """Return the commit of a hub model: of the local cache if it is there, else asked of the hub."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True)).name
    except LocalEntryNotFoundError:
        pass
    try:
        return str(HfApi().model_info(repository, revision=revision).sha)
    except Exception as error:  # the hub's own errors, and those of its HTTP client, which are no OSErrors
        raise UserError(
            f"engine.model = {repository!r} is neither a directory nor in the local hub cache, and the hub does not "
            f"give it ({first_line(error)}): check the name, engine.revision and the network, or give a directory."
        ) from None
