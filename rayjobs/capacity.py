"""What a step must hold of its cluster at once, and whether the cluster can ever give it: asked before work is begun.

A cluster gives what its nodes have, and what its autoscaler would add. What a node type would bring is known to the
autoscaler alone (on a cloud, on Kubernetes), so it is asked with a placement group, as the step itself would ask.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synth.config import CorpusConfig, JobConfig, RephraseConfig
from synth.errors import UserError
from synth.plan import GPU_POOLS, OFF_THE_GPU_POOLS, POOL_LABEL
from train.config import PackConfig
from train.placement import TrainPlacement

Resources = Mapping[str, float]

AUTOSCALER_SECONDS = 15.0
"""An autoscaler that has not been heard of after this long is not there: it speaks every 5 s."""

NEWS_SECONDS = 30.0
"""How often a wait for the autoscaler's verdict is spoken of."""


@dataclass(frozen=True)
class Need:
    """Workers of one shape that a step needs side by side to get anywhere. More of them make it faster."""

    what: str
    """What they are together, such as `a training lane`."""
    count: int
    bundle: Resources
    """What one of them takes of a node: CPU, GPU."""
    fields: tuple[str, ...]
    """Fields of the configuration that decide it."""
    off_the_gpu_pools: bool = False
    """It keeps off nodes bought for their GPUs."""
    remedy: str = ""
    """What else than less of it or more nodes would help."""

    def __str__(self) -> str:
        return f"{self.what} takes {self.count} x {shown(self.bundle)} at once ({', '.join(self.fields)})"


def need_of(config: JobConfig) -> Need | None:
    """Return the least a step with this configuration can work with; None when it runs in the driver alone."""
    placement: Any = getattr(config, "placement", None)
    fields: tuple[str, ...]
    if isinstance(config, RephraseConfig):
        fields = ("placement.cpus_per_engine", "placement.gpus_per_engine")
        if placement.across_nodes:
            devices = placement.devices_per_engine
            return Need("an engine across nodes", devices, placement.device_bundle, fields)
        spread = "or set placement.across_nodes = true, if two nodes together have them"
        return Need(
            "an engine", 1, _bundle(placement.cpus_per_engine, placement.gpus_per_engine), fields,
            remedy=spread if placement.devices_per_engine > 1 and placement.gpus_per_engine else "",
        )  # fmt: skip
    if isinstance(placement, TrainPlacement):
        per_lane = ("placement.workers_per_lane", "placement.cpus_per_worker", "placement.gpus_per_worker")
        bundle = _bundle(placement.cpus_per_worker, placement.gpus_per_worker)
        return Need("a training lane", placement.min_workers, bundle, per_lane)
    if isinstance(config, (CorpusConfig, PackConfig)):
        return Need("a task", 1, _bundle(1, 0), ("off the GPU pools",), off_the_gpu_pools=True)
    return None


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}


def shown(resources: Resources) -> str:
    """Return CPUs and GPUs as a person says them."""
    words = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    return " + ".join(words) or "0 CPU"


def most_that_fit(bundle: Resources, nodes: Sequence[Resources]) -> float:
    """Return how many bundles empty nodes with these resources hold together."""
    if not bundle:
        return math.inf
    return sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-6) for name, amount in bundle.items())
        for node in nodes
    )


def check_capacity(step: str, need: Need, *, may_grow: bool) -> None:
    """Return when the cluster can hold what a step needs, now or once its autoscaler has added nodes.

    `may_grow` says whether there may be an autoscaler. Raises UserError when the cluster can never hold it.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and _is_open(node["Labels"], need)]
    if most_that_fit(need.bundle, nodes) >= need.count:
        return
    why_not = _ask_autoscaler(step, need) if may_grow else NO_AUTOSCALER
    if why_not is None:
        return
    there = (
        ", ".join(f"{count} x {shape}" for shape, count in sorted(Counter(map(shown, nodes)).items()))
        or "none"
    )
    raise UserError(
        f"{step}: {need}, and this cluster cannot ever hold that: its nodes are {there}, and {why_not}. Lower the placement, "
        f"or give the cluster larger or more nodes (max_workers and node types in cluster.yaml){need.remedy and ', '}{need.remedy}."
    )


def idle_gpus(config: JobConfig, gpus: float) -> str | None:
    """Return what to say when a step computes on CPUs and its cluster has so many GPUs; None otherwise."""
    placement: Any = getattr(config, "placement", None)
    if isinstance(config, RephraseConfig):
        field, asked = "gpus_per_engine", placement.gpus_per_engine or config.engine.kind in ("http", "fake")
    elif isinstance(placement, TrainPlacement):
        field, asked = "gpus_per_worker", placement.gpus_per_worker
    else:
        return None
    if asked or not gpus:
        return None
    return f"placement.{field} = 0, so it computes on CPUs, and the cluster has {gpus:g} GPUs"


def _is_open(labels: Mapping[str, str], need: Need) -> bool:
    return not (need.off_the_gpu_pools and labels.get(POOL_LABEL) in GPU_POOLS)


NO_AUTOSCALER = "no autoscaler adds any"
INFEASIBLE = "its autoscaler has no node types for the rest"


def has_autoscaler() -> bool:
    """Return whether an autoscaler adds nodes to the cluster this process has joined. One started with it has none."""
    return bool(os.environ.get("RAY_ADDRESS")) and _autoscaler_state().seen > 0


def _ask_autoscaler(step: str, need: Need) -> str | None:
    """Ask for the bundles and return why they cannot be had; None when the autoscaler, having seen it, finds nodes."""
    import ray.util

    group = ray.util.placement_group(
        [dict(need.bundle)] * need.count, name=f"{step}: can it be had?",
        bundle_label_selector=[OFF_THE_GPU_POOLS] * need.count if need.off_the_gpu_pools else None,
    )  # fmt: skip
    try:
        began = told = time.monotonic()
        asked_at = None
        while not group.wait(0.5):
            state = _autoscaler_state()
            ours = group.id.hex()
            if asked_at is None and any(each.details.startswith(ours) for each in state.pending):
                asked_at = state.version
            if asked_at is not None and state.seen >= asked_at:
                infeasible = any(each.details.startswith(ours) for each in state.infeasible)
                return INFEASIBLE if infeasible else None
            if not state.seen and time.monotonic() - began > AUTOSCALER_SECONDS:
                return NO_AUTOSCALER
            if time.monotonic() - told > NEWS_SECONDS:
                told = time.monotonic()
                print(f"[{step}] waiting for the autoscaler: {need}", file=sys.stderr, flush=True)
        return None
    finally:
        ray.util.remove_placement_group(group)


@dataclass(frozen=True)
class _AutoscalerState:
    version: int
    """Of the cluster's demand as it is now."""
    seen: int
    """Of the demand the autoscaler has last worked on; 0 when there is none (or one before v2)."""
    pending: Sequence[Any]
    infeasible: Sequence[Any]


def _autoscaler_state() -> _AutoscalerState:
    # What `ray status` reads; it leaves out the requests that are infeasible, so the reply is read here.
    import ray
    from ray.autoscaler.v2.sdk import GcsClient
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(
        GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=30)
    )
    cluster, autoscaler = reply.cluster_resource_state, reply.autoscaling_state
    return _AutoscalerState(
        cluster.cluster_resource_state_version,
        autoscaler.last_seen_cluster_resource_state_version,
        cluster.pending_gang_resource_requests,
        autoscaler.infeasible_gang_resource_requests,
    )
