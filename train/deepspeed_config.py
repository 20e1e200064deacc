"""The DeepSpeed configuration of a run, as a plain dictionary; imports no DeepSpeed."""

from __future__ import annotations

from typing import Any

from synth.errors import UserError
from train.placement import TrainPlacement
from train.run import RunConfig


def rows_per_microbatch(run: RunConfig, placement: TrainPlacement, world_size: int) -> int:
    """Return the rows one worker passes forward at once: the configured number, or its whole share if that is less.

    Raises UserError when the workers do not share a step's rows evenly, or a worker cannot cut its share into whole
    microbatches.
    """
    rows, rest = divmod(run.rows_per_step, world_size)
    workers = f"workers_per_lane = {world_size}"
    if placement.elastic:
        workers = (
            f"{world_size} workers (workers_per_lane = {[placement.min_workers, placement.max_workers]})"
        )
    if rest:
        raise UserError(
            f"rows_per_step = {run.rows_per_step} cannot be shared evenly by {workers}: make it a multiple of the "
            f"{'most workers a lane may have' if placement.elastic else 'number of workers'}."
        )
    microbatch = min(placement.rows_per_microbatch, rows)
    if rows % microbatch:
        raise UserError(
            f"rows_per_microbatch = {placement.rows_per_microbatch} does not divide the {rows} rows each worker has in a "
            f"step (rows_per_step = {run.rows_per_step}, {workers}): choose a divisor of {rows}."
        )
    return microbatch


def deepspeed_config(
    run: RunConfig, placement: TrainPlacement, world_size: int, num_params: int
) -> dict[str, Any]:
    """Return the configuration of the engine for a run on `world_size` workers. Raises UserError, see above.

    Learning rate and schedule are not in it: the loop sets the rate of each step itself (`train.schedule`).
    """
    microbatch = rows_per_microbatch(run, placement, world_size)
    accumulation = run.rows_per_step // (world_size * microbatch)
    stage = placement.zero_stage
    if stage == 0 and run.precision == "bf16" and accumulation > 1:
        raise UserError(
            f"zero_stage = 0 would add up the gradients of {accumulation} microbatches in bfloat16, which loses them: "
            "set zero_stage = 1, precision = 'fp32', or rows_per_microbatch to the rows a worker has in a step."
        )
    # Without ZeRO and without bfloat16 the engine steps the plain optimizer, and would clip without telling the norm.
    engine_clips = stage > 0 or run.precision == "bf16"
    config: dict[str, Any] = {
        "train_batch_size": run.rows_per_step,
        "train_micro_batch_size_per_gpu": microbatch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": run.optimizer.max_gradient_norm if engine_clips else 0.0,
        "steps_per_print": None,
        "bf16": {"enabled": run.precision == "bf16", "check_grad_overflow": False},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    if accumulation > 1:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if stage > 0:
        # The default bucket of 5e8 elements is a 2 GB buffer; a bucket need not be larger than the model.
        bucket = min(num_params, 200_000_000)
        config["zero_optimization"] |= {
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": placement.gpus_per_worker > 0,
        }
    return config
