"""The log of a study, `log/` under its root: one entry for every time a step ran, with what it took.

Each process that runs steps has a file of its own there, so two of them on one study lose none of each other's entries,
on a disk or in an object store.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
from typing import Any

from synth.storage import list_names, read_json, study_path, write_json_atomic

LOG = "log"


class StudyLog:
    """The part of a study's log that this process writes; used by one thread."""

    def __init__(self, root: str) -> None:
        began_at = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._path = study_path(root, LOG, f"{began_at}-{socket.gethostname()}-{os.getpid()}.json")
        self._entries: list[dict[str, Any]] = []

    def add(self, job: str, name: str, wall_seconds: float, **more: Any) -> None:
        """Note that a job has run to its end for the artefact of that name."""
        self._entries.append({"step": job, "name": name, "wall_seconds": round(wall_seconds, 2), **more})
        write_json_atomic(self._path, self._entries)


def read_log(root: str) -> list[dict[str, Any]]:
    """Return the entries of all processes, those of the process that began first before the others'."""
    directory = study_path(root, LOG)
    return [entry for name in list_names(directory, ".json") for entry in read_json(directory / name)]
