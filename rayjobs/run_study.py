"""`run_study`: run every step of a study from one file; skip what is finished, resume what is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rayjobs.cli import Job, main_of
from rayjobs.study import Step, StudyConfig, check_references, steps_of
from synth.errors import IncompleteArtefact
from synth.plan import Plan
from synth.progress import clock
from synth.storage import read_json, study_path, write_json_atomic
from train.config import TrainPlacement

LOG_FILE = "study.json"
"""Under the study root: one entry for every time a step ran, with its wall-clock seconds."""


def plan_study(study: StudyConfig) -> list[Plan]:
    """Return the plan of every step; a step whose inputs are still to be made says so."""
    check_references(study)
    return [_plan_step(step) for step in steps_of(study)]


def _plan_step(step: Step) -> Plan:
    try:
        return step.plan()
    except IncompleteArtefact as error:
        # Earlier steps of this study make it; the step is planned again, in full, when its turn comes.
        return Plan(
            step=step.job.name, output=step.config.name, finished=False, facts={"waits for": str(error)}
        )


def run_study(study: StudyConfig, *, connect: Callable[[], None]) -> None:
    """Run the steps in order. Each leaves a finished artefact, so a kill costs at most the step's open parts."""
    steps = steps_of(study)
    began = time.monotonic()
    with ExitStack() as stack:
        lanes = _SharedLanes(stack)
        for number, step in enumerate(steps, start=1):
            plan = step.plan()
            if plan.finished:
                _say(f"{number}/{len(steps)} {step.title}: finished already")
                continue
            _say(f"{number}/{len(steps)} {step.title}: {', '.join(_brief(plan))}")
            for warning in plan.warnings:
                _say(f"warning: {warning}")
            if step.job.needs_ray:
                connect()
            started = time.monotonic()
            step.job.run(step.config, **lanes.for_step(step))
            _log(study.root, step, time.monotonic() - started)
    _say(f"finished in {clock(time.monotonic() - began)}")
    for name in study.report:
        _say(f"report: {study_path(study.root, name, 'index.html')}")


class _SharedLanes:
    """Warm training lanes kept from one training step to the next with the same placement, and closed otherwise.

    Starting worker groups costs more than training a small model; neighbouring steps of a study share them.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._open: tuple[TrainPlacement, Any] | None = None

    def for_step(self, step: Step) -> dict[str, Any]:
        """Return the step's further arguments: the lanes when it trains a queue of runs, nothing otherwise."""
        if step.job.name not in ("sweep_learning_rates", "pretrain_models", "search_mixture"):
            if step.job.needs_ray:
                self._close()
            return {}
        fields = TrainPlacement.model_fields
        placement = TrainPlacement(**{name: getattr(step.config.placement, name) for name in fields})
        if self._open is None or self._open[0] != placement:
            self._close()
            from train.lanes.job import Lanes

            self._open = (placement, self._stack.enter_context(Lanes(step.config.root, placement)))
        return {"lanes": self._open[1]}

    def _close(self) -> None:
        self._stack.close()
        self._open = None


def _brief(plan: Plan) -> list[str]:
    return [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in list(plan.facts.items())[:3]]  # fmt: skip


def _log(root: str, step: Step, seconds: float) -> None:
    path = study_path(root, LOG_FILE)
    entries = read_json(path) if path.exists() else []
    entry = {"step": step.job.name, "name": step.config.name, "wall_seconds": round(seconds, 2)}
    write_json_atomic(path, [*entries, entry])
    _say(f"{step.title}: done in {clock(seconds)}")


def _say(text: str) -> None:
    print(f"[study] {text}", file=sys.stderr, flush=True)


JOB = Job(
    name="run_study",
    config=StudyConfig,
    plan=plan_study,
    run=run_study,
    needs_ray=False,
    connects_itself=True,
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
