"""What steps ask of a cluster while they run, and which of those that are ready it has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rayjobs.capacity import has_autoscaler
from rayjobs.study import Step
from train.placement import TrainPlacement

FEWEST_CPUS_TO_OVERLAP = 4
"""A smaller cluster that stays as it is runs one step after the other: two would only slow each other down."""


@dataclass(frozen=True)
class ClusterSize:
    """What a cluster has for steps."""

    cpus: float = 0.0
    gpus: float = 0.0
    grows: bool = False
    """Whether an autoscaler adds what tasks ask for: then what it has now limits nothing."""


@dataclass(frozen=True)
class Demand:
    """What a step asks of the cluster while it runs."""

    cpus: float
    gpus: float = 0.0
    elastic: bool = False
    """Whether it works with any number of CPUs, and takes all that are free."""
    tasks: int | None = None
    """Of an elastic step, how many tasks at once it is held to; None leaves it to the step, which follows the cluster."""
    group_sizes: tuple[int, ...] = ()
    """Numbers of workers its lanes work with, ascending; what it asks for is what the last of them takes. () where there is
    no choice."""
    in_stages: bool = False
    """Whether what it needs at the least comes in several pieces: two such steps could each hold what the other waits for."""

    @property
    def takes_what_is_left(self) -> bool:
        """Whether it does with less than it asks for, so that a step that does not comes first."""
        return self.elastic or len(self.group_sizes) > 1

    def within(self, cpus: float, gpus: float) -> Demand | None:
        """Return the most of it that so much holds; None when not even the least does."""
        if self.elastic:
            tasks = int(cpus)
            return replace(self, cpus=float(tasks), tasks=tasks) if tasks >= 1 and self.gpus <= gpus else None
        for at in reversed(range(max(1, len(self.group_sizes)))):
            part = self.group_sizes[at] / self.group_sizes[-1] if self.group_sizes else 1.0
            if self.cpus * part <= cpus and self.gpus * part <= gpus:
                sizes = self.group_sizes[: at + 1]
                return replace(self, cpus=self.cpus * part, gpus=self.gpus * part, group_sizes=sizes)
        return None


def demand_of(step: Step) -> Demand:
    """Return what a step's placement asks for; a step that runs on the driver asks for nothing."""
    placement: Any = getattr(step.config, "placement", None)
    if step.section in ("corpora", "pack"):
        return Demand(float(placement.tasks or 1), elastic=placement.tasks == 0)
    if step.section == "rephrase":
        engines = placement.min_engines or placement.engines
        # The stages of Ray Data LLM share a CPU beside the engines; of the other kinds engines are all there is.
        in_stages = step.config.engine.kind == "ray_data_llm"
        cpus = engines * placement.cpus_per_engine + (1 if in_stages else 0)
        return Demand(cpus, engines * placement.gpus_per_engine, in_stages=in_stages)
    if isinstance(placement, TrainPlacement):
        workers = placement.max_workers * (1 if step.section == "generators" else placement.lanes)
        return Demand(
            workers * placement.cpus_per_worker,
            workers * placement.gpus_per_worker,
            group_sizes=placement.group_sizes if placement.elastic else (),
        )
    return Demand(0.0)


def placed_within(config: Any, demand: Demand) -> Any:
    """Return a step's configuration with a placement that takes no more than this of the cluster."""
    if demand.tasks is not None:
        change: dict[str, Any] = {"tasks": demand.tasks}
    elif demand.group_sizes:
        least, most = demand.group_sizes[0], demand.group_sizes[-1]
        change = {"workers_per_lane": most if least == most else (least, most)}
    else:
        return config
    return config.model_copy(update={"placement": config.placement.model_copy(update=change)})


def fitting(
    ready: Sequence[tuple[Step, Demand]], running: Sequence[Demand], size: ClusterSize
) -> list[tuple[Step, Demand]]:
    """Return the steps to start now on a cluster of this size, in order; at least one when nothing runs.

    Where an autoscaler adds nodes every step is started: each holds only whole engines, lanes or tasks, none of which
    waits for another one, so steps that ask for more than there can be take turns and all of them end. Elsewhere a step
    whose placement is fixed comes before one that takes what is left, which then gets just that, for as long as it runs;
    one that no other step wants room beside is held to nothing, and follows the cluster.
    """
    if size.grows:
        return _at_once(ready, running)
    if size.cpus < FEWEST_CPUS_TO_OVERLAP:
        return [] if running else list(ready[:1])
    if sum(need.cpus + need.gpus > 0 for need in [*running, *(need for _, need in ready)]) <= 1:
        return list(ready)
    free_cpus = size.cpus - sum(need.cpus for need in running)
    free_gpus = size.gpus - sum(need.gpus for need in running)
    started: list[tuple[Step, Demand]] = []
    for step, wanted in sorted(ready, key=lambda each: each[1].takes_what_is_left):
        need = wanted.within(free_cpus, free_gpus)
        if need is None:
            if running or started:
                continue
            need = wanted  # nothing will ever leave it more room
        free_cpus, free_gpus = free_cpus - need.cpus, free_gpus - need.gpus
        started.append((step, need))
    return started


def _at_once(ready: Sequence[tuple[Step, Demand]], running: Sequence[Demand]) -> list[tuple[Step, Demand]]:
    started: list[tuple[Step, Demand]] = []
    for step, need in ready:
        others = [*running, *(other for _, other in started)]
        if not (need.in_stages and any(other.in_stages for other in others)):
            started.append((step, need))
    return started


def cluster_size() -> ClusterSize:
    """Return what the Ray cluster has now, and whether it grows."""
    import ray

    size = ray.cluster_resources()
    return ClusterSize(float(size.get("CPU", 0.0)), float(size.get("GPU", 0.0)), has_autoscaler())
