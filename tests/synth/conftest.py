"""A finished corpus in a moment, without the job that builds one, and what the rephrasing tests share."""

import asyncio
import hashlib
import json

import pyarrow as pa
import pytest

from synth import shuffle
from synth.config import RephraseConfig
from synth.documents import DOCUMENT_SCHEMA
from synth.engines.factory import open_engine
from synth.identity import claim_directory, finish
from synth.ledger import missing_parts
from synth.parts import part_name
from synth.rows import finished_row, finished_table
from synth.storage import study_path, write_parquet_atomic
from synth.worker import RephraseWorker

TOPICS = (
    "harbour",
    "glacier",
    "orchard",
    "compass",
    "lantern",
    "quarry",
    "meadow",
    "printer",
    "violin",
    "turbine",
)


def sentence(number):
    first, second, third = (TOPICS[(number * step + step) % len(TOPICS)] for step in (1, 3, 7))
    return f"The {first} number {number} stands beside the {second}, and nobody has moved the {third} since."


def text_of(number, sentences=4):
    return " ".join(sentence(number * 31 + at) for at in range(sentences))


def table_of(drafts, outcomes, provenance, held_out=None):
    """The part that drafts and their outcomes make."""
    pairs = zip(drafts, outcomes, strict=True)
    return finished_table([finished_row(draft, outcome, provenance, held_out) for draft, outcome in pairs])


def make_parts(work, parts=None, engine=None):
    """Make parts (all that are missing) together on one worker, as an actor does; return (entries, engine)."""
    work.claim()
    engine = engine or open_engine(work.config.engine, work.config.placement, work.model)

    async def everything():
        worker = RephraseWorker(work, engine)
        todo = missing_parts(work.directory, work.num_parts) if parts is None else parts
        try:
            return await asyncio.gather(*(worker.make_part(part) for part in todo))
        finally:
            await worker.close()

    return asyncio.run(everything()), engine


@pytest.fixture
def make_corpus():
    """`make(root, texts, documents_per_part=4, name="natural")`: write a finished corpus of these texts."""

    def make(root, texts, documents_per_part=4, name="natural"):
        directory = study_path(str(root), "corpora", name)
        identity = claim_directory(directory, "corpus", {"texts": list(texts)}, {})
        num_parts = -(-len(texts) // documents_per_part)
        rows = [
            (hashlib.sha256(f"{at} {text}".encode()).hexdigest()[:24], text, f"domain{at % 2}", "test")
            for at, text in enumerate(texts)
        ]
        for part in range(num_parts):
            chosen = rows[part * documents_per_part : (part + 1) * documents_per_part]
            values = [dict(zip(DOCUMENT_SCHEMA.names, row, strict=True)) for row in chosen]
            table = pa.Table.from_pylist(values, schema=DOCUMENT_SCHEMA)
            write_parquet_atomic(directory / "train" / part_name(part, num_parts), table)
        none = {"parts": 0, "documents": 0, "bytes": 0}
        counts = {
            "parts": num_parts,
            "documents": len(texts),
            "bytes": sum(len(text.encode()) for text in texts),
        }
        finish(directory, identity, splits={"train": counts, "held_out": none})
        return directory

    return make


@pytest.fixture
def natural(tmp_path, make_corpus):
    """A study root with a corpus of 24 documents in 6 parts."""
    make_corpus(tmp_path, [text_of(number) for number in range(24)])
    return str(tmp_path)


LAX = {"max_prompt_echo": 1.0, "min_words": 1, "min_length_ratio": 0.0, "max_length_ratio": 100.0, "max_repetition": 1.0, "min_source_words": 0.0, "max_source_overlap": 1.0, "format": "free", "reject_language_drift": False}  # fmt: skip
"""Thresholds under which only what a test asks of the fake engine is rejected."""


@pytest.fixture
def fake_config(natural):
    """`config(behaviour={...}, **fields)`: a RephraseConfig over `natural` with the fake engine."""

    def config(behaviour=None, root=natural, **fields):
        values = {
            "root": root,
            "corpus": "natural",
            "recipes": ("hq", "qa"),
            "engine": {"kind": "fake", "model": "fake", "engine_arguments": behaviour or {}},
            "recipe_overrides": {"thresholds": LAX},
        }
        return RephraseConfig.model_validate(values | fields)

    return config


TINY_SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 1024, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """Directory of the tiny model without its weights: a byte-level tokenizer of 512 tokens, and no torch to make it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    directory = tmp_path_factory.mktemp("tiny-tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text_of(number) for number in range(200)], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **TINY_SHAPE}))
    return directory


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer, tmp_path_factory):
    """Directory of a random Llama of 64 x 2 with that tokenizer, as a checkpoint on disk."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("tiny-model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tiny_tokenizer / name).read_bytes())
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY_SHAPE)).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture
def small_runs(monkeypatch):
    """A shuffle of many runs and buckets from a few hundred documents."""
    monkeypatch.setattr(shuffle, "RUN_BYTES", 60_000)
    monkeypatch.setattr(shuffle, "ROWS_PER_GROUP", 8)
    monkeypatch.setattr("synth.corpus.RUN_BYTES", 60_000)
