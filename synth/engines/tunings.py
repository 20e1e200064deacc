"""Engine settings that were found to be fast, and for what: kept under `tunings/`, taken where a job leaves a setting open.

A tuning is for a model, a device and how many of them share a layer, an engine, recipes and documents of some lengths. How it is found is in
`synth.engines.tuning`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict
from upath import UPath

from synth.config import EngineConfig, RephrasePlacement
from synth.errors import UserError
from synth.identity import content_hash
from synth.ledger import Tally
from synth.recipe import Recipe
from synth.storage import list_names, read_json, read_parquet, study_path, write_json_atomic

TUNINGS = "tunings"

MAX_LENGTH_DISTANCE = 0.35
"""Total variation between two histograms of document lengths up to which one's settings are taken for the other."""


class EngineSettings(BaseModel):
    """What a trial varies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float | None
    tensor_parallel: int
    speculative: dict[str, Any] | None

    def memory_demand(self) -> tuple[float, ...]:
        """Return what a device has to hold under these settings; settings with all of it larger need more."""
        return (
            self.gpu_memory_utilization or 0.0,
            float(self.max_num_seqs),
            float(self.max_num_batched_tokens),
        )

    def needs_at_least(self, other: EngineSettings) -> bool:
        """Return whether memory that does not hold `other` cannot hold these."""
        same = (self.tensor_parallel, self.speculative) == (other.tensor_parallel, other.speculative)
        mine, theirs = self.memory_demand(), other.memory_demand()
        return same and all(own >= its for own, its in zip(mine, theirs, strict=True))


class Trial(BaseModel):
    """What one setting did."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    settings: EngineSettings
    status: Literal["measured", "out_of_memory", "failed", "skipped"]
    """`skipped`: settings that need less memory had run out of it."""
    detail: str = ""
    """The engine's own words where it failed."""
    accepted_tokens_per_device_second: float | None = None
    output_tokens_per_device_second: float | None = None
    engine_start_seconds: float | None = None
    seconds: float | None = None
    """Wall-clock time of the work, engine start left out."""
    recipes: dict[str, Tally] = {}
    """Counts of the sample, by recipe hash: how long answers are, and how many are accepted."""


class Tuning(BaseModel):
    """The best settings for a model, a device, recipes and document lengths, with every trial they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model_hash: str
    device: str
    engine: dict[str, Any]
    """What of the engine's configuration decides the text; tunings are not shared across it."""
    recipes: tuple[str, ...]
    """Hashes of the recipes, sorted."""
    length_histogram: dict[str, float]
    """Fraction of documents by the base-2 logarithm of their length in characters."""
    settings: EngineSettings
    accepted_tokens_per_device_second: float
    fastest_accepted_tokens_per_device_second: float
    """Of the fastest trial; the chosen one is within `tolerance` of it and needs least memory."""
    trials: tuple[Trial, ...]
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """File name, from everything the tuning is for."""
        return f"{content_hash([*self.made_for, self.length_histogram])}.json"

    @property
    def made_for(self) -> tuple[Any, ...]:
        """What a job must have in common with it, besides documents of about these lengths."""
        return self.model_hash, self.device, self.settings.tensor_parallel, self.engine, self.recipes


# --- lengths ---


def length_histogram(part: str) -> dict[str, float]:
    """Return the fraction of documents by log2 of their length in characters, of a part of a corpus."""
    try:
        texts = read_parquet(UPath(part), ["text"])["text"].to_pylist()
    except (OSError, pa.ArrowInvalid):
        return {}  # the part itself will be read in a moment, and its reader says what is wrong
    counts = Counter(int(math.log2(len(text) + 1)) for text in texts)
    return {str(size): round(count / len(texts), 4) for size, count in sorted(counts.items())}


def length_distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the total variation distance of two histograms, [0, 1]."""
    return sum(abs(one.get(size, 0.0) - other.get(size, 0.0)) for size in {*one, *other}) / 2


# --- on disk ---


def engine_identity(engine: EngineConfig) -> dict[str, Any]:
    """Return what of an engine's configuration a tuning is bound to; where the model lies is in its hash already."""
    return {name: value for name, value in engine.identity().items() if name not in ("model", "revision")}


