"""Tokenise and pack on Ray against bare `tokenizers` on the same cores and text, in the same run.

    python benchmarks/pack_throughput.py [--packages numpy scipy torch] [--cpus 2] [--repeats 3] [--out FILE.json]

The text is the docstrings of installed packages, built into a corpus. Bare: `Tokenizer.encode_batch` on all of it, in
memory, with as many threads as CPUs; nothing is read or written. Ours: `train.job.pack_tokens`, from Parquet to the
finished manifest, with its tokenizer already trained and Ray's workers started. The two take turns; the fastest of
each counts. `ratio` is ours / bare in tokens a second; the target is 0.8.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ray
import tokenizers

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, machine, parser_of
from synth.config import CorpusConfig
from synth.job import build_corpus
from train import packing
from train.config import PackConfig
from train.job import pack_tokens
from train.sources import open_sources

PACKAGES = ["stdlib", "numpy", "scipy", "torch", "transformers", "ray", "pandas"]


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(packages: list[str], vocab_size: int, cpus: int, repeats: int) -> dict[str, object]:
    """Return tokens per second of both sides and their ratio."""
    # Read once, when the first batch is encoded.
    os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(cpus)}
    with tempfile.TemporaryDirectory() as root:
        ray.init(num_cpus=cpus, include_dashboard=False)
        corpus = CorpusConfig(root=root, sources=({"kind": "docstrings", "packages": packages},))
        build_corpus(corpus)
        config = PackConfig(
            root=root,
            tokenizer={"vocab_size": vocab_size},
            sources={"natural": {"corpus": "natural"}},
            evaluate_on=("natural",),
        )
        manifest = pack_tokens(config)
        directory = Path(str(packing.packed_directory(config)))
        source = open_sources(config)["natural"]
        texts = [document.text for part in range(len(source.parts.paths)) for document in source.read(part)]
        bare = tokenizers.Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
        bare_seconds, our_seconds = [], []
        for _ in range(repeats):
            bare_seconds.append(seconds(lambda: bare.encode_batch(texts, add_special_tokens=False)))
            shutil.rmtree(directory / "sources")
            (directory / "manifest.json").unlink()
            our_seconds.append(seconds(lambda: pack_tokens(config)))
        ray.shutdown()
    counts = manifest["sources"]["natural"]
    return {
        "packages": packages,
        "documents": counts["num_documents"],
        "bytes": counts["num_bytes"],
        "tokens": counts["num_tokens"],
        "shards": len(counts["shards"]),
        "vocab_size": manifest["vocab_size"],
        "cpus": cpus,
        "bare_tokens_per_second": round(counts["num_tokens"] / min(bare_seconds)),
        "pack_tokens_per_second": round(counts["num_tokens"] / min(our_seconds)),
        "ratio": min(bare_seconds) / min(our_seconds),
        "bare_seconds": bare_seconds,
        "pack_seconds": our_seconds,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "ray": ray.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--packages", nargs="+", default=PACKAGES, help="installed packages whose docstrings are packed"
    )
    parser.add_argument("--vocab-size", type=int, default=2048, help="tokens in the trained vocabulary")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="CPUs of both sides")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; the fastest counts")
    options = parser.parse_args()
    give(measure(options.packages, options.vocab_size, options.cpus, options.repeats), options.out)


if __name__ == "__main__":
    main()
