"""When a run is called diverged: stated once, the same for every run."""

from __future__ import annotations

import math
from collections.abc import Iterable

from train.record import Record

LIMIT_ABOVE_UNIFORM_NATS = 1.0
"""A loss this far above that of guessing uniformly, ln(vocabulary), is worse than knowing nothing, nats per token."""

PATIENCE_STEPS = 50
"""Steps in a row above that limit after which a run counts as diverged; a loss that is not finite ends it at once."""

LOST_NATS = 1.0
"""A run whose mean loss over PATIENCE_STEPS steps is this far above its lowest such mean has lost what it had learnt: it
rarely comes back, and never to the loss of a run that was not lost, nats per token."""


class WatchState(Record):
    """What the watch must know to go on after an interruption."""

    steps_above_limit: int = 0
    """Steps in a row, up to now, with a loss above the limit."""
    block_sum: float = 0.0
    """Sum of the losses of the block of PATIENCE_STEPS steps that is under way, nats per token."""
    block_steps: int = 0
    """Steps of it so far."""
    lowest_block_mean: float | None = None
    """Lowest mean loss of a whole block, nats per token; null before the first is whole."""


class LossWatch:
    """Watches the training loss of every step for divergence."""

    def __init__(self, vocab_size: int, state: WatchState | None = None) -> None:
        self.limit = math.log(vocab_size) + LIMIT_ABOVE_UNIFORM_NATS
        state = state or WatchState()
        self._above = state.steps_above_limit
        self._block_sum, self._block_steps = state.block_sum, state.block_steps
        self._lowest = state.lowest_block_mean

    @property
    def state(self) -> WatchState:
        """What to go on with after an interruption."""
        return WatchState(
            steps_above_limit=self._above,
            block_sum=self._block_sum,
            block_steps=self._block_steps,
            lowest_block_mean=self._lowest,
        )

    def see(self, losses: Iterable[float], first_step: int) -> str | None:
        """Take in the losses of steps, the first of which is number `first_step`; return why the run diverged, or None."""
        for step, loss in enumerate(losses, first_step):
            if not math.isfinite(loss):
                return f"the training loss of step {step} is {loss}"
            reason = self._explosion(loss, step) or self._collapse(loss, step)
            if reason:
                return reason
        return None

    def _explosion(self, loss: float, step: int) -> str | None:
        self._above = self._above + 1 if loss > self.limit else 0
        if self._above < PATIENCE_STEPS:
            return None
        return (
            f"the training loss was above {self.limit:.2f} nats per token (ln of the vocabulary + "
            f"{LIMIT_ABOVE_UNIFORM_NATS:g}) for {PATIENCE_STEPS} steps in a row, up to step {step}"
        )

    def _collapse(self, loss: float, step: int) -> str | None:
        self._block_sum += min(loss, self.limit)  # one wild step must not weigh like fifty
        self._block_steps += 1
        if self._block_steps < PATIENCE_STEPS:
            return None
        mean = self._block_sum / PATIENCE_STEPS
        self._block_sum, self._block_steps = 0.0, 0
        if self._lowest is not None and mean > self._lowest + LOST_NATS:
            return (
                f"the training loss was {mean:.2f} nats per token over the {PATIENCE_STEPS} steps up to step {step}, after "
                f"{self._lowest:.2f} before: the run lost what it had learnt"
            )
        self._lowest = mean if self._lowest is None else min(self._lowest, mean)
        return None
