"""A small text generator of one's own: exchanges cut from a corpus, a run to learn them, a checkpoint to serve.

It is a stand-in that proves the rails from training to serving, and nothing more. It is never shown how to rephrase:
it learns to answer a piece of a document with what came next in that document, and to stop. A real study names a real
instruct model in `[rephrase.engine]`.

An exchange is one training document, in plain text: the prompt, a line that says an answer follows, the answer. The
packed stream puts an end-of-text token before each document, so the model learns to end its answer with that token,
and the chat template writes prompts the same way: end-of-text, prompt, that line. No token is special besides, so a
document that spells out the template is text like any other.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pyarrow as pa
from upath import UPath

from synth.chunking import chunk_spans, count_characters
from synth.corpus import Split, corpus_directory, open_corpus
from synth.documents import DOCUMENT_SCHEMA, document_id
from synth.errors import UserError
from synth.identity import RECIPE_FILE, claim_directory, finish, is_finished
from synth.ledger import open_synthetic
from synth.plan import Plan
from synth.shuffle import part_name
from synth.storage import (
    MARKER,
    exists,
    list_names,
    read_bytes,
    read_parquet,
    remove_file,
    study_path,
    write_parquet_atomic,
)
from train.config import GeneratorConfig, PackConfig, PackSource, TokenizerConfig
from train.flops import count_parameters, train_flops
from train.grid import mix, run_of
from train.hyperparameters import rows_per_step_of
from train.record import RECORD_FILE, RunRecord, read_record, run_directory
from train.run import RunConfig
from train.sizes import model_of
from train.sources import open_sources
from train.tokens import PackedInfo, PackedSet

KIND = "generator"
MADE_BY = "train_generator"
SOURCE = "exchanges"
SYNTHETIC_SOURCE = "synthetic-exchanges"
"""The same of a synthetic set, in a generator of a later round."""

FORMAT = 2
"""Raised whenever the same configuration would give another model; part of the identity."""

ANSWER_LINE = "### Answer"
"""The line between prompt and answer."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] | trim }}\n\n{% endfor %}"
    + ANSWER_LINE
    + "{{ '\\n' }}"  # a line break that ends a template itself is dropped
)
"""Prompts of any roles, in order, as the exchanges have them."""

WEIGHTS_FILE = "model.safetensors"

CHARACTERS_PER_TOKEN = 3
"""Rough length of a token of a small vocabulary; decides only how long exchanges are, characters."""


def generator_directory(config: GeneratorConfig) -> UPath:
    """Return `generators/<name>` under the study root."""
    return study_path(config.root, "generators", config.name)


def plan_generator(config: GeneratorConfig) -> Plan:
    """Return what `train_generator` would do; nothing is written.

    Raises UserError for an unknown size or a budget below one step, IncompleteArtefact without the corpus,
    IdentityMismatch when the name is taken by another generator.
    """
    directory = generator_directory(config)
    recipe, parents = _identity(config)
    if exists(directory / RECIPE_FILE):
        claim_directory(directory, KIND, recipe, parents)
    model = model_of(config.model)
    num_params = count_parameters(model, config.vocab_size).non_embedding
    rows = rows_per_step_of(config.run, num_params, config.train_tokens, config.sequence_length)
    per_step = rows * config.sequence_length
    num_steps = config.train_tokens // per_step
    if not num_steps:
        raise UserError(
            f"train_tokens = {config.train_tokens:,} is less than one step of {per_step:,} tokens "
            "(run.rows_per_step x sequence_length): raise it or lower run.rows_per_step."
        )
    parameters = count_parameters(model, config.vocab_size)
    flops = train_flops(model, config.vocab_size, config.sequence_length, num_steps * per_step)
    facts: dict[str, object] = {
        "tokens": num_steps * per_step,
        "steps": num_steps,
        "FLOP": float(f"{flops:.3g}"),
        f"parameters of {config.model}": f"{parameters.non_embedding:,} non-embedding, {parameters.total:,} in all",
    }
    warnings = []
    if config.max_position > config.sequence_length:
        warnings.append(
            f"max_position = {config.max_position} is more than the sequence_length = {config.sequence_length} the model "
            "is trained on: it will answer longer prompts, and badly"
        )
    return Plan(MADE_BY, str(directory), is_finished(directory), facts, tuple(warnings))


