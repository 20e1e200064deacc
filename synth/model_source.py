"""Where a generator's weights are and which weights they are: a directory, one under the study root, or the hub."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from synth.config import EngineConfig
from synth.errors import IncompleteArtefact, UserError, first_line
from synth.identity import RECIPE_FILE, content_hash, file_digest
from synth.storage import MARKER, is_local, study_path

STUDY_PREFIX = "root:"
"""`root:generators/tiny` is a directory under the study root."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """A model found, before anything is loaded."""

    reference: str
    """As the configuration names it."""
    location: str
    """Directory or URL, or repository id on the hub."""
    revision: str | None
    """Commit of a hub model."""
    hash: str
    """Identity of the weights, tokenizer and configuration."""

    def local_directory(self) -> Path:
        """Return a directory on this machine that holds the model, after copying or downloading it if need be.

        A copy is named by the model's hash and appears whole or not at all.
        """
        if self.revision is not None:
            from huggingface_hub import snapshot_download

            wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
            return Path(snapshot_download(self.location, revision=self.revision, allow_patterns=wanted))
        directory = UPath(self.location)
        if is_local(directory):
            return Path(str(directory))
        copy = Path(tempfile.gettempdir()) / "synthscale-models" / self.hash
        if not copy.exists():
            unfinished = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
            unfinished.mkdir(parents=True)
            for name in _model_files(directory):
                with (directory / name).open("rb") as source, (unfinished / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
            try:
                unfinished.rename(copy)
            except OSError:  # another engine of this machine was faster
                shutil.rmtree(unfinished)
        return copy


def find_model(root: str, config: EngineConfig) -> ModelSource:
    """Return the model an engine is to serve.

    Raises IncompleteArtefact for a generator of the study that is not trained yet, UserError when a directory or
    hub repository is not there or is not a model.
    """
    reference = config.model
    if config.kind == "fake":
        return ModelSource(reference, reference, None, content_hash(["fake", reference]))
    if reference.startswith(STUDY_PREFIX):
        directory = study_path(root, reference.removeprefix(STUDY_PREFIX))
        if not (directory / MARKER).exists() and directory.parent.name == "generators":
            raise IncompleteArtefact(str(directory), "train_generator")
    else:
        directory = study_path(reference)
    if directory.is_dir():
        return ModelSource(reference, str(directory), None, _directory_hash(directory))
    looks_local = reference.startswith((STUDY_PREFIX, "/", ".", "~")) or "://" in reference
    if looks_local or not _HUB_ID.fullmatch(reference):
        raise UserError(
            f"engine.model = {reference!r} does not exist ({directory} is not a directory): give a model directory, "
            "root:generators/<name>, or an organisation/name of the Hugging Face hub."
        )
    commit = _hub_commit(reference, config.revision)
    return ModelSource(reference, reference, commit, content_hash(["hub", reference, commit]))


def _directory_hash(directory: UPath) -> str:
    """Return the hash of the model's files by name, size and content."""
    names = _model_files(directory)
    if "config.json" not in names:
        raise UserError(
            f"engine.model: {directory} holds no config.json: give the directory of a Hugging Face checkpoint "
            "(config.json, *.safetensors, tokenizer.json)."
        )
    return content_hash({name: file_digest(directory / name) for name in names})


def _model_files(directory: UPath) -> list[str]:
    """Return the files that make the model; how and when it was made is left out."""
    ours = {MARKER, RECIPE_FILE}
    return sorted(
        p.name
        for p in directory.iterdir()
        if p.is_file() and not p.name.startswith(".") and p.name not in ours
    )


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
