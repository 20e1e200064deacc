"""Training lanes that stay up from one step of a study to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from rayjobs.demand import Demand
from rayjobs.study import Step
from train.placement import TrainPlacement

TRAINS_A_QUEUE = ("sweep_learning_rates", "pretrain_models", "search_mixture")
"""Jobs that take lanes of others."""


class WarmLanes:
    """Lanes kept from one training step to the next with the same placement, and closed otherwise.

    Starting worker groups costs more than training a small model; steps of a study that follow each other share them. One
    step has them at a time; others beside it open their own.
    """

    def __init__(
        self,
        stack: ExitStack,
        at_work: Mapping[str, Demand],
        opened: Callable[[Step, TrainPlacement], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """Take what closes them at the end, a view of the steps at work, and how lanes are opened for a step."""
        self._stack, self._at_work = stack, at_work
        self._opened = opened or _lanes_on_ray
        self._user: str | None = None
        self._open: tuple[TrainPlacement, Any] | None = None

    def for_steps(self, steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
        """Return further arguments of steps that start now: the lanes for one that trains a queue of runs.

        Lanes that nobody has in hand and none of these steps takes are given back: they hold what is counted as free. Steps
        on the driver alone ask for nothing of the cluster, so the lanes outlast them.
        """
        if self._user in self._at_work:
            return {}
        wanted = {step.key: step for step in steps if step.job.name in TRAINS_A_QUEUE}
        user = next((step for step in wanted.values() if self._fits(step)), None)
        if user is None and (any(step.job.needs_ray for step in steps) or self._others_at_work()):
            self.close()
        user = user or next(iter(wanted.values()), None)
        if user is None:
            return {}
        if self._open is None:
            placement = _lanes_of(user)
            self._open = (placement, self._stack.enter_context(self._opened(user, placement)))
        self._user = user.key
        return {user.key: {"lanes": self._open[1]}}

    def _fits(self, step: Step) -> bool:
        return self._open is not None and self._open[0] == _lanes_of(step)

    def _others_at_work(self) -> bool:
        return any(need.cpus or need.gpus for need in self._at_work.values())

    def close(self) -> None:
        """Give the workers back."""
        self._stack.close()
        self._user, self._open = None, None


def _lanes_on_ray(step: Step, placement: TrainPlacement) -> AbstractContextManager[Any]:
    from train.lanes.job import Lanes  # here, so that what only plans loads no Ray

    return Lanes(step.config.root, placement, step=f"{step.job.name}-{step.config.name}")


def _lanes_of(step: Step) -> TrainPlacement:
    return TrainPlacement(
        **{name: getattr(step.config.placement, name) for name in TrainPlacement.model_fields}
    )
