"""What one more small run costs besides its training: in a warm lane, and with a TorchTrainer.fit of its own.

    python benchmarks/extra_run_cost.py [--runs 12] [--fits 3] [--model 98k] [--steps 50] [--out FILE.json]

Both sides train the same kind of run (they differ in the seed) with `train.loop.train_run` on one worker of one CPU.
The cost of a run is the wall time until its record is there, less the seconds of training and evaluation it reports.
The first run in the lane pays for imports and is given apart. A packed set is made for it from random tokens.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, machine, parser_of, versions
from synth.progress import Progress
from tests.assets.packed_set import write_packed_set
from train.lanes.job import Lanes
from train.placement import TrainPlacement
from train.record import read_record, run_directory
from train.run import RunConfig
from train.sizes import model_of
from train.tokens import PackedInfo, PackedSet

PLACEMENT = TrainPlacement()


def make_run(packed: PackedInfo, model: str, num_steps: int, seed: int) -> RunConfig:
    """Return a run of some steps of 8 rows."""
    return RunConfig(
        packed="tiny",
        packed_hash=packed.hash,
        model=model_of(model),
        mixture={"natural": 0.5, "synthetic": 0.5},
        train_tokens=num_steps * 8 * packed.sequence_length,
        sequence_length=packed.sequence_length,
        max_epochs=None,
        seed=seed,
    )


def in_a_warm_lane(root: str, runs: list[RunConfig]) -> dict[str, Any]:
    """Train the first run alone, then the others as fast as the queue hands them out."""
    began = time.perf_counter()
    with Lanes(root, PLACEMENT) as lanes:
        first = ray.get(lanes.submit(runs[0]))
        warm = time.perf_counter()
        records = lanes.run_all(runs[1:], Progress("warm lane", len(runs) * runs[0].train_tokens, "tokens"))
        done = time.perf_counter()
    closed = time.perf_counter()
    trained = sum(record.wall_seconds for record in records)
    return {
        "first_run_cost_seconds": warm - began - first.wall_seconds,
        "extra_run_cost_seconds": (done - warm - trained) / len(records),
        "mean_train_seconds": trained / len(records),
        "close_seconds": closed - done,
        "runs": len(records),
    }


def with_a_fit_each(root: str, runs: list[RunConfig]) -> dict[str, Any]:
    """Train every run with a TorchTrainer.fit of its own."""
    costs = []
    for run in runs:
        began = time.perf_counter()
        ray.train.torch.TorchTrainer(
            _train_one,
            train_loop_config={"root": root, "run": run.model_dump(mode="json")},
            torch_config=ray.train.torch.TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(
                name=run.run_id,
                storage_path=os.path.join(root, ".fits"),
                worker_runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}},
            ),
        ).fit()
        seconds = time.perf_counter() - began
        record = read_record(root, run.run_id)
        assert record is not None
        costs.append(seconds - record.wall_seconds)
    return {"cost_seconds": costs, "median_cost_seconds": statistics.median(costs), "runs": len(costs)}


def _train_one(config: dict[str, Any]) -> None:
    from train.loop import train_run

    run = RunConfig.model_validate(config["run"])
    packed = PackedSet.open(config["root"], run.packed)
    train_run(run, packed, PLACEMENT, run_directory(config["root"], run.run_id))


def measure(num_runs: int, num_fits: int, model: str, num_steps: int) -> dict[str, Any]:
    """Return both costs and their ratio, with machine and versions."""
    with tempfile.TemporaryDirectory() as root:
        packed = write_packed_set(
            root, sources={"natural": 4000, "synthetic": 4000}, sequence_length=128
        ).info
        runs = [make_run(packed, model, num_steps, seed) for seed in range(num_runs + 1 + num_fits)]
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            warm = in_a_warm_lane(root, runs[: num_runs + 1])
            cold = with_a_fit_each(root, runs[num_runs + 1 :])
        finally:
            ray.shutdown()
    return {
        "model": model,
        "steps_per_run": num_steps,
        "warm_lane": warm,
        "fit_each": cold,
        "times_cheaper": cold["median_cost_seconds"] / warm["extra_run_cost_seconds"],
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    """Measure and print the result as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=12, help="extra runs in the warm lane")
    parser.add_argument("--fits", type=int, default=3, help="runs with a fit of their own; the median counts")
    parser.add_argument("--model", default="98k", help="size by name")
    parser.add_argument("--steps", type=int, default=50, help="optimiser steps of a run")
    options = parser.parse_args()
    give(measure(options.runs, options.fits, options.model, options.steps), options.out)


if __name__ == "__main__":
    main()
