"""Train runs one after the other in this process, nothing else around: `python -m tests.assets.train_alone ROOT < runs.json`."""

from __future__ import annotations

import json
import sys

from train.config import RunConfig, TrainPlacement
from train.loop import train_run
from train.record import run_directory
from train.tokens import PackedSet


def main() -> None:
    """Train the runs on standard input, a JSON list of configurations; they leave their records under ROOT."""
    root = sys.argv[1]
    for fields in json.load(sys.stdin):
        run = RunConfig.model_validate(fields)
        train_run(run, PackedSet.open(root, run.packed), TrainPlacement(), run_directory(root, run.run_id))


if __name__ == "__main__":
    main()
