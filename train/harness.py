"""Scores of lm-evaluation-harness for the kept models of a plan. No Ray; the harness is loaded where a model is scored.

evaluations/<name>/recipe.json            what was asked for, and of which plan
evaluations/<name>/scores/<run_id>.json   one model's scores
evaluations/<name>/manifest.json          written when every model has its scores
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

from upath import UPath

from synth.errors import UserError
from synth.identity import RECIPE_FILE, claim_directory, finish, is_finished, read_manifest
from synth.plan import Plan
from synth.storage import exists, read_json, study_path, write_json_atomic
from train.config import EvaluateConfig
from train.grid import MADE_BY as PLANNER
from train.grid import plan_directory
from train.record import MODEL_DIRECTORY, Record, records_of, run_directory
from train.staging import local_copy

KIND = "evaluation"
MADE_BY = "evaluate_models"
PACKAGE = "lm_eval"
SCORES = "scores"


class TaskScore(Record):
    """One measure of one task."""

    task: str
    """Task or group, as the harness names it."""
    metric: str
    """Measure and filter, as the harness names them: `acc,none`."""
    value: float
    standard_error: float | None
    """Null where the harness has none."""
    questions: int | None
    """Questions asked; null for a group."""


class ModelScores(Record):
    """Contents of `scores/<run_id>.json`."""

    run_id: str
    scores: tuple[TaskScore, ...]
    task_versions: dict[str, float | str]
    """Version of each task; scores of different versions do not compare."""
    harness_version: str


def evaluation_directory(config: EvaluateConfig) -> UPath:
    """Return `evaluations/<name>` under the study root."""
    return study_path(config.root, "evaluations", config.name)


def plan_evaluation(config: EvaluateConfig) -> Plan:
    """Return what `evaluate_models` would do; nothing is written.

    Raises UserError without the harness or when a run of the plan has no model, IncompleteArtefact when the plan is not
    finished, IdentityMismatch when the name is taken by another evaluation.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            f"evaluate_models needs the package {PACKAGE}, lm-evaluation-harness, where the workers run: install it with "
            "`pip install lm_eval[hf]`."
        )
    directory = evaluation_directory(config)
    run_ids = complete_runs(config)
    records = records_of(config.root, run_ids)
    for run_id in run_ids:
        record = records.get(run_id)
        if record is None or not record.placement.keep_models:
            raise UserError(
                f"run {run_id} of plans/{config.plan} has no model: delete its record.json and run pretrain_models with "
                "placement.keep_models = true; it trains the same model again."
            )
    if exists(directory / RECIPE_FILE):
        claim_directory(directory, KIND, config.identity(), _parents(config))
    missing = missing_scores(config)
    facts: dict[str, object] = {
        "models missing": len(missing),
        "models": len(run_ids),
        "tasks": ", ".join(config.tasks),
    }
    return Plan(MADE_BY, str(directory), is_finished(directory) and not missing, facts)


def claim_evaluation(config: EvaluateConfig) -> str:
    """Make `evaluations/<name>` this evaluation's own and return its identity. Raises IdentityMismatch."""
    return claim_directory(evaluation_directory(config), KIND, config.identity(), _parents(config))


def complete_runs(config: EvaluateConfig) -> list[str]:
    """Return the ids of the complete runs of the plan. Raises IncompleteArtefact when it is not finished."""
    runs: dict[str, str] = _plan(config)["runs"]
    return [run_id for run_id, status in runs.items() if status == "complete"]


def missing_scores(config: EvaluateConfig) -> list[str]:
    """Return the ids of the runs without scores."""
    return [run_id for run_id in complete_runs(config) if not exists(_scores_file(config, run_id))]


def score_model(config: EvaluateConfig, run_id: str) -> None:
    """Score the model of one run and write its scores. Raises UserError for a task the harness does not know."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=config.include_path)
    unknown = sorted(set(config.tasks) - set(tasks.all_tasks))
    if unknown:
        raise UserError(
            f"tasks: {unknown[0]!r} is not a task of lm-evaluation-harness {_version()}: `lm-eval ls tasks` lists them all, and "
            "include_path adds your own."
        )
    with local_copy(run_directory(config.root, run_id) / MODEL_DIRECTORY) as model:
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "auto"},
            tasks=list(config.tasks),
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            batch_size=config.placement.batch_size,
            device="cuda" if config.placement.gpus_per_task else "cpu",
            task_manager=tasks,
            log_samples=False,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
        )
    scores = ModelScores(
        run_id=run_id,
        scores=tuple(read_scores(found)),
        task_versions={task: version for task, version in found["versions"].items() if version is not None},
        harness_version=_version(),
    )
    write_json_atomic(_scores_file(config, run_id), scores.model_dump(mode="json"))


def read_scores(found: dict[str, Any]) -> Iterator[TaskScore]:
    """Yield the measures in what the harness returns: `metric,filter` beside `metric_stderr,filter`, by task."""
    for task, measures in sorted(found["results"].items()):
        asked = found.get("n-samples", {}).get(task, {})
        for name, value in sorted(measures.items()):
            metric, _, kind = name.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = measures.get(f"{metric}_stderr,{kind}")
            yield TaskScore(
                task=task,
                metric=name,
                value=float(value),
                standard_error=float(error)
                if isinstance(error, (int, float)) and math.isfinite(error)
                else None,
                questions=asked.get("effective"),
            )


def finish_evaluation(config: EvaluateConfig, identity: str) -> dict[str, Any]:
    """Write the manifest of the evaluation and return it."""
    run_ids = complete_runs(config)
    read = [ModelScores.model_validate(read_json(_scores_file(config, run_id))) for run_id in run_ids]
    return finish(
        evaluation_directory(config),
        identity,
        runs=run_ids,
        measures=sorted({f"{score.task}: {score.metric}" for each in read for score in each.scores}),
        harness_version=sorted({each.harness_version for each in read}),
    )


def _plan(config: EvaluateConfig) -> dict[str, Any]:
    return read_manifest(plan_directory(config.root, config.plan), PLANNER)


def _parents(config: EvaluateConfig) -> dict[str, str]:
    return {"plan": _plan(config)["hash"]}


def _scores_file(config: EvaluateConfig, run_id: str) -> UPath:
    return evaluation_directory(config) / SCORES / f"{run_id}.json"


def _version() -> str:
    return importlib.metadata.version(PACKAGE)
