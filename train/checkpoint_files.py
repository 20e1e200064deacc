"""Which checkpoints a run has, which of them counts, and what goes. No torch: a job tidies up without an engine.

`checkpoints/step-00000120-<id>/` is whole or does not count: `complete.json` is written last and holds the loop's own state
and the size of every file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from upath import UPath

from synth.errors import first_line
from synth.storage import exists, is_local, list_names, patiently, read_json, remove_file, remove_tree
from train.divergence import WatchState
from train.record import Evaluation, Record
from train.staging import sizes_below

_LOG = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
COMPLETE_FILE = "complete.json"
TAG = "state"
"""DeepSpeed's name for what it writes: the directory of its files inside a checkpoint's."""

BYTES_PER_PARAMETER = 16
"""Most a parameter takes in a checkpoint: weights in the run's precision, and in float32 the master copy and AdamW's two
moments (Rajbhandari et al. 2019, arXiv 1910.02054, 3.1)."""

LAYOUTS = ("whole", "flat", "flat", "by parameter")
"""How each ZeRO stage lays out the optimizer's state."""


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


def newest_step(directory: UPath, up_to_step: int | None = None) -> int:
    """Return the finished steps of the newest complete checkpoint, not above `up_to_step`; 0 without one."""
    return next((complete.state.step for _, complete in _whole(directory / CHECKPOINTS, up_to_step)), 0)


def remove_checkpoints(directory: UPath, but_newest: bool = False) -> None:
    """Drop the checkpoints of a directory, all of them or all but the newest complete one."""
    home = directory / CHECKPOINTS
    if not but_newest:
        remove_checkpoint(home)
    elif newest := next(_whole(home), None):
        for name in list_names(home):
            if name != newest[0]:
                remove_checkpoint(home / name)


def remove_half_checkpoints(directory: UPath) -> None:
    """Drop what attempts that were interrupted left half made: checkpoints that are not whole, universal copies.

    Nobody may be writing there still.
    """
    home = directory / CHECKPOINTS
    if not exists(home):
        return
    whole = {name for name, _ in _whole(home)}
    for name in patiently(home, lambda: [child.name for child in home.iterdir()]):
        if name and name not in whole:  # a store may list the directory itself, without a name
            remove_checkpoint(home / name)


def step_prefix(step: int) -> str:
    """Return how the names of checkpoints after so many steps begin."""
    return f"step-{step:08d}-"


def part_file(rank: int, workers: int) -> str:
    """Return the name of the file in which a worker says what it has uploaded."""
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
        if up_to_step is not None and name >= step_prefix(up_to_step + 1):
            continue
        try:
            complete = CompleteCheckpoint.model_validate(read_json(home / name / COMPLETE_FILE))
            sizes = file_sizes(home / name)
        except FileNotFoundError:
            continue
        except ValueError as error:
            _LOG.warning(
                "%s cannot be read and does not count: %s", home / name / COMPLETE_FILE, first_line(error)
            )
            continue
        if sizes == complete.files:
            yield name, complete


def file_sizes(checkpoint: UPath) -> dict[str, int]:
    """Return the size of every file DeepSpeed wrote into a checkpoint, bytes. Raises FileNotFoundError when there is none."""
    directory = checkpoint / TAG
    if is_local(directory):
        return {child.name: child.stat().st_size for child in directory.iterdir()}
    return sizes_below(directory)


def remove_checkpoint(directory: UPath) -> None:
    """Drop a checkpoint, or what there is of it."""
    remove_file(directory / COMPLETE_FILE)  # first, so that half a removal never looks complete
    remove_tree(directory)
