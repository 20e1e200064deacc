"""Where and how wide runs are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from synth.config import Config


def _one_or_two(workers: Any) -> Any:
    """Return a number, or the least and the most; a flag arrives as a list, whichever it is."""
    numbers = list(workers) if isinstance(workers, (list, tuple)) else [workers]
    try:
        least, most = (int(str(number)) for number in (numbers[0], numbers[-1]))
    except (ValueError, IndexError):
        least = most = 0
    if least < 1 or len(numbers) > 2 or (len(numbers) == 2 and least >= most):
        raise ValueError(
            "give a number of workers from 1, or [least, most] with least below most for groups that may change in size"
        )
    return least if len(numbers) == 1 else (least, most)


Tracker = Literal["tensorboard", "mlflow", "wandb"]


class TrainPlacement(Config):
    """Where and how wide runs are trained; never part of a run's identity, always part of its record."""

    lanes: int = Field(default=1, ge=1)
    """Warm worker groups side by side; each trains one run at a time from the common queue."""
    workers_per_lane: Annotated[int | tuple[int, int], BeforeValidator(_one_or_two)] = 1
    """Data-parallel workers in each group: a number, or `[least, most]` for as many as the cluster has: a group starts again
    smaller when it loses a worker's node, and larger when there is room. Its size is `most` or a divisor of it."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs each worker asks of the cluster."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs each worker asks of the cluster; below 1, small models share a GPU."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Compute threads of a CPU worker."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO stage."""
    rows_per_microbatch: int = Field(default=8, ge=1)
    """Rows one worker passes forward at once; the rest of a step is gradient accumulation. Halved when the device has
    not the memory for them."""
    checkpoint_every_seconds: float = Field(default=60.0, gt=0)
    """A run that lasts longer than this leaves a checkpoint about this often, seconds."""
    keep_models: bool = False
    """Leave the model of every complete run as a Hugging Face checkpoint, `runs/<run_id>/model`, for vLLM, transformers
    and `evaluate_models`; a run that was finished without it has none."""
    recompute_activations: bool = False
    """Keep only each layer's input and compute the rest again in the backward pass: a third more work for a fraction of
    the memory, and the same bits."""
    compile_layers: bool = False
    """Compile the layers of the model with torch.compile: a minute more at the start of every shape, and faster steps on a GPU; a
    run's losses differ in their last bits from those of the same run without, and may with what its lane has trained before."""
    deterministic: bool = False
    """Add up gradients in a fixed order on a GPU too, so that a run there has the same bits whenever it is trained again or
    resumed, as it has on a CPU anyway; slower attention backwards."""
    trackers: tuple[Tracker, ...] = ()
    """Where else a run's metrics go: `tensorboard` (event files beside metrics.jsonl), `mlflow`, `wandb`; the last two
    must be installed, and take addresses and keys from their own settings."""
    peak_flops_per_device: float | None = Field(default=None, gt=0)
    """Peak speed of a worker's device in the run's precision, FLOP/s, for model FLOPs utilisation; null takes the data
    sheet's for a known GPU, and leaves utilisation out on any other device."""
    max_restarts: int = Field(default=3, ge=0)
    """Times in a row a lane may lose its workers and start again without getting anywhere in between: a run trained to its
    end, or begun again further on than the time before, starts the count anew. A lane that loses them once more ends; the
    job stops with the last lane, and goes on when it is run again."""

    @model_validator(mode="after")
    def _can_compile(self) -> TrainPlacement:
        if self.compile_layers and self.zero_stage == 3:
            raise ValueError(
                "compile_layers = true does not go with zero_stage = 3, which takes the weights of a layer apart between "
                "its uses: leave one of them out"
            )
        return self

    @property
    def devices_per_worker(self) -> float:
        """Devices a worker is charged: its GPUs, or its part of one; on CPUs the worker itself."""
        return self.gpus_per_worker or 1.0

    @property
    def elastic(self) -> bool:
        """Whether a lane's group may have more or fewer workers."""
        return not isinstance(self.workers_per_lane, int)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Numbers of workers a lane's group may have, ascending: divisors of the most, so that they share a step alike."""
        sizes = range(self.min_workers, self.max_workers + 1)
        return tuple(size for size in sizes if self.max_workers % size == 0)

    @property
    def min_workers(self) -> int:
        """Fewest workers of a lane's group."""
        return self.workers_per_lane if isinstance(self.workers_per_lane, int) else self.workers_per_lane[0]

    @property
    def max_workers(self) -> int:
        """Most workers of a lane's group."""
        return self.workers_per_lane if isinstance(self.workers_per_lane, int) else self.workers_per_lane[1]
