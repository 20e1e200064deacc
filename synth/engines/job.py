"""The Ray seam of engines: the devices of one that lies on several nodes, reserved together, and the trials of settings."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Any, Self

import ray
import ray.util
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from synth.config import RephrasePlacement
from synth.engines.factory import device_name
from synth.engines.search import TuneEngineConfig
from synth.engines.tuning import (
    SampleWork,
    SettingsSearch,
    failed_trial,
    make_tunings,
    placement_with,
    run_trial,
    sample_of,
)
from synth.engines.tunings import EngineSettings, Trial, Tuning, write_tuning
from synth.errors import first_line
from synth.model_source import ModelSource
from synth.progress import Progress
from synth.rephrase import open_work

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


# --- tune_engine --------------------------------------------------------------------------------------------------


def tune_engine(config: TuneEngineConfig) -> list[Tuning]:
    """Try engine settings on a sample of a corpus and keep the best under `tunings/`; return them, fastest first.

    Raises UserError (nothing worked, what the configuration names is not there), IncompleteArtefact.
    """
    work = open_work(config)
    search = SettingsSearch(config.search, config.placement, config.seed)
    progress = Progress("tune_engine", search.left, "trials")
    sample = sample_of(work, config.search.sample_documents)
    while (settings := search.ask()) is not None:
        trial = _run_trial(sample, settings, config.search.trial_timeout_seconds)
        search.tell(trial)
        rate = trial.accepted_tokens_per_device_second
        said = trial.detail or f"{rate or 0:,.0f} accepted tokens/s/device"
        progress.set(len(search.trials), note=f"{_shown(settings)}: {trial.status}, {said}")
    device = ray.get(_on_an_engines_node(config).remote(config.engine, config.placement))
    tunings = make_tunings(work, device, search.trials, config.search.tolerance)
    for tuning in tunings:
        path = write_tuning(config.root, tuning)
        progress.say(
            f"{_shown(tuning.settings)}: {tuning.accepted_tokens_per_device_second:,.0f} accepted tokens/s/device -> {path}"
        )
    return tunings


def _run_trial(sample: SampleWork, settings: EngineSettings, timeout_seconds: float) -> Trial:
    """Run a trial in a process of its own, so that a device is empty when the next one begins."""
    placement = placement_with(sample.config.placement, settings)
    task = ray.remote(
        num_cpus=placement.cpus_per_engine, num_gpus=placement.gpus_per_engine, max_calls=1, max_retries=0
    )(run_trial)
    try:
        trial: Trial = ray.get(
            task.options(name="tune_engine trial").remote(sample, settings, timeout_seconds)
        )
    # The second is Ray's own watch over the node's memory.
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        return failed_trial(settings, first_line(error))
    return trial


def _on_an_engines_node(config: TuneEngineConfig) -> Any:
    placement = config.placement
    return ray.remote(num_cpus=placement.cpus_per_engine, num_gpus=placement.gpus_per_engine)(device_name)


def _shown(settings: EngineSettings) -> str:
    return ", ".join(
        f"{name} = {value}" for name, value in settings.model_dump().items() if value is not None
    )
