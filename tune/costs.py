"""What a mixture costs: FLOPs, device-hours and money of generating its synthetic tokens and of training on it.

Numbers come from the prices a person gives, else from what the study measured of itself; what neither says stays
null, with the reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from synth.identity import RECIPE_FILE, read_manifest
from synth.model_source import STUDY_PREFIX, shipped_num_params
from synth.storage import read_json, study_path
from train.flops import train_flops_6nd
from train.grid import plan_directory
from train.record import RunRecord, records_of
from train.tokens import PackedInfo
from tune.config import Prices
from tune.generator_size import num_params_of

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Generation:
    """What a synthetic source took to make, per token as the student's tokenizer counts them."""

    flops_per_token: float | None = None
    """FLOP per synthetic training token: 2 x generator parameters x tokens it read and wrote, turned-down ones too."""
    seconds_per_token: float | None = None
    """Device seconds per synthetic training token."""
    evidence: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    """What could not be worked out, and what to give instead."""


@dataclass(frozen=True)
class Training:
    """How fast one device trains."""

    flops_per_device_second: float | None
    """6 N D FLOP per second; null when it was neither given nor measured."""
    evidence: str


@dataclass(frozen=True)
class Costs:
    """Generation and training of one mixture."""

    training_flops: float
    generation_flops: float | None
    training_device_hours: float | None
    generation_device_hours: float | None
    money: float | None
    """In the currency of the prices; null when a price or a duration it needs is not known."""

    @property
    def flops(self) -> float | None:
        """Training and generation together."""
        return None if self.generation_flops is None else self.training_flops + self.generation_flops


def costs_of(
    num_params: float,
    train_tokens: float,
    synthetic_tokens: float,
    prices: Prices,
    generation: Generation,
    training: Training,
) -> Costs:
    """Return what it costs to make so many synthetic tokens and to train N parameters on D tokens (6 N D FLOP)."""
    training_flops = 6.0 * num_params * train_tokens
    training_hours = (
        training_flops / training.flops_per_device_second / SECONDS_PER_HOUR
        if training.flops_per_device_second
        else None
    )
    generation_seconds = _times(generation.seconds_per_token, synthetic_tokens)
    generation_hours = None if generation_seconds is None else generation_seconds / SECONDS_PER_HOUR
    of_training = (
        None
        if prices.training_per_device_hour is None
        else _times(training_hours, prices.training_per_device_hour)
    )
    generation_price = prices.generation_per_device_hour if synthetic_tokens else 0.0
    of_generation = None if generation_price is None else _times(generation_hours, generation_price)
    return Costs(
        training_flops,
        _times(generation.flops_per_token, synthetic_tokens),
        training_hours,
        generation_hours,
        None if of_training is None or of_generation is None else of_training + of_generation,
    )


def _times(per_unit: float | None, units: float) -> float | None:
    if units == 0.0:
        return 0.0
    return None if per_unit is None else per_unit * units


# --- what the study knows of itself ----------------------------------------------------------------------------


def generation_of(root: str, plan: str, source: str | None, prices: Prices) -> Generation:
    """Return what a synthetic source of a plan's packed set took to make, from the manifest of its synthetic set."""
    if source is None:
        return Generation(0.0, 0.0)
    packed_name = read_json(plan_directory(root, plan) / RECIPE_FILE)["recipe"]["packed"]
    origin = read_json(study_path(root, "packed", packed_name) / RECIPE_FILE)["recipe"]["sources"][source]
    if origin.get("synthetic") is None:
        return Generation(
            unknown=(f"{source} is packed from a corpus, so what it took to make is not recorded",)
        )
    made = read_manifest(study_path(root, "synthetic", origin["synthetic"]), "rephrase_corpus")
    counts = made if origin.get("recipe") is None else made["recipes"][origin["recipe"]]
    packed_tokens = PackedInfo.read(root, packed_name).sources[source].num_tokens
    processed = counts["prompt_tokens"] + counts["completion_tokens"]
    where = f"synthetic/{origin['synthetic']}"
    evidence = [
        f"{where}: {processed:,} tokens read and written by the generator, {counts['accepted_tokens']:,} of them accepted, "
        f"for {packed_tokens:,} training tokens of {source}"
    ]
    unknown: list[str] = []
    num_params, says = _generator_num_params(root, origin["synthetic"], made["recipe"]["engine"], prices)
    (evidence if num_params else unknown).append(says)
    rate = prices.generation_tokens_per_device_second or made["accepted_tokens_per_device_second"]
    if rate is None:
        unknown.append(f"{where} has no generation speed: give prices.generation_tokens_per_device_second")
    elif prices.generation_tokens_per_device_second is None:
        evidence.append(f"generation speed: measured on {where}")
    return Generation(
        flops_per_token=2.0 * num_params * processed / packed_tokens if num_params else None,
        seconds_per_token=counts["accepted_tokens"] / packed_tokens / rate if rate else None,
        evidence=tuple(evidence),
        unknown=tuple(unknown),
    )


def _generator_num_params(
    root: str, synthetic: str, engine: dict[str, Any], prices: Prices
) -> tuple[int | None, str]:
    """Return all parameters of the generator of a set, None when nothing says them, and where they come from."""
    model = engine["model"]
    if prices.generator_num_params is not None:
        return (
            prices.generator_num_params,
            f"parameters of the generator given: {prices.generator_num_params:,}",
        )
    if model.startswith(STUDY_PREFIX):
        manifest: dict[str, Any] = read_manifest(
            study_path(root, model.removeprefix(STUDY_PREFIX)), "train_generator"
        )
        num_params = int(manifest["num_params_total"])
        return num_params, f"parameters of {model}: {num_params:,}, counted"
    if (shipped := shipped_num_params(model)) is not None:
        return shipped, f"parameters of {model}: {shipped:,}, of its card"
    counted = num_params_of(model, engine.get("revision"))
    if counted is not None:
        return counted, f"parameters of {model}: {counted:,}, of its own configuration"
    assumed = prices.assumed_generator_num_params.get(synthetic)
    if assumed is not None:
        return assumed, f"parameters of {model}: {assumed:,}, assumed"
    return None, (
        f"the parameters of {model} are not known (its configuration is not on this machine): give "
        f"prices.generator_num_params, or in a study assumptions.rephrase.{synthetic}.generator_num_params"
    )


def training_of(root: str, run_ids: Iterable[str], prices: Prices) -> Training:
    """Return the training speed given, or the median over the complete runs of the largest model among these."""
    given = prices.training_flops_per_device_second
    if given is not None:
        return Training(given, f"training speed given: {given:.3g} FLOP/s per device")
    records = [record for record in records_of(root, run_ids).values() if record.status == "complete"]
    largest = max((record.num_params_non_embedding for record in records), default=0)
    speeds = [_flops_per_device_second(each) for each in records if each.num_params_non_embedding == largest]
    if not speeds:
        return Training(None, "training speed is not known: give prices.training_flops_per_device_second")
    speed = statistics.median(speeds)
    return Training(
        speed,
        f"training speed: measured on the study's largest model ({largest:,} parameters), which says little about other devices "
        "and sizes",
    )


def _flops_per_device_second(record: RunRecord) -> float:
    per_token = train_flops_6nd(record.num_params_non_embedding, 1)
    devices = record.device_seconds / record.wall_seconds  # an elastic lane may have had more and fewer
    return per_token * record.tokens_per_second / devices
