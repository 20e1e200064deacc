"""The loop of one run: steps, evaluations, checkpoints, metrics, from where the run stands to its end or to its divergence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from upath import UPath

from synth.identity import provenance
from train.attempts import Attempts
from train.checkpoint import CheckpointWriter
from train.checkpoint_files import RunState
from train.counted import CountedTokens
from train.deepspeed_config import rows_per_microbatch
from train.devices import device_name, memory_in_use, peak_flops
from train.distributed import leads, rank, set_learning_rate, total, world_size
from train.divergence import LossWatch
from train.evaluation import evaluate, evaluation_steps
from train.flops import train_flops
from train.metrics import MetricsLog, SourceLosses, StepMetrics, finite
from train.mixture import MixtureSampler
from train.placement import TrainPlacement
from train.record import DeviceUse, RunRecord, what_was_trained
from train.run import RunConfig
from train.schedule import learning_rate, trunk_steps
from train.stopwatch import Stopwatch
from train.tokens import PackedSet
from train.trackers import Trackers
from train.trunk import load_state, save_trunk, trunk_writer

SYNC_STEPS = 8
"""Every so many steps the workers exchange losses and the time; in between nothing waits for the device."""


class Training:
    """The loop of one run on one worker, and what it carries from step to step."""

    def __init__(
        self,
        run: RunConfig,
        packed: PackedSet,
        placement: TrainPlacement,
        directory: UPath,
        engine: Any,
        rate: float,
        attempts: Attempts | None,
    ) -> None:
        self.run, self.packed, self.placement, self.directory = run, packed, placement, directory
        self.engine, self.peak_rate = engine, rate
        self.sampler = MixtureSampler(run.mixture, packed.info.num_rows, run.seed)
        self.counted = CountedTokens(run, packed, self.sampler)
        self.microbatch = rows_per_microbatch(run, placement, world_size())
        self.evaluate_after = evaluation_steps(run.num_steps, run.evaluations)
        self.metrics = MetricsLog(directory, run)
        self.checkpoints = CheckpointWriter(directory, placement)
        self.trunk_checkpoints = trunk_writer(run, directory, placement) if run.branching else None
        state, self.trunk = load_state(engine, run, directory, placement)
        self.leaves_trunk_at = trunk_steps(run) if run.branching else None
        if leads():
            self.metrics.resume(state.step)
        self.trackers = Trackers(run, placement, directory, state.step) if leads() else None
        devices = world_size() * placement.devices_per_worker
        self.clock = Stopwatch(attempts, devices, state, self.trunk)
        self.checkpointed = time.perf_counter()
        self.step = state.step
        self.window = list(state.window_losses)
        self.by_source = SourceLosses(self.sampler.names, self.counted.by_source, state.window_source_nats)
        self.pending_source_nats = torch.zeros(
            len(self.sampler.names), dtype=torch.float64, device=engine.device
        )
        self.evaluations = list(state.evaluations)
        self.watch = LossWatch(packed.vocab_size, state.watch)
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
            if evaluation and (reason := self._evaluate()):
                return reason
            if leaves:
                self._leave_trunk()
            if checkpoint and self.step < self.run.num_steps:
                self._checkpoint()
            self.clock.leave_out()
        return None

    def record(self, reason: str | None, attempts: int) -> RunRecord:
        """Return the record of the run as it stands."""
        run = self.run
        train_tokens = self.step * run.tokens_per_step
        use = self.sampler.use(self.step * run.rows_per_step)
        speed, taken = train_tokens / self.clock.train_seconds, self.clock.taken
        return RunRecord(
            **what_was_trained(run, self.packed.vocab_size, train_tokens),
            status="diverged" if reason else "complete",
            reason=reason,
            sources={name: rows.source_use(run.sequence_length) for name, rows in use.items()},
            final=None if reason else self.evaluations[-1],
            evaluations=tuple(self.evaluations),
            peak_learning_rate=self.peak_rate,
            wall_seconds=taken.wall_seconds,
            device_seconds=taken.device_seconds,
            trunk=self.trunk,
            tokens_per_second=speed,
            device=DeviceUse(
                name=self.device_name,
                peak_flops_per_second=self.peak_flops,
                mfu_fraction=self._mfu(speed),
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
        options = self.counted.loss_options(
            self.step, self.microbatch, self.engine.device, worker=rank(), workers=world_size()
        )
        loss = torch.zeros((), device=self.engine.device)
        row_nats = []
        for microbatch, option in zip(microbatches, options, strict=True):
            part, nats = self.engine(microbatch, **option)
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
        self.clock.lap()
        self.window += losses
        reason = self.watch.see(losses, self.step - len(losses) + 1)
        if reason is None and self.engine.skipped_steps:  # DeepSpeed leaves such a step out and goes on
            reason = f"the gradient of a step was not finite, at or before step {self.step}"
        return reason, ask > 0

    def _write_line(self, rate: float) -> None:
        speed = (self.step - self.line_step) * self.run.tokens_per_step / self.clock.since_last_line()
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
            wall_seconds=self.clock.taken.wall_seconds,
        )
        self.window.clear()
        self.line_step = self.step
        if leads():
            self.metrics.add(line)
        if self.trackers is not None:
            self.trackers.add(line)

    def _mfu(self, tokens_per_second: float) -> float | None:
        if self.peak_flops is None:
            return None
        flops = train_flops(self.run.model, self.packed.vocab_size, self.run.sequence_length, train_tokens=1)
        return flops * tokens_per_second / (self.peak_flops * world_size())

    def _evaluate(self) -> str | None:
        """Evaluate the weights as they are; return why the run diverged, or None."""
        evaluation = evaluate(
            self.engine.module,
            self.packed.evaluation,
            train_tokens=self.step * self.run.tokens_per_step,
            rows_per_batch=self.microbatch,
            device=self.engine.device,
        )
        # A training loss is that of the weights before its step: what the last one does to them shows here alone.
        if not math.isfinite(loss := evaluation.loss_nats_per_token):
            return f"the held-out loss after step {self.step} is {loss}"
        self.evaluations.append(evaluation)
        if self.trackers is not None:
            self.trackers.add_evaluation(evaluation, self.step)
        return None

    def _checkpoint(self) -> None:
        if leads():
            self.metrics.flush()
            self.clock.note()
        self.checkpoints.save(self.engine, self._state())
        self.checkpointed = time.perf_counter()

    def _leave_trunk(self) -> None:
        assert self.trunk_checkpoints is not None
        private = {"window_losses": (), "window_source_nats": (), "evaluations": ()}
        of_the_trunk = self._state().model_copy(update=private)
        save_trunk(self.engine, self.run, self.directory, of_the_trunk, self.trunk_checkpoints)

    def _state(self) -> RunState:
        taken = self.clock.taken
        return RunState(
            step=self.step,
            window_losses=tuple(self.window),
            window_source_nats=tuple(self.by_source.nats),
            watch=self.watch.state,
            evaluations=tuple(self.evaluations),
            wall_seconds=taken.wall_seconds,
            device_seconds=taken.device_seconds,
            train_seconds=self.clock.train_seconds,
        )

    def close(self, ended: str) -> None:
        """End what goes on beside the training, and say to who follows it how the run ended."""
        self.checkpoints.abandon()
        if self.trackers is not None:
            self.trackers.close(ended)
        self.clock.note()
