"""One pre-training run, from a `RunConfig` and packed tokens to its `RunRecord`.

A run is a pure function of its configuration and the packed set: a kill at any moment and a resume, or another run
before it in the same process, change no bit of it. The number of workers changes the order of float additions and
nothing else.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM
from upath import UPath

from synth.errors import UserError
from synth.identity import provenance
from synth.storage import write_json_atomic
from train.attempts import begin_attempt, forget_attempts
from train.checkpoint import CheckpointWriter, RunState, remove_checkpoints
from train.deepspeed_config import deepspeed_config, rows_per_microbatch
from train.devices import device_name, memory_in_use, peak_flops
from train.distributed import (
    agreed,
    join_process_group,
    leads,
    open_engine,
    rank,
    set_learning_rate,
    total,
    wait_for_all,
    whole_weights,
    world_size,
)
from train.divergence import LossWatch
from train.evaluation import evaluate, evaluation_steps
from train.export import export_checkpoint
from train.flops import count_parameters, train_flops, train_flops_6nd
from train.memory import FIT_FILE, MicrobatchTooLarge, note_smaller_microbatch, read_fit
from train.metrics import MetricsLog, SourceLosses, StepMetrics, finite
from train.mixture import MixtureSampler, check_epochs
from train.model import Pretrainer, Vocabulary, build_llama
from train.placement import TrainPlacement
from train.record import MODEL_DIRECTORY, RECORD_FILE, DeviceUse, RunRecord
from train.run import RunConfig
from train.schedule import check_schedule, learning_rate, peak_learning_rate, trunk_steps
from train.tokens import PackedSet
from train.trackers import Trackers
from train.trunk import leave_trunk, load_state, save_trunk, trunk_writer

SYNC_STEPS = 8
"""Every so many steps the workers exchange losses and the time; in between nothing waits for the device."""


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
    _check(run, packed, placement)
    attempts = begin_attempt(run, directory) if leads() else 0
    record = None
    while record is None:
        try:
            record = _train_if_it_fits(run, packed, placement, directory, attempts, report, deliver)
        finally:
            gc.collect()  # an engine is full of cycles, and the next run wants its memory
    if leads():
        write_json_atomic(directory / RECORD_FILE, record.model_dump(mode="json"))
        remove_checkpoints(directory)
        leave_trunk(run, directory)
        forget_attempts(directory)
        (directory / FIT_FILE).unlink(missing_ok=True)
    return record


def _train_if_it_fits(
    run: RunConfig,
    packed: PackedSet,
    placement: TrainPlacement,
    directory: UPath,
    attempts: int,
    report: Callable[[int], None] | None,
    deliver: Callable[[LlamaForCausalLM], None] | None,
) -> RunRecord | None:
    """Train with the largest microbatch not known to be too large; None when it was, and a smaller one is to be tried."""
    fit = agreed(read_fit(directory) if leads() else None)
    assert fit is not None
    placed = fit.placed(placement, run.rows_per_step // world_size())
    try:
        record = _train(run, packed, placed, directory, attempts, report, deliver)
    except torch.OutOfMemoryError as error:
        note_smaller_microbatch(run, placed, world_size(), directory, fit, error)
        if world_size() > 1:  # another worker may be waiting for this one, and cannot be told
            raise MicrobatchTooLarge(f"no memory for {placed.rows_per_microbatch} rows at once") from error
        return None
    if record.device is not None and fit.did_not_fit:
        device = record.device.model_copy(update={"did_not_fit": fit.did_not_fit})
        record = record.model_copy(update={"device": device})
    return record


def _train(
    run: RunConfig,
    packed: PackedSet,
    placement: TrainPlacement,
    directory: UPath,
    attempts: int,
    report: Callable[[int], None] | None,
    deliver: Callable[[LlamaForCausalLM], None] | None,
) -> RunRecord:
    rate = peak_learning_rate(run.optimizer, count_parameters(run.model, packed.vocab_size).non_embedding)
    with open_engine(_fresh_module(run, packed, placement), run, placement, rate) as engine:
        training = _Training(run, packed, placement, directory, engine, rate)
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
        record = agreed(training.record(reason, attempts))
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


class _Training:
    """The loop of one run, and what it carries from step to step."""

    def __init__(
        self,
        run: RunConfig,
        packed: PackedSet,
        placement: TrainPlacement,
        directory: UPath,
        engine: Any,
        rate: float,
    ) -> None:
        self.run, self.packed, self.placement, self.directory = run, packed, placement, directory
        self.engine, self.peak_rate = engine, rate
        self.sampler = MixtureSampler(run.mixture, packed.info.num_rows, run.seed)
        self.microbatch = rows_per_microbatch(run, placement, world_size())
        self.evaluate_after = evaluation_steps(run.num_steps, run.evaluations)
        self.metrics = MetricsLog(directory, run)
        self.checkpoints = CheckpointWriter(directory, placement)
        self.trunk_checkpoints = trunk_writer(run, directory, placement) if run.branching else None
        state, self.trunk = load_state(engine, run, directory, placement)
        self.leaves_trunk_at = trunk_steps(run) if run.branching else None
        wall_seconds = max(state.wall_seconds, self.metrics.resume(state.step)) if leads() else 0.0
        self.trackers = Trackers(run, placement, directory, state.step) if leads() else None
        self.began = self.checkpointed = self.mark = time.perf_counter()
        self.began -= wall_seconds
        self.before = state
        self.step = state.step
        self.window = list(state.window_losses)
        self.by_source = SourceLosses(run, self.sampler, state.window_source_nats)
        self.pending_source_nats = torch.zeros(
            len(self.sampler.names), dtype=torch.float64, device=engine.device
        )
        self.evaluations = list(state.evaluations)
        self.watch = LossWatch(packed.vocab_size, state.watch)
        self.train_seconds = self.line_train_seconds = state.train_seconds
        self.line_step = state.step
        self.device_name = device_name(engine.device)
        self.peak_flops = peak_flops(self.device_name, run.precision, placement)
        self.peak_memory_bytes = memory_in_use(engine.device)

    def run_to_end(self, report: Callable[[int], None]) -> str | None:
        """Train the steps that are left; return why the run diverged, or None."""
        pending: list[torch.Tensor] = []
        report(self.step * self.run.tokens_per_step)
        while self.step < self.run.num_steps:
            rate = learning_rate(self.run, self.peak_rate, self.step)
            pending.append(self._train_step(rate))
            self.step += 1
            report(self.step * self.run.tokens_per_step)
            line, evaluation = self.metrics.wants(self.step), self.step in self.evaluate_after
            leaves = self.step == self.leaves_trunk_at
            if not (line or evaluation or leaves or self.step % SYNC_STEPS == 0):
                continue
            reason, checkpoint = self._exchange(pending)
            if line or reason:
                self._write_line(rate)
            if reason:
                return reason
            if evaluation:
                self._evaluate()
            if leaves:
                self._leave_trunk()
            if checkpoint and self.step < self.run.num_steps:
                self._checkpoint()
            self.mark = time.perf_counter()
        return None

    def record(self, reason: str | None, attempts: int) -> RunRecord:
        """Return the record of the run as it stands."""
        run, vocab_size = self.run, self.packed.vocab_size
        num_params = count_parameters(run.model, vocab_size)
        train_tokens = self.step * run.tokens_per_step
        use = self.sampler.use(self.step * run.rows_per_step)
        wall_seconds = time.perf_counter() - self.began
        return RunRecord(
            run_id=run.run_id,
            config=run,
            status="diverged" if reason else "complete",
            reason=reason,
            num_params_non_embedding=num_params.non_embedding,
            num_params_total=num_params.total,
            train_tokens=train_tokens,
            train_flops_6nd=train_flops_6nd(num_params.non_embedding, train_tokens),
            train_flops=train_flops(run.model, vocab_size, run.sequence_length, train_tokens),
            sources={name: rows.source_use(run.sequence_length) for name, rows in use.items()},
            final=None if reason else self.evaluations[-1],
            evaluations=tuple(self.evaluations),
            peak_learning_rate=self.peak_rate,
            wall_seconds=wall_seconds,
            device_seconds=self._device_seconds(wall_seconds),
            trunk=self.trunk,
            tokens_per_second=train_tokens / self.train_seconds,
            device=DeviceUse(
                name=self.device_name,
                peak_flops_per_second=self.peak_flops,
                mfu_fraction=self._mfu(train_tokens / self.train_seconds),
                peak_memory_bytes=max(self.peak_memory_bytes, memory_in_use(self.engine.device)),
                rows_per_microbatch=self.microbatch,
            ),
            attempts=attempts,
            placement=self.placement,
            provenance=provenance(),
        )

    def _train_step(self, rate: float) -> torch.Tensor:
        """Do one optimiser step; return this worker's mean loss in it, a scalar still on the device."""
        set_learning_rate(self.engine, rate)
        rows, of_source = self._rows()
        microbatches = rows.split(self.microbatch)
        loss = torch.zeros((), device=self.engine.device)
        row_nats = []
        for microbatch in microbatches:
            part, nats = self.engine(microbatch)
            self.engine.backward(part)
            self.engine.step()
            loss += part.detach()
            row_nats.append(nats)
        self.pending_source_nats += of_source @ torch.cat(row_nats)
        return loss / len(microbatches)

    def _rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this worker's rows of the step, int64 [R, T+1] with R = rows_per_step / workers, and which of them each
        source has, 0 or 1, float64 [sources, R]."""
        share = self.run.rows_per_step // world_size()
        start = self.step * self.run.rows_per_step + rank() * share
        sources, rows = self.sampler.slots(start, start + share)
        tokens = self.packed.gather(self.sampler.names, sources, rows)
        of_source = np.arange(len(self.sampler.names))[:, None] == sources
        device = self.engine.device
        return (
            torch.from_numpy(tokens.astype(np.int64)).to(device, non_blocking=True),
            torch.from_numpy(of_source.astype(np.float64)).to(device, non_blocking=True),
        )

    def _exchange(self, pending: list[torch.Tensor]) -> tuple[str | None, bool]:
        """Average the losses of the last steps over the workers; return why the run diverged, and whether the leading
        worker's clock asks for a checkpoint."""
        busy = self.checkpoints.busy
        since = time.perf_counter() - self.checkpointed
        late = leads() and not busy and since >= self.placement.checkpoint_every_seconds
        steps = torch.stack([*pending, torch.tensor(float(late), device=self.engine.device)]).double()
        values = total(torch.cat([steps, self.pending_source_nats])).tolist()
        *losses, ask = (value / world_size() for value in values[: len(steps)])
        self.by_source.add(values[len(steps) :])
        self.pending_source_nats.zero_()
        pending.clear()
        now = time.perf_counter()
        self.train_seconds, self.mark = self.train_seconds + now - self.mark, now
        self.window += losses
        reason = self.watch.see(losses, self.step - len(losses) + 1)
        if reason is None and self.engine.skipped_steps:  # DeepSpeed leaves such a step out and goes on
            reason = f"the gradient of a step was not finite, at or before step {self.step}"
        return reason, ask > 0

    def _write_line(self, rate: float) -> None:
        seconds = self.train_seconds - self.line_train_seconds
        speed = (self.step - self.line_step) * self.run.tokens_per_step / seconds
        memory_bytes = memory_in_use(self.engine.device)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory_bytes)
        line = StepMetrics(
            step=self.step,
            train_tokens=self.step * self.run.tokens_per_step,
            loss_nats_per_token=finite(math.fsum(self.window) / len(self.window)),
            learning_rate=rate,
            gradient_norm=finite(float(self.engine.get_global_grad_norm())),
            tokens_per_second=speed,
            loss_by_source=self.by_source.take(self.step, len(self.window)),
            mfu_fraction=self._mfu(speed),
            memory_bytes=memory_bytes,
            wall_seconds=time.perf_counter() - self.began,
        )
        self.window.clear()
        self.line_step, self.line_train_seconds = self.step, self.train_seconds
        if leads():
            self.metrics.add(line)
        if self.trackers is not None:
            self.trackers.add(line)

    def _mfu(self, tokens_per_second: float) -> float | None:
        if self.peak_flops is None:
            return None
        flops = train_flops(self.run.model, self.packed.vocab_size, self.run.sequence_length, train_tokens=1)
        return flops * tokens_per_second / (self.peak_flops * world_size())

    def _evaluate(self) -> None:
        evaluation = evaluate(
            self.engine.module,
            self.packed.evaluation,
            train_tokens=self.step * self.run.tokens_per_step,
            rows_per_batch=self.microbatch,
            device=self.engine.device,
        )
        self.evaluations.append(evaluation)
        if self.trackers is not None:
            self.trackers.add_evaluation(evaluation, self.step)

    def _checkpoint(self) -> None:
        if leads():
            self.metrics.flush()
        self.checkpoints.save(self.engine, self._state())
        self.checkpointed = time.perf_counter()

    def _leave_trunk(self) -> None:
        assert self.trunk_checkpoints is not None
        private = {"window_losses": (), "window_source_nats": (), "evaluations": ()}
        of_the_trunk = self._state().model_copy(update=private)
        save_trunk(self.engine, self.run, self.directory, of_the_trunk, self.trunk_checkpoints)

    def _state(self) -> RunState:
        wall_seconds = time.perf_counter() - self.began
        return RunState(
            step=self.step,
            window_losses=tuple(self.window),
            window_source_nats=tuple(self.by_source.nats),
            watch=self.watch.state,
            evaluations=tuple(self.evaluations),
            wall_seconds=wall_seconds,
            device_seconds=self._device_seconds(wall_seconds),
            train_seconds=self.train_seconds,
        )

    def _device_seconds(self, wall_seconds: float) -> float:
        """Return wall-clock seconds times devices; before the last checkpoint there may have been another number."""
        devices = world_size() * self.placement.devices_per_worker
        return self.before.device_seconds + (wall_seconds - self.before.wall_seconds) * devices

    def close(self, ended: str) -> None:
        """End what goes on beside the training, and say to who follows it how the run ended."""
        self.checkpoints.abandon()
        if self.trackers is not None:
            self.trackers.close(ended)


def _fresh_module(run: RunConfig, packed: PackedSet, placement: TrainPlacement) -> Pretrainer:
    vocabulary = Vocabulary(packed.vocab_size, packed.eot_id)
    llama = build_llama(run.model, vocabulary, run.sequence_length, run.seed)
    if placement.recompute_activations:
        llama.gradient_checkpointing_enable({"use_reentrant": False})
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
