"""Writing and loading the checkpoints of a run, so that a resumed run is the same run.

DeepSpeed writes weights and optimizer state, one file set for all workers. The newest complete checkpoint is kept, older
ones go (`train.checkpoint_files`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from upath import UPath

from synth.storage import is_local, list_names, read_json, write_json_atomic
from train.checkpoint_files import (
    CHECKPOINTS,
    COMPLETE_FILE,
    TAG,
    CompleteCheckpoint,
    RunState,
    file_sizes,
    newest_for,
    part_file,
    remove_checkpoint,
    step_prefix,
)
from train.distributed import agreed, leads, rank, wait_for_all, world_size
from train.full_disk import full_disk
from train.placement import TrainPlacement
from train.staging import Staging, local_copy, upload
from train.universal import load_universal, reading_only_weights, universal_copy

LOOK_SECONDS = 0.2
"""How often the leading worker looks whether the others have uploaded their parts."""


class CheckpointWriter:
    """Writes checkpoints into one directory. Each worker of the group has one, and all of them call `save` together.

    On a local disk, or one that all nodes share, DeepSpeed writes in place and a checkpoint is whole when `save` returns.
    For an object store `save` writes to this node's disk and returns; a thread uploads while training goes on. Each
    worker says last what it has uploaded, and when all have, the leading one declares the checkpoint whole and drops
    those before it. Names are never used twice, so a group that is thought dead cannot write into a newer one's files.
    """

    def __init__(self, directory: UPath, placement: TrainPlacement, *, keep_older: bool = False) -> None:
        self._home = directory / CHECKPOINTS
        self._placement, self._keep_older = placement, keep_older
        self._upload: threading.Thread | None = None
        self._error: Exception | None = None
        self._abandoned = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether the last checkpoint is still on its way. The leading worker's word counts: it waits for the others.

        Raises OSError, and whatever else an upload may, when it failed.
        """
        if self._error is not None:
            raise self._error
        return self._upload is not None and self._upload.is_alive()

    def save(self, engine: Any, state: RunState) -> None:
        """Write a checkpoint; to an object store once the one before is there. Called by all workers at once."""
        self.wait()
        home = self._home / agreed(f"{step_prefix(state.step)}{uuid.uuid4().hex[:8]}")
        complete = CompleteCheckpoint(
            state=state,
            world_size=world_size(),
            zero_stage=self._placement.zero_stage,
            optimizer=type(engine.optimizer).__name__,
            files={},
        )
        if not is_local(home):
            staging = Staging()
            with _gone_if_it_fails(home, staging.close):
                engine.save_checkpoint(str(staging.path), tag=TAG, save_latest=False)
            self._upload = threading.Thread(
                target=self._send, args=(staging, home, complete, rank()), daemon=True
            )
            self._upload.start()
            return
        with _gone_if_it_fails(home, lambda: remove_checkpoint(home) if leads() else None):
            engine.save_checkpoint(str(home), tag=TAG, save_latest=False)
        wait_for_all()
        if leads():
            self._finish(home, complete, file_sizes(home))

    def wait(self) -> None:
        """Wait until this worker has uploaded its part of the last checkpoint, and the leading one all of it.

        Raises what the upload raised.
        """
        if self._upload is not None:
            self._upload.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Give up what is still on its way, because nobody needs it any more; when this returns nothing is written."""
        self._abandoned.set()
        if self._upload is not None:
            self._upload.join()

    def _send(self, staging: Staging, home: UPath, complete: CompleteCheckpoint, rank: int) -> None:
        workers = complete.world_size
        try:
            with staging as local:
                sizes = {}
                for source in sorted((local / TAG).iterdir()):
                    if self._abandoned.is_set():
                        return
                    upload(source, home / TAG / source.name)
                    sizes[source.name] = source.stat().st_size
            write_json_atomic(home / part_file(rank, workers), sizes)
            if rank == 0 and self._all_sent(home, workers):
                for part in range(1, workers):
                    sizes |= read_json(home / part_file(part, workers))
                self._finish(home, complete, sizes)
        except Exception as error:  # for the thread that trains to raise
            self._error = error

    def _all_sent(self, home: UPath, workers: int) -> bool:
        parts = {part_file(rank, workers) for rank in range(workers)}
        while not parts <= set(list_names(home)):
            if self._abandoned.wait(LOOK_SECONDS):
                return False
        return True

    def _finish(self, home: UPath, complete: CompleteCheckpoint, sizes: dict[str, int]) -> None:
        complete = complete.model_copy(update={"files": sizes})
        write_json_atomic(home / COMPLETE_FILE, complete.model_dump(mode="json"))
        if not self._keep_older:
            same_step = step_prefix(complete.state.step)
            for name in list_names(self._home):
                if name < home.name or (name.startswith(same_step) and name != home.name):
                    remove_checkpoint(self._home / name)


@contextlib.contextmanager
def _gone_if_it_fails(home: UPath, remove: Callable[[], None]) -> Iterator[None]:
    """Remove what a write that fails has left; raise OSError with the errno of a full disk, which PyTorch does not tell, if
    there is one behind the error."""
    try:
        yield
    except Exception as error:
        full = full_disk(error, home)  # asked before what has filled it goes
        remove()
        if full is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(full)) from error
        raise


def load_checkpoint(
    engine: Any,
    directory: UPath,
    placement: TrainPlacement,
    *,
    scratch: UPath | None = None,
    up_to_step: int | None = None,
) -> RunState:
    """Load the newest complete checkpoint into a fresh engine and return the loop's state; a fresh state without one.

    Called by all workers at once. With `up_to_step`, checkpoints after more steps than that do not count. One written by
    another number of workers, or with gradients accumulated otherwise, goes through its universal form: no bit of the state
    is lost, but floats are added up in another order from here on; that form lies under `scratch` meanwhile (null: the
    directory itself), in a place that the next attempt clears if this one is killed. ZeRO stages 1 and 2 read each other's; between other
    stages there is no way: such checkpoints are passed over, with a warning. A run that has no other starts over, and ends
    with the same result.
    """
    home = directory / CHECKPOINTS
    found = agreed(newest_for(placement.zero_stage, home, up_to_step) if leads() else None)
    if found is None:
        return RunState()
    name, complete = found
    written, wanted = complete.zero_stage, placement.zero_stage
    as_here = complete.world_size == world_size() and complete.optimizer == type(engine.optimizer).__name__
    if written == wanted and (as_here or written == 0):
        with local_copy(home / name / TAG) as local, reading_only_weights():
            engine.load_checkpoint(str(local.parent), tag=TAG)
        return complete.state
    copy = (scratch or directory) / CHECKPOINTS / agreed(f".universal-{uuid.uuid4().hex[:8]}")
    with universal_copy(home / name / TAG, copy) as local:
        load_universal(engine, local)
    return complete.state
