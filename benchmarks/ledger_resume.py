"""How long a job with very many finished parts takes to know that it has nothing to do, and whether memory stays flat.

    python benchmarks/ledger_resume.py [--parts 10000] [--out FILE.json]

Two things are measured, each in processes of its own:

* resume: a set of 10,000 parts, all finished but the last. The seconds until a resumed job knows what is missing
  (`missing_parts`), and until it has added up and checked every ledger entry at the end (`read_entries`, `summarise`),
  against a bare listing of the directory.
* memory: the peak resident memory of a worker that makes a whole set on the fake engine, for a corpus and for one ten
  times as large with parts of the same size; the same of the driver and of the actor when the job runs on Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, machine, parser_of, versions
from synth.config import RephraseConfig
from synth.identity import claim_directory, finish
from synth.ledger import LedgerEntry, Tally, entry_path, missing_parts, read_entries, summarise
from synth.parts import part_name
from synth.storage import study_path, write_parquet_atomic

SET_PARTS = (40, 400)
"""Both hold more parts than an engine of 256 sequences has in flight, 33 of 64 rows: below that, memory goes with the corpus."""

WORDS = (
    "the",
    "harbour",
    "lies",
    "north",
    "of",
    "a",
    "long",
    "stone",
    "wall",
    "and",
    "nobody",
    "moved",
    "the",
    "boats",
)


def write_ledger(root: str, num_parts: int) -> None:
    """Write the ledger entries of a set of which only the last part is missing."""
    tally = Tally(
        rows=512, kept=430, rejected=80, quarantined=2, reasons={"refusal": 60, "repetition": 40, "killed_engine": 2},
        finish_reasons={"stop": 480, "length": 30}, prompt_tokens=150_000, completion_tokens=90_000, accepted_tokens=80_000,
    )  # fmt: skip
    directory = study_path(root, "synthetic", "rephrased")
    for part in range(num_parts - 1):
        entry = LedgerEntry(
            part=part, documents=256, recipes={"hq": tally, "qa": tally}, sha256="0" * 64, bytes=10**6, prompt_format="chat_template",
            engine_version="vllm", device_seconds=30.0, engine_start_seconds=0.0, engine_deaths=0, retries=1, lost_attempts=1,
            lost_device_seconds=0.5, wall_seconds=40.0,
            quarantined=[{"row": "x/0/hq/0", "reason": "killed_engine", "detail": "the engine died with no other request in it"}] * 2,
        )  # fmt: skip
        path = Path(str(entry_path(directory, part, num_parts)))
        if part == 0:
            path.parent.mkdir(parents=True)
        path.write_text(json.dumps(entry.model_dump(mode="json"), indent=2, sort_keys=True))


def resume(root: str, num_parts: int) -> dict[str, float]:
    """Return seconds of listing, of finding what is missing, of adding up what is there; and the peak memory."""
    directory = study_path(root, "synthetic", "rephrased")
    base = _peak_mib()
    began = time.perf_counter()
    listed = len(os.listdir(str(directory / "ledger")))
    listing = time.perf_counter() - began
    began = time.perf_counter()
    missing = missing_parts(directory, num_parts)
    finding = time.perf_counter() - began
    assert missing == [listed]
    began = time.perf_counter()
    summary = summarise(itertools.islice(read_entries(directory, num_parts), num_parts - 1))
    adding = time.perf_counter() - began
    assert summary["rows"] == (num_parts - 1) * 1024
    return {
        "bare_listing_seconds": listing, "missing_parts_seconds": finding, "read_and_sum_entries_seconds": adding,
        "resume_seconds": finding + adding, "peak_memory_growth_mib": _peak_mib() - base,
    }  # fmt: skip


def write_corpus(root: str, num_parts: int, per_part: int = 64) -> None:
    """Write a finished corpus of parts of the same size."""
    directory = study_path(root, "corpora", "natural")
    identity = claim_directory(directory, "corpus", {"parts": num_parts}, {})
    for part in range(num_parts):
        numbers = range(part * per_part, (part + 1) * per_part)
        columns = {
            "doc_id": [f"{number:024x}" for number in numbers],
            "text": [
                f"Number {number}: " + " ".join(WORDS[(number + at) % len(WORDS)] for at in range(300))
                for number in numbers
            ],
            "domain": ["harbour"] * per_part,
            "source": ["made"] * per_part,
        }
        write_parquet_atomic(directory / "train" / part_name(part, num_parts), pa.table(columns))
    splits = {
        "train": {"parts": num_parts, "documents": num_parts * per_part},
        "held_out": {"parts": 0, "documents": 0},
    }
    finish(directory, identity, splits=splits)


def set_config(root: str) -> RephraseConfig:
    """Return the job the memory is measured of."""
    return RephraseConfig.model_validate(
        {"root": root, "corpus": "natural", "recipes": ["hq"], "engine": {"kind": "fake", "model": "fake"}}
    )


def make_set_on_ray(root: str) -> dict[str, float]:
    """Make a whole set on the fake engine by the job itself; return seconds and the peak memory of driver and actor."""
    import ray

    from synth.job import rephrase_corpus

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    peaks, over = {"driver": 0.0, "actor": 0.0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "RephrasePart" in process.name() or "MapWorker" in " ".join(process.cmdline()):
                        peaks["actor"] = max(peaks["actor"], process.memory_info().rss / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    manifest = rephrase_corpus(set_config(root))
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    ray.shutdown()
    return {
        "seconds": seconds,
        "driver_mib": _peak_mib(),
        "actor_mib": peaks["actor"],
        "parts": manifest["parts"],
    }


def make_set(root: str) -> dict[str, float]:
    """Make a whole set on the fake engine in this process; return seconds and the peak memory after a tenth and at the end."""
    from synth.rephrase import finish_work, open_work
    from synth.worker import RephraseWorker

    config = set_config(root)
    work = open_work(config)
    work.claim()

    async def everything() -> None:
        worker = RephraseWorker(work)
        for at in range(0, work.num_parts, 64):  # a job's driver hands parts out as others finish
            await worker.make_parts(range(at, min(at + 64, work.num_parts)))
        await worker.close()

    began = time.perf_counter()
    asyncio.run(everything())
    finish_work(work)
    return {"seconds": time.perf_counter() - began, "peak_memory_mib": _peak_mib(), "parts": work.num_parts}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "resume": resume,
    "make_set": make_set,
    "make_set_on_ray": make_set_on_ray,
}


def alone(action: str, *arguments: Any) -> dict[str, Any]:
    """Run an action in a process of its own and return what it returned."""
    command = [sys.executable, __file__, "--action", action, "--arguments", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(num_parts: int) -> dict[str, Any]:
    """Return what resuming takes and what memory a small and a large corpus take, with machine and versions."""
    with tempfile.TemporaryDirectory() as root:
        write_ledger(root, num_parts)
        resumed = alone("resume", root, num_parts)
    sets: dict[str, dict[str, Any]] = {"make_set": {}, "make_set_on_ray": {}}
    for action, parts in itertools.product(sets, SET_PARTS):
        with tempfile.TemporaryDirectory() as root:
            write_corpus(root, parts)
            sets[action][f"{parts} parts"] = alone(action, root)

    def growth(action: str, name: str) -> float:
        small, large = (found[name] for found in sets[action].values())
        return float(large / small)

    return {
        "finished_parts": num_parts - 1,
        "resume": resumed,
        "memory": sets,
        "memory_of_ten_times_the_corpus_over_the_corpus": {
            "worker": growth("make_set", "peak_memory_mib"),
            "driver on Ray": growth("make_set_on_ray", "driver_mib"),
            "actor on Ray": growth("make_set_on_ray", "actor_mib"),
        },
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    """Measure and print the result as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--parts", type=int, default=10_000, help="parts of the set that is resumed")
    parser.add_argument("--action", choices=sorted(ACTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.action:
        print(json.dumps(ACTIONS[options.action](*json.loads(options.arguments))))
        return
    give(measure(options.parts), options.out)


if __name__ == "__main__":
    main()
