"""Train one run in this process, nothing else around: `python -m tests.assets.train_alone ROOT < run.json`."""

from __future__ import annotations

import json
import sys

from train.loop import train_run
from train.placement import TrainPlacement
from train.record import run_directory
from train.run import RunConfig
from train.tokens import PackedSet


def main() -> None:
    """Train the run on standard input, a `RunConfig` in JSON; it leaves its record under ROOT."""
    root = sys.argv[1]
    run = RunConfig.model_validate(json.load(sys.stdin))
    train_run(run, PackedSet.open(root, run.packed), TrainPlacement(), run_directory(root, run.run_id))


if __name__ == "__main__":
    main()
