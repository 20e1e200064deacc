"""Whether an error comes from a full disk, which is no property of the run it stopped. No torch.

Python's own writes say so with an errno. DeepSpeed's and safetensors' do not: PyTorch's file writer raises a RuntimeError
about positions, so its words are known here, and after any other error the disk itself is asked.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from upath import UPath

from synth.storage import is_local
from train.checkpoint_files import BYTES_PER_PARAMETER

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    "unexpected pos ",  # of PyTorch's writer: a file that is shorter than what was written to it
)

PROBE_BYTES = 2**20
"""A disk that does not take a file of this size is full, bytes."""


def full_disk(error: BaseException, directory: UPath) -> Path | None:
    """Return the directory whose disk was full when this error was raised in a run that writes to `directory`: that one,
    or this node's temporary space; None when no disk was."""
    places = [Path(tempfile.gettempdir())]
    if is_local(directory):
        places.insert(0, _existing(Path(str(directory))))
    if full := next((place for place in places if not _has_room(place)), None):
        return full
    return places[0] if _says_so(error) else None


def room_wanted(num_params_total: int) -> int:
    """Return how much a run needs to go on, bytes: two checkpoints at most, as one stays until the next is whole."""
    return 2 * BYTES_PER_PARAMETER * num_params_total + PROBE_BYTES


def free_bytes(place: Path) -> int:
    """Return the room on a disk."""
    return shutil.disk_usage(place).free


def _says_so(error: BaseException | None) -> bool:
    seen: set[int] = set()  # causes can go round in a circle
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in _NO_ROOM or any(word in str(error) for word in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _existing(directory: Path) -> Path:
    return next(each for each in (directory, *directory.parents) if each.exists())


def _has_room(place: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(os.urandom(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno not in _NO_ROOM
    return True
