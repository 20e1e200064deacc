"""What very many parts, and very many runs, cost the driver: memory, and scheduling per piece of work.

    python benchmarks/driver_scale.py [--parts 1000 10000] [--engines 2] [--nodes 24] [--runs 1000 10000] [--out FILE.json]

* parts: `synth.job` sends so many parts of one set through actors of the fake engine. Their ledger entries are there
  already, so that a part costs its actor one small read and all the rest is Ray's and the driver's: the seconds until
  the first part is back, the seconds a part after that, the driver's growth in resident memory, the object store's use.
  The same parts are then read in a plain loop, which is what the actors' share of it is worth.
* nodes: `--node-parts` parts once more, through one actor on each of so many logical nodes: Ray nodes of one CPU, all on this
  machine, each with the processes a node has.
* requests: a worker makes a few parts under a root in an S3 server of its own process; its requests to the store are
  counted by kind, a part each.
* runs: `train.lanes.queue` hands so many runs to so many lanes and hears their ends, in one process without Ray: the seconds
  an assignment takes, and the memory a waiting run takes.

One machine stands in for a cluster: there is no network between its actors and nodes, and all of them share its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, parser_of
from synth.config import CorpusConfig, RephraseConfig
from synth.identity import provenance
from synth.ledger import read_entry
from synth.model_source import find_model
from synth.recipe import load_recipes
from synth.rephrase import RephraseWork


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--parts", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--nodes", type=int, nargs="*", default=[], help="logical nodes, one engine on each")
    parser.add_argument("--node-parts", type=int, default=10_000, help="parts sent through logical nodes")
    parser.add_argument("--runs", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--store-parts", type=int, default=20)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, number, width = options.one.split(":")
        measures: dict[str, Callable[[int, int], dict[str, Any]]] = {
            "parts": send_parts,
            "nodes": send_parts_to_nodes,
            "requests": count_requests,
            "runs": queue_runs,
        }
        print("RESULT " + json.dumps(measures[kind](int(number), int(width))))
        return 0
    found = {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        "parts": [in_own_process("parts", number, options.engines) for number in options.parts],
        "nodes": [in_own_process("nodes", options.node_parts, number) for number in options.nodes],
        "requests": in_own_process("requests", options.store_parts, 8),
        "runs": [in_own_process("runs", number, options.lanes) for number in options.runs],
        "provenance": provenance(),
    }
    give(found, options.out)
    return 0


def in_own_process(kind: str, number: int, width: int) -> dict[str, Any]:
    """Measure in a fresh process: memory that one size has left behind would hide the next one's."""
    command = [sys.executable, __file__, "--one", f"{kind}:{number}:{width}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    measured: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return measured


# --- parts --------------------------------------------------------------------------------------------------------


def send_parts_to_nodes(num_parts: int, nodes: int) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    began = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, wait=False)
    cluster.wait_for_nodes(timeout=600)
    started = time.monotonic() - began
    try:
        measured = send_parts(num_parts, nodes, cluster.address)
    finally:
        cluster.shutdown()
    return {"nodes": nodes, "seconds_until_all_nodes_are_up": started, **measured}


def send_parts(num_parts: int, engines: int, address: str | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="driver-scale-") as root:
        from benchmarks.ledger_resume import write_ledger

        write_ledger(root, num_parts + 1)  # one more than it writes
        work = made_of_nothing(root, num_parts + 1, engines)
        began = time.monotonic()
        for part in range(num_parts):
            read_entry(work.directory, part, num_parts + 1)
        alone = time.monotonic() - began
        return {
            "parts": num_parts, "engines": engines, "seconds_per_entry_read_in_a_loop": alone / num_parts,
            **through_ray(work, num_parts, address),
        }  # fmt: skip


def made_of_nothing(root: str, num_parts: int, engines: int) -> RephraseWork:
    """Return the work of a set whose input files do not exist: no part is ever read."""
    config = RephraseConfig.model_validate({
        "root": root, "corpus": "natural", "recipes": ["hq"], "engine": {"kind": "fake", "model": "fake"},
        "placement": {"engines": engines, "cpus_per_engine": 1},
    })  # fmt: skip
    sources = tuple(f"{root}/corpora/natural/train/part-{part:05d}.parquet" for part in range(num_parts))
    model = find_model(root, config.engine)
    return RephraseWork(config, load_recipes(config.recipes, {}), model, "0" * 16, sources, None, 256)


