"""Corpora of made-up texts in files: written, built without Ray, read back."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq

from synth.config import CorpusConfig
from synth.corpus import CorpusBuild, open_corpus
from synth.documents import DOCUMENT_SCHEMA

WORDS = [
    "the",
    "of",
    "a",
    "shape",
    "turns",
    "slowly",
    "under",
    "bright",
    "water",
    "while",
    "every",
    "reader",
    "counts",
]


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        f"{seed}/{number}: " + " ".join(rng.choices(WORDS, k=rng.randint(40, 80))) for number in range(count)
    ]


def write_jsonl(path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def file_config(root, *paths, **fields) -> CorpusConfig:
    source = {"kind": "files", "paths": paths} | fields.pop("source", {})
    return CorpusConfig(root=str(root), sources=(source,), **{"documents_per_part": 16} | fields)


def build(config: CorpusConfig) -> dict:
    """What `synth.job.build_corpus` does, one task after the other."""
    work = CorpusBuild(config)
    for stage in work.stages():
        for task in stage.todo:
            stage.work(task)
    return work.finish()


def documents(config: CorpusConfig, split: str) -> pa.Table:
    parts, _ = open_corpus(config.root, config.name, split)
    return (
        pa.concat_tables([pq.read_table(part) for part in parts]) if parts else DOCUMENT_SCHEMA.empty_table()
    )


def bytes_under(directory) -> dict[str, bytes]:
    """Every file of an artefact but its manifest, which carries provenance."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
