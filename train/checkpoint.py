"""Checkpoints of a run: `checkpoints/step-00000120-<id>/`, whole or not at all, so that a resumed run is the same run.

DeepSpeed writes weights and optimizer state, one file set for all workers; `complete.json` is written last and holds
the loop's own state and the size of every file. The newest complete checkpoint is kept, older ones go.
"""

from __future__ import annotations

import logging
import posixpath
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from upath import UPath

from synth.storage import is_local, list_names, read_json, write_json_atomic
from train.distributed import agreed, leads, rank, wait_for_all, world_size
from train.divergence import WatchState
from train.placement import TrainPlacement
from train.record import Evaluation, Record
from train.staging import Staging, local_copy, remove_tree, upload
from train.universal import load_universal, reading_only_weights, universal_copy

_LOG = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
COMPLETE_FILE = "complete.json"
TAG = "state"
"""DeepSpeed's name for what it writes: the directory of its files inside a checkpoint's."""

LAYOUTS = ("whole", "flat", "flat", "by parameter")
"""How each ZeRO stage lays out the optimizer's state."""

LOOK_SECONDS = 0.2
"""How often the leading worker looks whether the others have uploaded their parts."""


class RunState(Record):
    """What the loop must know, besides weights and optimizer state, to go on as if nothing had happened."""

    step: int = 0
    """Finished steps."""
    window_losses: tuple[float, ...] = ()
    """Losses of the steps since the last metrics line, nats per token."""
    window_source_nats: tuple[float, ...] = ()
    """Losses in the same steps by source, in the sampler's order, summed over tokens, nats; empty: none yet."""
    watch: WatchState = WatchState()
    """What the watch for divergence has seen."""
    evaluations: tuple[Evaluation, ...] = ()
    """Evaluations so far."""
    wall_seconds: float = 0.0
    """Wall-clock seconds of training and evaluation so far, all attempts."""
    device_seconds: float = 0.0
    """The same, times the workers there were."""
    train_seconds: float = 0.0
    """Of these, seconds in training steps that the weights have profited from."""


class CompleteCheckpoint(Record):
    """Contents of `complete.json`."""

    state: RunState
    world_size: int
    zero_stage: int
    optimizer: str
    """DeepSpeed's class: under bfloat16 and ZeRO 1 it goes by whether gradients are accumulated, and files by it."""
    files: dict[str, int]
    """Size of every file of the checkpoint, bytes."""


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
        home = self._home / agreed(f"{_prefix(state.step)}{uuid.uuid4().hex[:8]}")
        complete = CompleteCheckpoint(
            state=state,
            world_size=world_size(),
            zero_stage=self._placement.zero_stage,
            optimizer=type(engine.optimizer).__name__,
            files={},
        )
        if not is_local(home):
            staging = Staging()
            engine.save_checkpoint(str(staging.path), tag=TAG, save_latest=False)
            self._upload = threading.Thread(
                target=self._send, args=(staging, home, complete, rank()), daemon=True
            )
            self._upload.start()
            return
        engine.save_checkpoint(str(home), tag=TAG, save_latest=False)
        wait_for_all()
        if leads():
            self._finish(home, complete, _sizes(home))

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
            write_json_atomic(home / _part_file(rank, workers), sizes)
            if rank == 0 and self._all_sent(home, workers):
                for part in range(1, workers):
                    sizes |= read_json(home / _part_file(part, workers))
                self._finish(home, complete, sizes)
        except Exception as error:  # for the thread that trains to raise
            self._error = error

    def _all_sent(self, home: UPath, workers: int) -> bool:
        parts = {_part_file(rank, workers) for rank in range(workers)}
        while not parts <= set(list_names(home)):
            if self._abandoned.wait(LOOK_SECONDS):
                return False
        return True

    def _finish(self, home: UPath, complete: CompleteCheckpoint, sizes: dict[str, int]) -> None:
        complete = complete.model_copy(update={"files": sizes})
        write_json_atomic(home / COMPLETE_FILE, complete.model_dump(mode="json"))
        if not self._keep_older:
            same_step = _prefix(complete.state.step)
            for name in list_names(self._home):
                if name < home.name or (name.startswith(same_step) and name != home.name):
                    _remove(self._home / name)


def load_checkpoint(
    engine: Any, directory: UPath, placement: TrainPlacement, *, up_to_step: int | None = None
) -> RunState:
    """Load the newest complete checkpoint into a fresh engine and return the loop's state; a fresh state without one.

    Called by all workers at once. With `up_to_step`, checkpoints after more steps than that do not count. One written by
    another number of workers, or with gradients accumulated otherwise, goes through its universal form: no bit of the state
    is lost, but floats are added up in another order from here on. ZeRO stages 1 and 2 read each other's; between other
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
    scratch = home / agreed(f".universal-{uuid.uuid4().hex[:8]}")
    with universal_copy(home / name / TAG, scratch) as local:
        load_universal(engine, local)
    return complete.state


def newest_step(directory: UPath, up_to_step: int | None = None) -> int:
    """Return the finished steps of the newest complete checkpoint, not above `up_to_step`; 0 without one."""
    return next((complete.state.step for _, complete in _whole(directory / CHECKPOINTS, up_to_step)), 0)


def remove_checkpoints(directory: UPath, but_newest: bool = False) -> None:
    """Drop the checkpoints of a directory, all of them or all but the newest complete one."""
    home = directory / CHECKPOINTS
    if not but_newest:
        _remove(home)
    elif newest := next(_whole(home), None):
        for name in list_names(home):
            if name != newest[0]:
                _remove(home / name)


def _prefix(step: int) -> str:
    return f"step-{step:08d}-"


def _part_file(rank: int, workers: int) -> str:
    return f"part-{rank:05d}-of-{workers:05d}.json"


def newest_for(
    zero_stage: int, home: UPath, up_to_step: int | None = None
) -> tuple[str, CompleteCheckpoint] | None:
    """Return the newest whole checkpoint that can be loaded under a ZeRO stage, by its name in `home`; None without one.

    Newer ones of another stage, which a run may have left before it started over under this one, are warned about.
    """
    for name, complete in _whole(home, up_to_step):
        if LAYOUTS[complete.zero_stage] == LAYOUTS[zero_stage]:
            return name, complete
        _LOG.warning(
            "%s was written under ZeRO %d and cannot be loaded under ZeRO %d: what it is ahead is trained again",
            home / name, complete.zero_stage, zero_stage,
        )  # fmt: skip
    return None


def _whole(home: UPath, up_to_step: int | None = None) -> Iterator[tuple[str, CompleteCheckpoint]]:
    """Yield the whole checkpoints, the newest first."""
    for name in reversed(list_names(home)):
        if up_to_step is not None and name >= _prefix(up_to_step + 1):
            continue
        try:
            complete = CompleteCheckpoint.model_validate(read_json(home / name / COMPLETE_FILE))
        except FileNotFoundError:
            continue
        if _sizes(home / name) == complete.files:
            yield name, complete


def _sizes(checkpoint: UPath) -> dict[str, int]:
    directory = checkpoint / TAG
    if is_local(directory):
        return {child.name: child.stat().st_size for child in directory.iterdir()}
    found = directory.fs.find(directory.path, detail=True)  # one listing, not one question a file
    return {posixpath.basename(path): int(info["size"]) for path, info in found.items()}


def _remove(directory: UPath) -> None:
    (directory / COMPLETE_FILE).unlink(missing_ok=True)  # first, so that half a removal never looks complete
    remove_tree(directory)
