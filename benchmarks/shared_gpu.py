"""What small models gain from sharing a GPU: the same runs through 1, 2, 4 ... lanes that each have a part of it.

    python benchmarks/shared_gpu.py [--model 4.7m] [--lanes 1 4 8] [--runs 8] [--steps 150] [--too-large 1b] [--out FILE.json]

Every setting starts its lanes anew and trains runs that differ in nothing but the seed; starting is not counted: each lane
trains a short run before the clock starts. `tokens_per_second` is that of all lanes together, evaluation and hand-over of runs
included. With `--too-large`, one more run of that size is given `--part` of the GPU and more rows at once than fit there: it is
to halve them until they do, beside a small model that must not notice.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, parser_of, versions
from synth.progress import Progress
from tests.assets.packed_set import run_on, write_packed_set
from train.lanes.job import Lanes
from train.placement import TrainPlacement
from train.run import RunConfig
from train.sizes import model_of
from train.tokens import PackedSet


def make_run(packed: PackedSet, model: str, steps: int, rows: int, seed: int) -> RunConfig:
    """Return a run of so many steps in bfloat16; the seed makes it a new one."""
    return run_on(
        packed,
        model=model_of(model),
        mixture={"natural": 0.5, "synthetic": 0.5},
        train_tokens=steps * rows * packed.sequence_length,
        rows_per_step=rows,
        precision="bf16",
        evaluations=1,
        seed=seed,
    )


def train_on(root: str, packed: PackedSet, num_lanes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what all runs took on so many lanes."""
    placement = TrainPlacement(
        lanes=num_lanes, gpus_per_worker=1 / num_lanes, cpus_per_worker=1, rows_per_microbatch=options.rows
    )
    seed = 1000 * num_lanes
    warm = [make_run(packed, options.model, 10, options.rows, seed + 500 + lane) for lane in range(num_lanes)]
    runs = [
        make_run(packed, options.model, options.steps, options.rows, seed + i) for i in range(options.runs)
    ]
    with Lanes(root, placement) as lanes:
        lanes.run_all(warm, _progress(f"{num_lanes} lanes, warm", warm))
        began = time.perf_counter()
        records = lanes.run_all(runs, _progress(f"{num_lanes} lanes", runs))
        seconds = time.perf_counter() - began
    assert all(record.status == "complete" for record in records)
    tokens = sum(record.train_tokens for record in records)
    return {
        "lanes": num_lanes,
        "tokens_per_second": tokens / seconds,
        "tokens_per_second_of_one_run": sum(each.tokens_per_second for each in records) / len(records),
        "device_seconds": sum(record.device_seconds for record in records),
        "wall_seconds": seconds,
        "device": records[0].device.name if records[0].device else None,
    }


def train_too_large(root: str, packed: PackedSet, options: argparse.Namespace) -> dict[str, Any]:
    """Return how a run that is too large for its part of the GPU went, and a small one beside it."""
    placement = TrainPlacement(
        lanes=2, gpus_per_worker=options.part, cpus_per_worker=1, rows_per_microbatch=options.too_many_rows
    )
    large = make_run(packed, options.too_large, 3, options.too_many_rows, 1)
    small = make_run(packed, options.model, options.steps, options.rows, 2)
    with Lanes(root, placement) as lanes:
        records = lanes.run_all([large, small], _progress("too large", [large, small]))
    device = records[0].device
    return {
        "model": options.too_large,
        "part_of_gpu": options.part,
        "rows_asked_for": options.too_many_rows,
        "status": [record.status for record in records],
        "reasons": [record.reason for record in records],
        "rows_that_fit": device.rows_per_microbatch if device else None,
        "did_not_fit": device.did_not_fit if device else None,
        "peak_memory_bytes": device.peak_memory_bytes if device else None,
    }


def _progress(name: str, runs: list[RunConfig]) -> Progress:
    return Progress(name, sum(run.num_steps * run.tokens_per_step for run in runs), "tokens")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the speed of every number of lanes, with machine and versions."""
    with tempfile.TemporaryDirectory() as root:
        packed = write_packed_set(
            root, sources={"natural": 96, "synthetic": 96}, sequence_length=options.sequence_length,
            vocab_size=options.vocab_size, document_length=options.sequence_length // 3,
        )  # fmt: skip
        ray.init(num_cpus=os.cpu_count(), num_gpus=1, include_dashboard=False, log_to_driver=False)
        results = [train_on(root, packed, num_lanes, options) for num_lanes in options.lanes]
        alone = results[0]["tokens_per_second"]
        too_large = train_too_large(root, packed, options) if options.too_large else None
        ray.shutdown()
    return {
        "model": options.model,
        "runs": options.runs,
        "steps": options.steps,
        "rows": options.rows,
        "sequence_length": options.sequence_length,
        "results": results,
        "to_the_first": {str(each["lanes"]): each["tokens_per_second"] / alone for each in results},
        "too_large": too_large,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": versions(),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="4.7m", help="size of the small models by name")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4, 8], help="numbers of lanes to try")
    parser.add_argument("--runs", type=int, default=8, help="runs of each number of lanes")
    parser.add_argument("--steps", type=int, default=150, help="optimiser steps of a run")
    parser.add_argument("--rows", type=int, default=16, help="rows in a step")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens in a row")
    parser.add_argument("--vocab-size", type=int, default=4096, help="tokens in the vocabulary")
    parser.add_argument("--too-large", help="size of a model that is given too many rows at once")
    parser.add_argument("--part", type=float, default=0.25, help="part of the GPU that it has")
    parser.add_argument("--too-many-rows", type=int, default=512, help="rows it is given at once")
    options = parser.parse_args()
    give(measure(options), options.out)


if __name__ == "__main__":
    main()
