"""A small text generator of one's own: exchanges made of a corpus (`train.exchanges`), a run to learn them, a checkpoint to
serve.

With `recipes` it learns to rephrase docstrings as rules do it, and is a real if narrow rephraser; without, it is a stand-in
that proves the rails from training to serving. A study of other text names a real instruct model in `[rephrase.engine]`.
"""

from __future__ import annotations

import hashlib
from typing import Any

from upath import UPath

from synth.corpus import open_corpus
from synth.errors import UserError
from synth.identity import RECIPE_FILE, claim_directory, finish, is_finished
from synth.ledger import open_synthetic
from synth.plan import Plan
from synth.storage import MARKER, exists, list_names, read_bytes, remove_file, study_path
from train.config import GeneratorConfig, PackConfig, PackSource, TokenizerConfig
from train.exchanges import CHAT_TEMPLATE, SOURCE, SYNTHETIC_SOURCE, own_name, taught_identity
from train.flops import count_parameters, train_flops
from train.grid import check_placement, mix, run_of
from train.packed_files import ShardInfo
from train.record import RECORD_FILE, RunRecord, read_record, run_directory
from train.run import RunConfig
from train.sizes import model_of
from train.tokens import PackedInfo, PackedSet
from train.trackers import check_trackers

KIND = "generator"
MADE_BY = "train_generator"
FORMAT = 2
"""Raised whenever the same configuration would give another model; part of the identity."""

WEIGHTS_FILE = "model.safetensors"


def generator_directory(config: GeneratorConfig) -> UPath:
    """Return `generators/<name>` under the study root."""
    return study_path(config.root, "generators", config.name)


def plan_generator(config: GeneratorConfig) -> Plan:
    """Return what `train_generator` would do; nothing is written.

    Raises UserError for an unknown size, a budget below one step or a run that does not fit its placement,
    IncompleteArtefact without the corpus, IdentityMismatch when the name is taken by another generator.
    """
    directory = generator_directory(config)
    recipe, parents = _identity(config)
    if exists(directory / RECIPE_FILE):
        claim_directory(directory, KIND, recipe, parents)
    run = run_before_packing(config)
    check_trackers(config.root, config.placement)
    parameters = count_parameters(run.model, config.vocab_size)
    tokens = run.num_steps * run.tokens_per_step
    flops = train_flops(run.model, config.vocab_size, config.sequence_length, tokens)
    facts: dict[str, object] = {
        "tokens": tokens,
        "steps": run.num_steps,
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
    del recipe["recipes"]
    if config.recipes:
        recipe |= {"exchanges": taught_identity(config)}
    if config.synthetic is None:
        del recipe["synthetic"], recipe["natural_fraction"]
    else:
        parents["synthetic"] = open_synthetic(config.root, config.synthetic)[1]["hash"]
    return recipe, parents


# --- the run ---------------------------------------------------------------------------------------------------


def pack_config(config: GeneratorConfig) -> PackConfig:
    """Return how the exchanges are packed: the vocabulary is that of the corpus, so that rounds of a chain share it."""
    name = own_name(config)
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
    return _run_on(config, PackedInfo.read(config.root, own_name(config)))


def run_before_packing(config: GeneratorConfig) -> RunConfig:
    """Return that run as far as it is known before anything is packed.

    Raises UserError when it cannot be trained on its placement, whatever is packed.
    """
    nothing = ShardInfo(num_tokens=0, sha256="")
    packed = PackedInfo(
        hash="not packed yet", sequence_length=config.sequence_length, vocab_size=config.vocab_size, eot_id=0,
        tokenizer_hash="", sources={}, evaluation={}, evaluation_shard=nothing, domains_left_out={},
    )  # fmt: skip
    run = _run_on(config, packed)
    check_placement([run], packed, config.placement)
    return run


def _run_on(config: GeneratorConfig, packed: PackedInfo) -> RunConfig:
    model = model_of(config.model)
    natural = 1.0 if config.natural_fraction is None else config.natural_fraction
    mixture = mix(SOURCE, SYNTHETIC_SOURCE, 1.0 - natural)
    return run_of(
        config.run,
        own_name(config),
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
