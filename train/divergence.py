"""When a run is called diverged: stated once, the same for every run."""

from __future__ import annotations

import math
from collections.abc import Iterable

LIMIT_ABOVE_UNIFORM_NATS = 1.0
"""A loss this far above that of guessing uniformly, ln(vocabulary), is worse than knowing nothing, nats per token."""

PATIENCE_STEPS = 50
"""Steps in a row above that limit after which a run counts as diverged; a loss that is not finite ends it at once."""


class LossWatch:
    """Watches the training loss of every step for divergence."""

    def __init__(self, vocab_size: int, steps_above_limit: int = 0) -> None:
        self.limit = math.log(vocab_size) + LIMIT_ABOVE_UNIFORM_NATS
        self.steps_above_limit = steps_above_limit
        """Steps in a row, up to now, with a loss above the limit."""

    def see(self, losses: Iterable[float], first_step: int) -> str | None:
        """Take in the losses of steps, the first of which is number `first_step`; return why the run diverged, or None."""
        for step, loss in enumerate(losses, first_step):
            if not math.isfinite(loss):
                return f"the training loss of step {step} is {loss}"
            self.steps_above_limit = self.steps_above_limit + 1 if loss > self.limit else 0
            if self.steps_above_limit >= PATIENCE_STEPS:
                return (
                    f"the training loss was above {self.limit:.2f} nats per token (ln of the vocabulary + "
                    f"{LIMIT_ABOVE_UNIFORM_NATS:g}) for {PATIENCE_STEPS} steps in a row, up to step {step}"
                )
        return None
