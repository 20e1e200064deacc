"""Trunks on disk: `trunks/<trunk_id>/checkpoints/`, the furthest point runs of one trunk have reached before a decay.

Taking a run over from there changes no bit of it, because a checkpoint resumes bit-identically and all that decides
the trunk's weights is in its id. A trunk without a checkpoint, or with one that cannot be loaded, costs time alone.
"""

from __future__ import annotations

from typing import Any

from upath import UPath

from synth.storage import write_json_atomic
from train.checkpoint import CheckpointWriter, load_checkpoint
from train.checkpoint_files import RunState, newest_step, remove_half_checkpoints
from train.distributed import agreed, leads
from train.leftovers import USE_FILE, read_use, trunk_directory
from train.placement import TrainPlacement
from train.record import TrunkUse
from train.run import RunConfig
from train.schedule import trunk_steps


def load_state(
    engine: Any, run: RunConfig, directory: UPath, placement: TrainPlacement
) -> tuple[RunState, TrunkUse | None]:
    """Load the run's own newest checkpoint, else the furthest point of its trunk, into a fresh engine.

    Return the loop's state, and what was taken over from the trunk when the run began; None without branching. Called
    by all workers at once.
    """
    if leads():
        remove_half_checkpoints(directory)
    state = load_checkpoint(engine, directory, placement)
    if run.trunk_id is None:
        return state, None
    before = agreed(read_use(directory) if leads() else None)
    if state.step and before is not None:
        return state, before
    at_most = before.train_tokens // run.tokens_per_step if before else trunk_steps(run)
    trunk = trunk_directory(directory, run.trunk_id)
    state = load_checkpoint(engine, trunk, placement, scratch=directory, up_to_step=at_most)
    use = TrunkUse(
        trunk_id=run.trunk_id,
        train_tokens=state.step * run.tokens_per_step,
        wall_seconds=state.wall_seconds,
        device_seconds=state.device_seconds,
    )
    if leads():
        write_json_atomic(directory / USE_FILE, use.model_dump(mode="json"))
    return state, use


def trunk_writer(run: RunConfig, directory: UPath, placement: TrainPlacement) -> CheckpointWriter:
    """Return what writes the checkpoints of a run's trunk.

    Older ones stay till the end: an attempt interrupted before its first own checkpoint starts again from the point before.
    """
    assert run.trunk_id is not None
    return CheckpointWriter(trunk_directory(directory, run.trunk_id), placement, keep_older=True)


def save_trunk(
    engine: Any, run: RunConfig, directory: UPath, state: RunState, writer: CheckpointWriter
) -> None:
    """Keep this point of the run for longer budgets, unless the trunk has one as far. Called by all workers at once."""
    assert run.trunk_id is not None
    if agreed(newest_step(trunk_directory(directory, run.trunk_id)) if leads() else 0) < state.step:
        writer.save(engine, state)
