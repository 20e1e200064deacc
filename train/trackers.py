"""Where else than to `metrics.jsonl` a run's numbers go: views for people, which no step reads.

TensorBoard's files lie beside the run. MLflow and Weights & Biases are used through their own libraries, which are
loaded only when asked for; addresses and keys are the libraries' own settings (MLFLOW_TRACKING_URI, WANDB_API_KEY,
WANDB_MODE, ...), because a study file is no place for a key.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from upath import UPath

from synth.errors import UserError
from synth.storage import is_local, study_path
from train.events import EventLog
from train.metrics import StepMetrics, scalars_of
from train.placement import Tracker, TrainPlacement
from train.record import Evaluation
from train.run import RunConfig

_LOG = logging.getLogger(__name__)

PROJECT = "synthscale"
"""Experiment (MLflow) or project (Weights & Biases) that runs appear under; their own settings can name another."""

LIBRARIES: dict[Tracker, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Tracker -> the package it takes."""

RUN_ID_TAG = "synthscale.run_id"


class RunTracker(Protocol):
    """One attempt at a run, as a tracker sees it."""

    def add(self, line: StepMetrics) -> None:
        """Take in a metrics line."""

    def add_evaluation(self, evaluation: Evaluation, step: int) -> None:
        """Take in the held-out losses after a step."""

    def close(self, status: str) -> None:
        """Hear how the attempt ended: `complete`, `diverged` or `interrupted`."""


def check_trackers(root: str, placement: TrainPlacement) -> None:
    """Raise UserError when a tracker is asked for that cannot be used."""
    for tracker in placement.trackers:
        package = LIBRARIES[tracker]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"placement.trackers names {tracker!r}, which needs the package {package}: install it where the workers run "
                "(pip install " + package + "), or leave it out."
            )
    if "tensorboard" in placement.trackers and not is_local(study_path(root)):
        raise UserError(
            f"placement.trackers names 'tensorboard' with root = {root!r}: event files grow line by line, which an object "
            "store cannot do; leave it out, or take a local root."
        )


class Trackers:
    """All trackers of one attempt at a run. One that fails is left out from there on, with a warning: a view of a run is
    no reason to lose the run."""

    def __init__(self, run: RunConfig, placement: TrainPlacement, directory: UPath, step: int) -> None:
        self._open: dict[str, RunTracker] = {}
        for name in placement.trackers:
            try:
                self._open[name] = _open_tracker(name, run, directory, step)
            except Exception as error:  # whatever a tracker's library raises
                _warn(name, error)

    def add(self, line: StepMetrics) -> None:
        """Take in a metrics line."""
        self._tell(lambda tracker: tracker.add(line))

    def add_evaluation(self, evaluation: Evaluation, step: int) -> None:
        """Take in the held-out losses after a step."""
        self._tell(lambda tracker: tracker.add_evaluation(evaluation, step))

    def close(self, status: str) -> None:
        """Say how the attempt ended."""
        self._tell(lambda tracker: tracker.close(status))

    def _tell(self, what: Callable[[RunTracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                what(tracker)
            except Exception as error:  # whatever a tracker's library raises
                _warn(name, error)
                del self._open[name]


def _warn(name: str, error: Exception) -> None:
    _LOG.warning("tracker %s failed and is left out from here on: %s: %s", name, type(error).__name__, error)


def _open_tracker(tracker: Tracker, run: RunConfig, directory: UPath, step: int) -> RunTracker:
    if tracker == "tensorboard":
        return EventLog(directory, step)
    return MlflowRun(run) if tracker == "mlflow" else WandbRun(run, directory)


class MlflowRun:
    """The run in MLflow, under the same name in every attempt."""

    def __init__(self, run: RunConfig) -> None:
        import mlflow  # only where it is asked for

        self._client = mlflow.MlflowClient()
        name = mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        home = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([home], f"tags.`{RUN_ID_TAG}` = '{run.run_id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(home, run_name=run.run_id, tags={RUN_ID_TAG: run.run_id})
        self._id = made.info.run_id
        for name, value in parameters_of(run):
            self._client.log_param(self._id, name, value)

    def add(self, line: StepMetrics) -> None:
        """Take in a metrics line."""
        self._log("train", scalars_of(line), line.step)

    def add_evaluation(self, evaluation: Evaluation, step: int) -> None:
        """Take in the held-out losses after a step."""
        self._log("held_out", evaluation.scalars(), step)

    def close(self, status: str) -> None:
        """Say how the attempt ended; one that was interrupted is killed to MLflow."""
        ending = {"complete": "FINISHED", "diverged": "FAILED"}.get(status, "KILLED")
        self._client.set_terminated(self._id, status=ending)

    def _log(self, group: str, scalars: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric  # loaded by now
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(f"{group}/{name}", value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)


class WandbRun:
    """The run in Weights & Biases, under its own id in every attempt."""

    def __init__(self, run: RunConfig, directory: UPath) -> None:
        import wandb  # only where it is asked for

        local = str(directory) if is_local(directory) else None
        self._run: Any = wandb.init(
            project=wandb.Settings().project or PROJECT,
            id=run.run_id,
            name=run.run_id,
            resume="allow",
            dir=local,
            config=dict(parameters_of(run)),
            reinit="create_new",
        )

    def add(self, line: StepMetrics) -> None:
        """Take in a metrics line."""
        self._log("train", scalars_of(line), line.step)

    def add_evaluation(self, evaluation: Evaluation, step: int) -> None:
        """Take in the held-out losses after a step."""
        self._log("held_out", evaluation.scalars(), step)

    def close(self, status: str) -> None:
        """Say how the attempt ended."""
        self._run.finish(exit_code=0 if status == "complete" else 1)

    def _log(self, group: str, scalars: dict[str, float], step: int) -> None:
        self._run.log({f"{group}/{name}": value for name, value in scalars.items()}, step=step)


def parameters_of(run: RunConfig) -> Iterator[tuple[str, Any]]:
    """Yield what decides a run as dotted names and plain values."""
    yield from _flat("", run.model_dump(mode="json"))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for name, each in value.items():
        yield from _flat(f"{prefix}.{name}" if prefix else name, each)
