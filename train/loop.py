"""One pre-training run, from a `RunConfig` and packed tokens to its `RunRecord`.

A run is a pure function of its configuration and the packed set: a kill at any moment and a resume, or another run
before it in the same process, change no bit of it. The number of workers changes the order of float additions and
nothing else.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from transformers import LlamaForCausalLM
from upath import UPath

from synth.errors import UserError
from synth.storage import write_json_atomic
from train.attempts import Attempts, begin_attempt
from train.attention import choose_attention
from train.deepspeed_config import deepspeed_config
from train.devices import choose_kernels
from train.distributed import (
    agreed,
    join_process_group,
    leads,
    open_engine,
    wait_for_all,
    whole_weights,
    world_size,
)
from train.export import export_checkpoint
from train.flops import count_parameters
from train.leftovers import tidy_up
from train.memory import MicrobatchTooLarge, note_smaller_microbatch, read_fit
from train.mixture import check_epochs
from train.model import Pretrainer, Vocabulary, build_llama, compile_layers
from train.placement import TrainPlacement
from train.record import MODEL_DIRECTORY, RECORD_FILE, RunRecord
from train.run import RunConfig
from train.schedule import check_schedule, peak_learning_rate
from train.tokens import PackedSet
from train.training import Training


def train_run(
    run: RunConfig,
    packed: PackedSet,
    placement: TrainPlacement,
    directory: UPath,
    *,
    device: str | torch.device = "cpu",
    report: Callable[[int], None] | None = None,
    deliver: Callable[[LlamaForCausalLM], None] | None = None,
) -> RunRecord:
    """Train a run, or what is left of it, and return its record, which lies in `directory` by then.

    Called by every worker of a process group, or by one process alone. `report` hears the training tokens done, before
    the first step and after every step. `deliver` gets the trained model of a complete run, on the leading worker,
    before the record is written (`train.export.export_checkpoint` makes it a checkpoint others can load); it may be
    called again if the run is interrupted right then.

    A run that diverges has a record that says so. Where the device has not the memory for a microbatch, the run goes on
    with half of it. Raises UserError for a run that cannot be trained as it is configured and placed, OutOfDeviceMemory for
    one that does not fit however it is cut, MicrobatchTooLarge when several workers are to be called again, all together;
    whatever else is raised is for the caller to record.
    """
    device = torch.device(device)
    if device.type == "cpu":
        torch.set_num_threads(placement.threads_per_worker)
    join_process_group(device.type)
    choose_kernels(device, placement)
    _check(run, packed, placement)
    devices = world_size() * placement.devices_per_worker
    attempts = begin_attempt(run, directory, devices) if leads() else None
    record = None
    while record is None:
        try:
            record = _train_if_it_fits(run, packed, placement, directory, device, attempts, report, deliver)
        finally:
            gc.collect()  # an engine is full of cycles, and the next run wants its memory
    if leads():
        write_json_atomic(directory / RECORD_FILE, record.model_dump(mode="json"))
        tidy_up(run, directory)
    return record


def _train_if_it_fits(
    run: RunConfig,
    packed: PackedSet,
    placement: TrainPlacement,
    directory: UPath,
    device: torch.device,
    attempts: Attempts | None,
    report: Callable[[int], None] | None,
    deliver: Callable[[LlamaForCausalLM], None] | None,
) -> RunRecord | None:
    """Train with the largest microbatch not known to be too large; None when it was, and a smaller one is to be tried."""
    fit = agreed(read_fit(directory) if leads() else None)
    assert fit is not None
    placed = fit.placed(placement, run.rows_per_step // world_size())
    try:
        record = _train(run, packed, placed, directory, device, attempts, report, deliver)
    except torch.OutOfMemoryError as error:
        note_smaller_microbatch(run, placed, world_size(), directory, fit, error)
        if world_size() > 1:  # another worker may be waiting for this one, and cannot be told
            raise MicrobatchTooLarge(f"no memory for {placed.rows_per_microbatch} rows at once") from error
        return None
    if record.device is not None and fit.did_not_fit:
        use = record.device.model_copy(update={"did_not_fit": fit.did_not_fit})
        record = record.model_copy(update={"device": use})
    return record


def _train(
    run: RunConfig,
    packed: PackedSet,
    placement: TrainPlacement,
    directory: UPath,
    device: torch.device,
    attempts: Attempts | None,
    report: Callable[[int], None] | None,
    deliver: Callable[[LlamaForCausalLM], None] | None,
) -> RunRecord:
    rate = peak_learning_rate(run.optimizer, count_parameters(run.model, packed.vocab_size).non_embedding)
    module = _fresh_module(run, packed, placement, device)
    with open_engine(module, run, placement, rate) as engine:
        training = Training(run, packed, placement, directory, engine, rate, attempts)
        ended = "interrupted"
        try:
            reason = training.run_to_end(report or (lambda tokens: None))
            ended = "diverged" if reason else "complete"
        finally:
            training.close(ended)
        if training.trunk_checkpoints is not None:
            training.trunk_checkpoints.wait()
        wait_for_all()  # nobody still writes what the leading worker is about to remove
        if leads():
            training.metrics.flush()
        record = agreed(training.record(reason, attempts.number) if attempts is not None else None)
        assert record is not None
        if not reason and (deliver or placement.keep_models):
            with whole_weights(engine, placement):
                if leads() and placement.keep_models:
                    _keep_model(engine.module.llama, run, packed, directory)
                if leads() and deliver:
                    deliver(engine.module.llama)
    return record


def _keep_model(llama: LlamaForCausalLM, run: RunConfig, packed: PackedSet, directory: UPath) -> None:
    export_checkpoint(
        llama, packed.tokenizer_directory, directory / MODEL_DIRECTORY, max_position=run.sequence_length
    )


def _fresh_module(
    run: RunConfig, packed: PackedSet, placement: TrainPlacement, device: torch.device
) -> Pretrainer:
    vocabulary = Vocabulary(packed.vocab_size, packed.eot_id)
    llama = build_llama(run.model, vocabulary, run.sequence_length, run.seed)
    choose_attention(llama, device, run.precision)
    if placement.recompute_activations:
        llama.gradient_checkpointing_enable({"use_reentrant": False})
    if placement.compile_layers:
        compile_layers(llama)
    return Pretrainer(llama, vocabulary.end_of_text)


def _check(run: RunConfig, packed: PackedSet, placement: TrainPlacement) -> None:
    """Raise UserError when the run contradicts itself, or fits neither the packed set nor the workers."""
    if packed.hash != run.packed_hash:
        raise UserError(
            f"packed_hash = {run.packed_hash!r} of run {run.run_id} is not the hash of packed/{run.packed}, "
            f"{packed.hash!r}: plan the run anew on the packed set that is there."
        )
    if packed.sequence_length != run.sequence_length:
        raise UserError(
            f"sequence_length = {run.sequence_length} of run {run.run_id} is not that of packed/{run.packed}, "
            f"{packed.sequence_length}: plan the run anew."
        )
    deepspeed_config(run, placement, world_size(), num_params=1)
    check_schedule(run)
    check_epochs(run, packed.info.num_rows)
