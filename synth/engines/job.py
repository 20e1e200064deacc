"""The Ray seam of engines: the devices of an engine that lies on several nodes, reserved together."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Any, Self

import ray
import ray.util
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from synth.config import RephrasePlacement
from synth.model_source import ModelSource

_NUMBERS = itertools.count()
"""Names of placement groups are taken once in a job."""


class EngineGroups:
    """A named placement group for each engine of a job; a context manager that gives them back."""

    def __init__(self, name: str, placement: RephrasePlacement) -> None:
        """Prepare groups called `<name>: engine <number>`."""
        self._name, self._placement = name, placement
        self._groups: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for group in self._groups:
            ray.util.remove_placement_group(group)

    def actor_options(self) -> dict[str, Any]:
        """Reserve one more engine's devices and return the options of its actor, which lies beside the first of them.

        The actor takes no device itself: vLLM puts a worker on each, in the group its actor is in.
        """
        devices = [self._placement.device_bundle] * self._placement.devices_per_engine
        group = ray.util.placement_group(
            devices, strategy="PACK", name=f"{self._name}: engine {next(_NUMBERS)}"
        )
        self._groups.append(group)
        return {
            "num_cpus": self._placement.device_bundle.get("CPU", 0),
            "num_gpus": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            ),
        }


def fetch_to_every_node(model: ModelSource) -> None:
    """Copy or download a model to every node of the group this actor is in, because vLLM's workers there look for it at
    the same path."""
    group = ray.util.get_current_placement_group()
    fetch = ray.remote(num_cpus=0)(_fetch)
    ray.get(
        [
            fetch.options(
                name=f"fetch {model.reference}",
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=index
                ),
            ).remote(model)
            for index in range(group.bundle_count)
        ]
    )


def _fetch(model: ModelSource) -> None:
    model.local_directory()