def write_tuning(root: str, tuning: Tuning) -> UPath:
    """Keep a tuning where `rephrase_corpus` finds it; return its path."""
    path = study_path(root, TUNINGS, tuning.name)
    write_json_atomic(path, tuning.model_dump(mode="json"))
    return path


def recipe_hashes(recipes: Sequence[Recipe]) -> tuple[str, ...]:
    """Return what of the recipes a tuning is bound to."""
    return tuple(sorted(recipe.hash for recipe in recipes))


def find_tuning(
    root: str, engine: EngineConfig, model_hash: str, device: str, tensor_parallel: int, recipes: Sequence[Recipe], part: str
) -> Tuning | None:  # fmt: skip
    """Return the tuning for this engine, model, device, number of GPUs a layer is spread over and recipes whose documents
    are most like those of a part, if any are.

    Raises UserError when a file under `tunings/` is no tuning.
    """
    found = find_tunings(root, engine, model_hash, tensor_parallel, recipes, part)
    return next((tuning for tuning in found if tuning.device == device), None)


def find_tunings(
    root: str, engine: EngineConfig, model_hash: str, tensor_parallel: int, recipes: Sequence[Recipe], part: str
) -> list[Tuning]:  # fmt: skip
    """Return such tunings for all devices, those of the documents most like a part's first. Raises UserError likewise."""
    directory = study_path(root, TUNINGS)
    names = list_names(directory, ".json")
    if not names:
        return []
    histogram = length_histogram(part)
    ours = (tensor_parallel, engine_identity(engine), recipe_hashes(recipes))
    found = []
    for name in names:
        tuning = _read_tuning(directory / name)
        distance = length_distance(histogram, tuning.length_histogram)
        if tuning.made_for == (model_hash, tuning.device, *ours) and distance <= MAX_LENGTH_DISTANCE:
            found.append((distance, name, tuning))
    return [tuning for _, _, tuning in sorted(found, key=lambda each: each[:2])]


@dataclass(frozen=True)
class MeasuredSpeed:
    """How fast a model was seen to generate when it was tuned."""

    name: str
    """File under `tunings/`."""
    device: str
    tokens_per_device_second: float
    """Output tokens under the chosen settings."""
    recipes: Mapping[str, Tally]
    """Counts of the sample under these settings, by recipe hash."""


def find_measured_speed(root: str, engine: EngineConfig, model_hash: str) -> MeasuredSpeed | None:
    """Return the speed of the fastest tuning of a model under an engine's settings, whatever its recipes and device.

    For estimates, which name the tuning they rest on. Raises UserError when a file under `tunings/` is no tuning.
    """
    directory = study_path(root, TUNINGS)
    found = []
    for name in list_names(directory, ".json"):
        tuning = _read_tuning(directory / name)
        if (tuning.model_hash, tuning.engine) != (model_hash, engine_identity(engine)):
            continue
        found += [
            MeasuredSpeed(name, tuning.device, trial.output_tokens_per_device_second, trial.recipes)
            for trial in tuning.trials
            if trial.settings == tuning.settings and trial.output_tokens_per_device_second
        ]
    return max(found, key=lambda speed: (speed.tokens_per_device_second, speed.name), default=None)


def _read_tuning(path: UPath) -> Tuning:
    try:
        return Tuning.model_validate(read_json(path))
    except ValueError as error:
        raise UserError(
            f"{path} is no tuning ({type(error).__name__}): delete it and run tune_engine again."
        ) from None


def tuned_placement(placement: RephrasePlacement, settings: EngineSettings) -> RephrasePlacement:
    """Return a placement whose open settings are those of a tuning; what a person has set stays."""
    found = settings.model_dump(include={"max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization"})
    chosen = {name: value for name, value in found.items() if getattr(placement, name) is None}
    return placement.model_copy(update=chosen)