def claim_generator(config: GeneratorConfig) -> str:
    """Make `generators/<name>` this configuration's own and return its identity. Raises as `plan_generator` does."""
    return claim_directory(generator_directory(config), KIND, *_identity(config))


def _identity(config: GeneratorConfig) -> tuple[dict[str, Any], dict[str, str]]:
    _, manifest = open_corpus(config.root, config.corpus)
    recipe, parents = {**config.identity(), "format": FORMAT}, {"corpus": manifest["hash"]}
    if config.synthetic is None:
        del recipe["synthetic"], recipe["natural_fraction"]
    else:
        parents["synthetic"] = open_synthetic(config.root, config.synthetic)[1]["hash"]
    return recipe, parents


# --- exchanges -------------------------------------------------------------------------------------------------


def exchanges_of(text: str, sequence_length: int) -> list[str]:
    """Return the exchanges a document gives: neighbouring pieces of it, the second in answer to the first.

    Two pieces together fill about `sequence_length` tokens. A text of a single word gives none.
    """
    longest = min(
        sequence_length * CHARACTERS_PER_TOKEN // 2, math.ceil(len(text) * 2 / 3)
    )  # so that there are two
    pieces = [text[span.start : span.end] for span in chunk_spans(text, longest, count_characters)]
    pairs = list(zip(pieces[::2], pieces[1::2], strict=False))
    if len(pieces) > 1 and len(pieces) % 2:
        pairs.append((pieces[-2], pieces[-1]))
    return [f"{prompt}\n\n{ANSWER_LINE}\n{answer}" for prompt, answer in pairs]


def write_exchanges(config: GeneratorConfig) -> None:
    """Write the exchanges of the corpus, part by part, as a corpus of their own, and those of the synthetic set likewise.

    Does nothing where they are there.
    """
    _, manifest = open_corpus(config.root, config.corpus)
    directory = corpus_directory(config.root, _own_name(config))
    recipe = {"sequence_length": config.sequence_length, "format": FORMAT}
    identity = claim_directory(directory, SOURCE, recipe, {"corpus": manifest["hash"]})
    if not is_finished(directory):
        finish(
            directory,
            identity,
            splits={split: _write_split(config, split, directory) for split in get_args(Split)},
        )
    if config.synthetic is not None:
        _write_synthetic_exchanges(config, config.synthetic)


def _write_synthetic_exchanges(config: GeneratorConfig, synthetic: str) -> None:
    directory = corpus_directory(config.root, f"{config.name}.{SYNTHETIC_SOURCE}")
    recipe = {"sequence_length": config.sequence_length, "format": FORMAT}
    made = open_synthetic(config.root, synthetic)[1]["hash"]
    identity = claim_directory(directory, SYNTHETIC_SOURCE, recipe, {"synthetic": made})
    if is_finished(directory):
        return
    asked = PackConfig(
        root=config.root, sources={synthetic: PackSource(synthetic=synthetic)}, evaluate_on=(config.corpus,)
    )
    source = open_sources(asked)[synthetic]

    def documents(part: int) -> pa.Table:
        rows = [
            {"doc_id": each.doc_id, "text": each.text, "domain": "synthetic", "source": synthetic}
            for each in source.read(part)
        ]
        return pa.Table.from_pylist(rows, DOCUMENT_SCHEMA)

    parts = [functools.partial(documents, part) for part in range(len(source.parts.paths))]
    nothing = {"parts": 0, "documents": 0, "bytes": 0}
    counts = _write_parts(parts, directory / "train", config.sequence_length)
    finish(directory, identity, splits={"train": counts, "held_out": nothing})


def _write_split(config: GeneratorConfig, split: Split, directory: UPath) -> dict[str, int]:
    paths, _ = open_corpus(config.root, config.corpus, split)
    parts = [functools.partial(read_parquet, path) for path in paths]
    return _write_parts(parts, directory / split, config.sequence_length)


def _write_parts(
    parts: Sequence[Callable[[], pa.Table]], directory: UPath, sequence_length: int
) -> dict[str, int]:
    counts = {"parts": len(parts), "documents": 0, "bytes": 0}
    for part, read in enumerate(parts):
        target = directory / part_name(part, len(parts))
        if not exists(target):
            write_parquet_atomic(target, _exchanges_table(read(), sequence_length))
        texts = read_parquet(target, ["text"])["text"].to_pylist()
        counts["documents"] += len(texts)
        counts["bytes"] += sum(len(text.encode()) for text in texts)
    return counts


