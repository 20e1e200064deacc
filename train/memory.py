"""What happens when a device has not the memory for a run: fewer rows at once, and a word about it in the record. No torch.

A step's gradient is the sum over its rows however they are cut, so a microbatch of half the size trains the same run in
more passes; only the order of the additions changes, which is float noise. What fits is kept in the run's directory until
it has its record, so that an attempt in a fresh process begins with it.
"""

from __future__ import annotations

import logging

from upath import UPath

from synth.errors import UserError, first_line
from synth.storage import read_json, write_json_atomic
from train.deepspeed_config import deepspeed_config, rows_per_microbatch
from train.placement import TrainPlacement
from train.record import Record
from train.run import RunConfig

_LOG = logging.getLogger(__name__)

FIT_FILE = "microbatch.json"
"""In the directory of a run that is not finished: what an attempt learnt about its memory."""


class MicrobatchTooLarge(RuntimeError):
    """A worker of several has run out of memory; an attempt of all of them, begun anew, takes fewer rows at once."""


class OutOfDeviceMemory(RuntimeError):
    """A run does not fit on its device however few rows are passed at once."""


class MemoryFit(Record):
    """Contents of `microbatch.json`."""

    rows_per_microbatch: int | None = None
    """Rows to pass forward at once; null: as many as the placement says."""
    did_not_fit: tuple[int, ...] = ()
    """Numbers of rows there was no memory for."""

    def placed(self, placement: TrainPlacement, rows_per_worker: int) -> TrainPlacement:
        """Return the placement with what fits, cut so that it divides the rows a worker has in a step: a group of another
        size may have learnt it."""
        if self.rows_per_microbatch is None or self.rows_per_microbatch >= placement.rows_per_microbatch:
            return placement
        fits = largest_divisor(rows_per_worker, self.rows_per_microbatch)
        return placement.model_copy(update={"rows_per_microbatch": fits})


def largest_divisor(rows: int, at_most: int) -> int:
    """Return the largest number of rows, not above `at_most`, that divides them; 0 when `at_most` is."""
    return next((each for each in range(min(at_most, rows), 0, -1) if rows % each == 0), 0)


def read_fit(directory: UPath) -> MemoryFit:
    """Return what earlier attempts at a run learnt about its memory."""
    try:
        return MemoryFit.model_validate(read_json(directory / FIT_FILE))
    except FileNotFoundError:
        return MemoryFit()


def note_smaller_microbatch(
    run: RunConfig,
    placement: TrainPlacement,
    world_size: int,
    directory: UPath,
    found: MemoryFit,
    error: BaseException,
) -> None:
    """Write down that this placement's microbatch does not fit either, after what was `found` before, and that the next
    smaller one is to be tried. Workers that do so together write the same.

    Raises OutOfDeviceMemory, in one sentence with the remedies, when there is none.
    """
    rows = rows_per_microbatch(run, placement, world_size)
    share = run.rows_per_step // world_size
    smaller = largest_divisor(share, rows // 2)
    said = first_line(error)
    if not smaller:
        raise OutOfDeviceMemory(
            f"the model does not fit on its device even with rows_per_microbatch = 1: set placement.recompute_activations = "
            f"true, raise placement.zero_stage or workers_per_lane, or give it a larger device ({said})"
        ) from error
    fit = MemoryFit(rows_per_microbatch=smaller, did_not_fit=(*found.did_not_fit, rows))
    try:
        deepspeed_config(run, fit.placed(placement, share), world_size, num_params=1)
    except UserError as refusal:
        raise OutOfDeviceMemory(
            f"rows_per_microbatch = {rows} does not fit on the device and fewer are not possible: {refusal} ({said})"
        ) from error
    write_json_atomic(directory / FIT_FILE, fit.model_dump(mode="json"))
    _LOG.warning(
        "run %s: no memory for rows_per_microbatch = %d (%s); it goes on with %d",
        run.run_id,
        rows,
        said,
        smaller,
    )
