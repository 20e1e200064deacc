"""Which tokens of a run's steps the loss counts, where sources have prompts that it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.mixture import MixtureSampler
from train.run import RunConfig
from train.tokens import PackedSet


class CountedTokens:
    """Flags of the rows of a run, a function of the step as the rows are."""

    def __init__(self, run: RunConfig, packed: PackedSet, sampler: MixtureSampler) -> None:
        self._run, self._packed, self._sampler = run, packed, sampler
        self.all_count = packed.counts_all(sampler.names)
        """Whether every token counts, so that there is nothing to tell the model."""

    def loss_options(
        self, step: int, microbatch: int, device: torch.device, *, worker: int, workers: int
    ) -> list[dict[str, Any]]:
        """Return the further arguments of `Pretrainer.forward` for each microbatch that one of the workers has in a step.

        Which predictions count, and what their sum is divided by: so many that the mean over microbatches and workers is the
        mean over all counted tokens of the step, however many of them each has.
        """
        share = self._run.rows_per_step // workers
        if self.all_count:
            return [{}] * (share // microbatch)
        _, counted = self._flags(step)
        own = torch.from_numpy(counted[worker * share : (worker + 1) * share]).to(device).split(microbatch)
        over = max(1, int(counted.sum())) / (len(own) * workers)
        return [{"counted": each, "counted_tokens": over} for each in own]

    def by_source(self, first: int, last: int) -> list[int]:
        """Return the counted tokens of each source in the steps `first` to `last - 1`, in the order of the sampler's names.

        Where the flags must be looked at, one step's are in memory at a time.
        """
        if self.all_count:
            rows = self._run.rows_per_step
            before, now = (self._sampler.counts(steps * rows) for steps in (first, last))
            return [(now[name] - before[name]) * self._run.sequence_length for name in self._sampler.names]
        totals = np.zeros(len(self._sampler.names), np.int64)
        for step in range(first, last):
            sources, counted = self._flags(step)
            np.add.at(totals, sources, counted.sum(axis=1))
        return [int(total) for total in totals]

    def _flags(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the source of every row of a step, [n], and which of its predictions count, [n, T]."""
        per_step = self._run.rows_per_step
        sources, rows = self._sampler.slots(step * per_step, (step + 1) * per_step)
        tokens = self._packed.gather(self._sampler.names, sources, rows)
        return sources, self._packed.gather_counted(self._sampler.names, sources, rows, tokens)