def _exchanges_table(documents: pa.Table, sequence_length: int) -> pa.Table:
    rows = sorted(
        (document_id(exchange), exchange, row["domain"], row["source"])
        for row in documents.to_pylist()
        for exchange in exchanges_of(row["text"], sequence_length)
    )
    return pa.Table.from_pylist(
        [dict(zip(DOCUMENT_SCHEMA.names, row, strict=True)) for row in rows], DOCUMENT_SCHEMA
    )


# --- the run ---------------------------------------------------------------------------------------------------


def pack_config(config: GeneratorConfig) -> PackConfig:
    """Return how the exchanges are packed: the vocabulary is that of the corpus, so that rounds of a chain share it."""
    name = _own_name(config)
    sources = {SOURCE: PackSource(corpus=name)}
    if config.synthetic is not None:
        sources[SYNTHETIC_SOURCE] = PackSource(corpus=f"{config.name}.{SYNTHETIC_SOURCE}")
    return PackConfig(
        root=config.root,
        name=name,
        tokenizer=TokenizerConfig(
            kind="train", vocab_size=config.vocab_size, train_on=(SOURCE,) if config.synthetic else ()
        ),
        sources=sources,
        evaluate_on=(name,),
        sequence_length=config.sequence_length,
    )


def run_config(config: GeneratorConfig) -> RunConfig:
    """Return the run that trains the generator on its packed exchanges."""
    packed = PackedInfo.read(config.root, _own_name(config))
    model = model_of(config.model)
    natural = 1.0 if config.natural_fraction is None else config.natural_fraction
    mixture = mix(SOURCE, SYNTHETIC_SOURCE, 1.0 - natural)
    return run_of(
        config.run,
        _own_name(config),
        packed,
        model,
        config.train_tokens,
        mixture,
        config.seed,
        root=config.root,
    )


def train_and_export(
    config: GeneratorConfig, run: RunConfig, packed: PackedSet, *arguments: Any, **options: Any
) -> RunRecord:
    """Train the run as `train.loop.train_run` does, and write its model to `generators/<name>` before its record."""
    from train.export import export_checkpoint  # torch and transformers, only where the model is
    from train.loop import train_run

    def deliver(llama: Any) -> None:
        export_checkpoint(
            llama,
            packed.tokenizer_directory,
            generator_directory(config),
            max_position=config.max_position,
            chat_template=CHAT_TEMPLATE,
        )

    return train_run(run, packed, *arguments, deliver=deliver, **options)


def exported_record(config: GeneratorConfig, run: RunConfig) -> RunRecord | None:
    """Return the record of the run if it has a model in `generators/<name>` or has none to have, None if there is training
    to do.

    The record of a complete run whose model went elsewhere (the directory was deleted, or another generator shares the
    run) is taken away, so that the run is trained again.
    """
    record = read_record(config.root, run.run_id)
    if record is None or record.status != "complete":
        return record
    if not exists(generator_directory(config) / WEIGHTS_FILE):
        remove_file(run_directory(config.root, run.run_id) / RECORD_FILE)
        return None
    return record


def finish_generator(config: GeneratorConfig, identity: str, record: RunRecord) -> dict[str, Any]:
    """Write the manifest of the generator and return it. Raises UserError when its run did not complete."""
    directory = generator_directory(config)
    if record.status != "complete":
        raise UserError(
            f"generator {config.name!r} was not trained: its run {record.run_id} {record.status} ({record.reason}); delete "
            f"{run_directory(config.root, record.run_id) / RECORD_FILE} to try again."
        )
    files = {
        name: read_bytes(directory / name)
        for name in list_names(directory)
        if name not in (RECIPE_FILE, MARKER)
    }
    return finish(
        directory,
        identity,
        run_id=record.run_id,
        num_params_total=record.num_params_total,
        num_params_non_embedding=record.num_params_non_embedding,
        train_tokens=record.train_tokens,
        train_flops=record.train_flops,
        device_seconds=record.device_seconds,
        bits_per_byte=record.final.bits_per_byte if record.final else None,
        files={
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
    )


def _own_name(config: GeneratorConfig) -> str:
    """Name of the generator's exchanges and packed set."""
    return f"{config.name}.{SOURCE}"
