"""What a job would do, worked out before Ray starts: printed by `--dry-run`, checked by every run."""

from __future__ import annotations

from dataclasses import dataclass, field

POOL_LABEL = "synthscale.io/pool"
"""Label of a node that says what it was bought for; nodes of a cluster that knows no pools have none."""
GPU_POOLS = ("generate", "train")
OFF_THE_GPU_POOLS = {POOL_LABEL: f"!in({','.join(GPU_POOLS)})"}
"""Where tasks that need no GPU run: anywhere but on nodes bought for their GPUs. Without it a long queue of such tasks
would have the autoscaler add GPU nodes once the data pool is at its limit."""


@dataclass(frozen=True)
class Plan:
    """The plan of one step: where it writes, what is left to do, what that takes."""

    step: str
    """Job name, such as `rephrase_corpus`."""
    output: str
    """Directory or file the step leaves behind."""
    finished: bool
    """Whether everything is there already, so that running the step again does nothing."""
    facts: dict[str, object] = field(default_factory=dict)
    """What there is to do, in order of interest: name with unit -> number or text (`parts missing`: 12)."""
    warnings: tuple[str, ...] = ()
    """What a careful person would want to know before the spend."""
