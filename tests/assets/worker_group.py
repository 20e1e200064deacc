"""The workers of one group as processes of their own: `python -m tests.assets.worker_group JOBS RANK WORLD STORE`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from train.placement import TrainPlacement
from train.record import run_directory
from train.run import RunConfig
from train.tokens import PackedSet

NEVER = 10**12
"""Tokens no test run reaches."""


class Stopped(Exception):
    """Ends a run in its process, which goes on with the next one."""


def start_group(
    root: Path | str,
    packed: PackedSet,
    placed: Sequence[tuple[RunConfig, TrainPlacement]],
    rendezvous: Path,
    *,
    world: int = 1,
    stop_at: int = NEVER,
    kill_at: int = NEVER,
) -> list[subprocess.Popen[bytes]]:
    """Start the processes of one group, which train these runs under `root` one after the other.

    Every run is stopped when it has trained `stop_at` tokens; a process that sees `kill_at` tokens kills itself.
    """
    rendezvous.mkdir(parents=True, exist_ok=True)
    jobs = {
        "root": str(root),
        "packed": packed._address[0],
        "runs": [[run.model_dump(mode="json"), place.model_dump(mode="json")] for run, place in placed],
        "stop_at": stop_at,
        "kill_at": kill_at,
    }
    store = rendezvous / f"store-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "tests.assets.worker_group", json.dumps(jobs)]
    return [
        subprocess.Popen([*command, str(rank), str(world), str(store)], cwd=Path(__file__).parents[2])
        for rank in range(world)
    ]


def main() -> None:
    """Be one worker."""
    jobs, rank, world, store = sys.argv[1:]
    told = json.loads(jobs)
    if int(world) > 1:  # as Ray Train would have done
        import torch.distributed

        os.environ.update(LOCAL_RANK=rank, DS_ACCELERATOR="cpu")
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world)
        )
    from train.loop import train_run

    def report(tokens: int) -> None:
        if tokens >= told["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if tokens >= told["stop_at"]:
            raise Stopped

    packed = PackedSet.open(told["packed"], "tiny")
    for fields, placement in told["runs"]:
        run = RunConfig.model_validate(fields)
        try:
            train_run(
                run,
                packed,
                TrainPlacement.model_validate(placement),
                run_directory(told["root"], run.run_id),
                report=report,
            )
        except Stopped:
            continue


if __name__ == "__main__":
    main()
