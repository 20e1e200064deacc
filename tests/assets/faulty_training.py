"""`train_run` with faults: what a run of a certain seed does to itself and to its worker."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from upath import UPath

from train.record import RunRecord
from train.run import RunConfig

RAISES, DIES_ONCE, DIES_ALWAYS, LOSES_DISK, IS_PREEMPTED = 901, 902, 903, 904, 905
"""Seeds of runs that raise half-way, SIGKILL their worker half-way (once, or each time), meet an OSError each time, get a
SIGTERM half-way (once), as a machine sends that is taken away."""


def train_run(
    run: RunConfig,
    packed: Any,
    placement: Any,
    directory: UPath,
    *,
    device: Any,
    report: Callable[[int], None],
) -> RunRecord:
    """Train the run, with the fault its seed stands for."""
    from train.loop import train_run as train

    def report_and_fail(tokens: int) -> None:
        report(tokens)
        if tokens >= run.train_tokens // 2:
            _fail(run.seed, directory)

    return train(run, packed, placement, directory, device=device, report=report_and_fail)


def meet_a_full_disk(*_: Any, **__: Any) -> RunRecord:
    """Raise what Python's own writes say of a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fail(seed: int, directory: UPath) -> None:
    died = directory / "died"
    if seed == RAISES:
        raise ValueError("this run cannot be trained")
    if seed == LOSES_DISK:
        raise OSError("no space left on device")
    if seed == DIES_ALWAYS or (seed == DIES_ONCE and not died.exists()):
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == IS_PREEMPTED and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)  # Ray hears of it between two tasks, and the rest of the run would not take that long
