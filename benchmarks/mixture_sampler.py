"""How many tokens a second one core draws from a mixture, rows gathered from the memory-mapped shards.

    python benchmarks/mixture_sampler.py [--source-tokens 64_000_000] [--repeats 3] [--out FILE.json]

A packed set of random tokens, two sources of 16 shards each, is written to a temporary directory once for each
sequence length T. A run then draws its batches in order: `MixtureSampler.slots`, then `PackedSet.gather`. The fastest
of the repeats counts, as tokens of T a row over wall seconds and over CPU seconds of this process; the files are in
the page cache. `sampler_only` leaves the gathering out. The target is 50 M tokens/s a core.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, machine, parser_of
from synth.identity import claim_directory, finish
from synth.storage import study_path, write_bytes_atomic
from train.mixture import MixtureSampler
from train.tokens import PackedSet, shard_name

SHARDS = 16
MIXTURE = {"natural": 2 / 3, "qa": 1 / 3}


def write_set(root: str, sequence_length: int, source_tokens: int) -> PackedSet:
    """Write a packed set of random ids with the sources of MIXTURE; return it opened."""
    directory = study_path(root, "packed", f"random-{sequence_length}")
    identity = claim_directory(directory, "packed", {"tokens": source_tokens, "length": sequence_length}, {})
    random = np.random.default_rng(0)
    sources = {}
    for name in MIXTURE:
        shards: list[dict[str, int | str]] = []
        for shard in range(SHARDS):
            data = random.integers(0, 32_000, source_tokens // SHARDS, np.uint16).tobytes()
            write_bytes_atomic(directory / "sources" / name / f"{shard_name(shard, SHARDS)}.tokens", data)
            shards.append({"num_tokens": len(data) // 2, "sha256": hashlib.sha256(data).hexdigest()})
        num_tokens = source_tokens // SHARDS * SHARDS
        sources[name] = {
            "num_rows": (num_tokens - 1) // sequence_length, "num_tokens": num_tokens, "num_documents": 1,
            "num_bytes": num_tokens, "num_dropped_tokens": 0, "num_altered_documents": 0, "shards": shards,
        }  # fmt: skip
    finish(
        directory, identity, sequence_length=sequence_length, vocab_size=32_000, eot_id=0, tokenizer_hash="none",
        sources=sources, evaluation={}, evaluation_shard={"num_tokens": 0, "sha256": ""}, domains_left_out={},
    )  # fmt: skip
    return PackedSet.open(root, f"random-{sequence_length}")


def fastest(action: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Return the shortest (wall seconds, CPU seconds) of an action."""
    wall, cpu = [], []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        action()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return min(wall), min(cpu)


def draw(packed: PackedSet, num_slots: int, rows_per_batch: int, gather: bool = True) -> None:
    """Draw the batches of a run in order."""
    sampler = MixtureSampler(MIXTURE, packed.info.num_rows, 0)
    for start in range(0, num_slots, rows_per_batch):
        sources, rows = sampler.slots(start, min(start + rows_per_batch, num_slots))
        if gather:
            packed.gather(sampler.names, sources, rows)


def measure_set(packed: PackedSet, num_slots: int, rows_per_batch: int, repeats: int) -> dict[str, int]:
    """Return tokens per second on one set, for one size of batch."""
    draw(packed, num_slots, rows_per_batch)  # maps the shards and fills the page cache
    wall, cpu = fastest(lambda: draw(packed, num_slots, rows_per_batch), repeats)
    _, alone = fastest(lambda: draw(packed, num_slots, rows_per_batch, gather=False), repeats)
    tokens = num_slots * packed.sequence_length
    return {
        "sequence_length": packed.sequence_length,
        "rows_per_batch": rows_per_batch,
        "tokens_per_second": round(tokens / wall),
        "tokens_per_cpu_second": round(tokens / cpu),
        "sampler_only_tokens_per_cpu_second": round(tokens / alone),
    }


def measure(source_tokens: int, repeats: int) -> dict[str, object]:
    """Return tokens per second for each sequence length and batch."""
    results = []
    for sequence_length in (256, 512, 1024, 2048):
        with tempfile.TemporaryDirectory() as root:
            packed = write_set(root, sequence_length, source_tokens)
            num_slots = source_tokens // sequence_length
            results += [measure_set(packed, num_slots, batch, repeats) for batch in (8, 64, 512)]
    return {
        "mixture": MIXTURE,
        "source_tokens": source_tokens,
        "results": results,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--source-tokens", type=int, default=64_000_000, help="tokens in each of the two sources"
    )
    parser.add_argument("--repeats", type=int, default=3, help="passes over each set; the fastest counts")
    options = parser.parse_args()
    give(measure(options.source_tokens, options.repeats), options.out)


if __name__ == "__main__":
    main()