def through_ray(work: RephraseWork, num_parts: int, address: str | None) -> dict[str, Any]:
    import ray

    from synth.job import _results, beside_the_driver
    from synth.open_parts import OpenParts

    own: dict[str, Any] = (
        {} if address else {"num_cpus": max(4, work.config.placement.engines + 1), "include_dashboard": False}
    )
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    driver, done, first = psutil.Process(), 0, 0.0
    before = peak = driver.memory_info().rss
    began = time.monotonic()
    open_parts = ray.remote(**beside_the_driver())(OpenParts).remote()
    for result in _results(work, list(range(num_parts)), open_parts):
        assert result["entry"], result["failure"]
        done += 1
        if done == 1:
            first = time.monotonic() - began
        if done % 200 == 0:
            peak = max(peak, driver.memory_info().rss)
    total = time.monotonic() - began
    peak = max(peak, driver.memory_info().rss)
    summary = ray._private.internal_api.memory_summary(stats_only=True)
    ray.shutdown()
    assert done == num_parts
    return {
        "seconds_to_first": first, "seconds": total, "seconds_per_part_after_first": (total - first) / max(1, num_parts - 1),
        "driver_growth_mib": (peak - before) / 2**20, "driver_peak_mib": peak / 2**20,
        "object_store": " ".join(summary.split()),
    }  # fmt: skip


# --- requests -----------------------------------------------------------------------------------------------------


class Asked(logging.Handler):
    """Counts requests by kind in the lines a server writes into its log."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"(HEAD|GET|PUT|POST|DELETE) /(\S*)", record.getMessage()):
            self.counts["LIST" if "list-type" in found[2] else found[1]] += 1


def count_requests(num_parts: int, documents: int) -> dict[str, Any]:
    """Make parts of so many documents each under an S3 root, and count what the store was asked."""
    from synth.rephrase import open_work
    from synth.worker import RephraseWorker
    from tests.assets.object_store import object_store

    asked = Asked()
    with object_store():
        root = "s3://bucket/study"
        write_corpus(root, num_parts, documents)
        config = {
            "root": root,
            "corpus": "natural",
            "recipes": ["hq"],
            "engine": {"kind": "fake", "model": "fake"},
        }
        work = open_work(RephraseConfig.model_validate(config))
        work.claim()
        worker = RephraseWorker(work)
        log = logging.getLogger("werkzeug")
        log.setLevel(logging.INFO)
        log.addHandler(asked)
        asyncio.run(make_parts(worker, num_parts))
    return {
        "parts": num_parts,
        "requests_per_part": {name: count / num_parts for name, count in sorted(asked.counts.items())},
    }


async def make_parts(worker: Any, num_parts: int) -> None:
    for part in range(num_parts):
        await worker.make_part(part)
    await worker.close()


def write_corpus(root: str, num_parts: int, documents: int) -> None:
    """Write a finished corpus of short documents."""
    from synth.corpus import CorpusBuild

    with tempfile.TemporaryDirectory() as texts:
        for number in range(num_parts * documents):
            (Path(texts) / f"{number}.txt").write_text(f"Buoy number {number} marks the channel. " * 10)
        config = CorpusConfig.model_validate({
            "root": root, "sources": [{"kind": "files", "paths": [texts]}], "documents_per_part": documents,
            "held_out_fraction": 0.0,
        })  # fmt: skip
        build = CorpusBuild(config)
        for stage in build.stages():
            for task in stage.todo:
                stage.work(task)
        build.finish()


# --- runs ---------------------------------------------------------------------------------------------------------


def queue_runs(num_runs: int, lanes: int) -> dict[str, Any]:
    from train.lanes.queue import Assignment, RunQueue
    from train.run import RunConfig
    from train.sizes import model_of

    template = RunConfig.model_validate({
        "packed": "packed", "packed_hash": "0" * 16, "model": model_of("98k").model_dump(), "mixture": {"natural": 1.0},
        "train_tokens": 10**6, "sequence_length": 256,
    })  # fmt: skip
    runs = [template.model_copy(update={"seed": seed}) for seed in range(num_runs)]
    process = psutil.Process()
    before, queue = process.memory_info().rss, RunQueue()
    began = time.monotonic()
    for order, run in enumerate(runs):
        queue.add(run, order)
    added = time.monotonic() - began
    grown = process.memory_info().rss - before
    began = time.monotonic()
    left = num_runs
    in_hand: dict[int, str] = {}
    while left:
        for lane in range(lanes):
            if (run_id := in_hand.pop(lane, None)) is not None:
                queue.complete(run_id)
                left -= 1
            if isinstance(assignment := queue.assign(lane), Assignment):
                in_hand[lane] = assignment.run.run_id
    took = time.monotonic() - began
    return {
        "runs": num_runs, "lanes": lanes, "seconds_per_add": added / num_runs, "seconds_per_assignment": took / num_runs,
        "kib_per_waiting_run": grown / 2**10 / num_runs,
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
