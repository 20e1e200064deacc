"""`fit_laws`: the laws of a study, or of any table of runs, into one directory.

On a study (and with `law = "auto"` on a table) the rows of each group give up to three fits: the data law where N is
fixed and D takes the most values, the model law where D is fixed and N takes the most values, and a joint law over
all rows. Which joint law is decided by extrapolation, once for all groups, so that groups compare
(`tune.laws.selection`). A law that a group has too few runs for is named in the file's warnings; a law that was
asked for by name and cannot be fitted is an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from upath import UPath

from synth.errors import UserError
from synth.identity import claim_directory, finish, is_finished, provenance
from synth.plan import Plan
from synth.progress import Progress
from synth.storage import study_path, write_json_atomic
from tune.config import LawsConfig
from tune.laws import FittedLaw, Objective, tabulate
from tune.laws.estimate import Settings, Task, fit_all
from tune.laws.forms import CHINCHILLA, CHINCHILLA_TIED, DATA, MODEL
from tune.laws.law import Law
from tune.laws.registry import EXPONENTIAL_MIXING, law_named
from tune.laws.rows import check_rows, too_few
from tune.laws.saved import FIT_FILE, load_directory, save_samples
from tune.laws.selection import choose_law
from tune.laws.summary import describe_selection
from tune.laws.table import pin_gauge
from tune.observations import Observation, Observations, columns_of, read_observations
from tune.results import FitFile

KIND = "laws"
JOINT_LAWS = (CHINCHILLA, CHINCHILLA_TIED)
"""Laws `auto` chooses from for all rows of a group; the others need to know more than N and D."""
LEVELS_FOR_JOINT = 3
"""`auto` fits a joint law where both N and D take at least this many values."""


def plan_laws(config: LawsConfig) -> Plan:
    """Return what fitting would do. Raises UserError when the runs are missing, unreadable or too few."""
    observations = read_observations(config)
    tasks, skipped = choose_tasks(config, observations)
    directory = laws_directory(config)
    facts: dict[str, object] = {
        "rows": len(observations.rows),
        "rows left out": len(observations.left_out),
        "groups": ", ".join(observations.groups),
        "fits": len(tasks),
        "laws": ", ".join(dict.fromkeys(task.law.name for task in tasks)),
        "objective": config.objective,
        "bootstrap resamples per fit": config.bootstrap_samples,
    }
    return Plan("fit_laws", str(directory), is_finished(directory), facts, tuple(skipped))


def fit_laws(config: LawsConfig) -> FitFile:
    """Fit, write `fit.json`, `bootstrap.npz` and figures, and return the fit file; only read it when it is finished.

    Raises UserError as `plan_laws` does, and IdentityMismatch when the directory holds the fit of other runs.
    """
    observations = read_observations(config)
    tasks, skipped = choose_tasks(config, observations)
    directory = laws_directory(config)
    recipe, parents = _recipe(config), {"runs": observations.hash}
    identity = claim_directory(directory, KIND, recipe, parents)
    if is_finished(directory):
        return load_directory(directory).file
    tasks = choose_joint_law(config, tasks)
    progress = Progress("fit_laws", len(tasks), "fits")
    fits = fit_all(
        tasks,
        _settings(config),
        lambda fitted: progress.advance(note=f"{fitted.law.name} law of {fitted.record.group}"),
    )
    file = FitFile(
        hash=identity,
        recipe=recipe,
        fits=tuple(fitted.record for fitted in fits),
        rows=tuple(_listed(observations, fits)),
        warnings=tuple(skipped),
        provenance=provenance(),
    )
    figures = _write(directory, file, fits, observations)
    chosen = next((fit.selection for fit in file.fits if fit.selection is not None), None)
    compared = describe_selection(chosen) if chosen is not None and len(observations.groups) > 1 else []
    for line in [*tabulate(file.fits), *compared, *(f"! {sentence}" for sentence in skipped)]:
        progress.say(line)
    finish(directory, identity, fits=len(fits), rows=len(file.rows), figures=figures)
    progress.say(f"{len(fits)} fits in {directory}")
    return file


def laws_directory(config: LawsConfig) -> UPath:
    """Return where the fit is written: `laws/<name>` under the study root, or `out`."""
    return study_path(config.out) if config.out is not None else study_path(config.root, "laws", config.name)


# --- what to fit -----------------------------------------------------------------------------------------------


def choose_tasks(config: LawsConfig, observations: Observations) -> tuple[list[Task], list[str]]:
    """Return the fits to make, and a sentence for each law that a group has too few runs for.

    Raises UserError when a law asked for by name cannot be fitted to a group, or `auto` finds nothing to fit.
    """
    if config.law != "auto":
        return _tasks_of(config, observations), []
    if not observations.rows:
        raise _nothing(observations)
    tasks: list[Task] = []
    skipped: list[str] = []
    everything: list[str] = []
    for law in (
        DATA,
        MODEL,
        JOINT_LAWS[0],
    ):  # the joint fits are in the first of their laws until one is chosen
        able, too_short = _able_tasks(law, observations)
        tasks += able
        everything += too_short
        if able or config.runs is None:  # of a table nobody may have meant the law that no group of it allows
            skipped += too_short
    if not tasks:
        raise UserError(f"too few runs in {observations.origin} for any law: {'; '.join(everything)}")
    return tasks, skipped


def _tasks_of(config: LawsConfig, observations: Observations) -> list[Task]:
    """Return the fits of a law asked for by name. Raises UserError where a group cannot be fitted."""
    rows = columns_of(observations.rows)
    shares = (
        pin_gauge(config.columns.shares, rows)
        if config.law == EXPONENTIAL_MIXING and observations.rows
        else ()
    )
    law = law_named(config.law, shares or config.columns.shares)
    if config.runs is None and "share" in law.columns_needed:
        observations = observations.by_source()
    if not observations.rows:
        raise _nothing(observations)
    tasks = _tasks_by_group(law, observations)
    for task in tasks:
        check_rows(law, task.rows, task.group)
    return tasks


def _nothing(observations: Observations) -> UserError:
    return UserError(
        f"{observations.origin} has no row to fit ({len(observations.left_out)} left out): add complete runs"
    )


def _tasks_by_group(law: Law, observations: Observations) -> list[Task]:
    fixed = _fixed(law, observations.rows)
    return [_task(law, fixed, group, observations) for group in observations.groups]


def _able_tasks(law: Law, observations: Observations) -> tuple[list[Task], list[str]]:
    """Return the fits of a law to the groups that suffice, and a sentence for each group that does not."""
    able, too_short = [], []
    for task in _tasks_by_group(law, observations):
        joint = law in JOINT_LAWS
        if shortage := _joint_shortage(task) if joint else too_few(law, task.rows):
            too_short.append(f"no {'joint' if joint else law.name} law for {task.group!r}: {shortage}")
        else:
            able.append(task)
    return able, too_short


def choose_joint_law(config: LawsConfig, tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks of `auto` with all joint fits in the law that extrapolates best over their groups."""
    joint = {task.group: task.rows for task in tasks if task.law in JOINT_LAWS}
    if config.law != "auto" or not joint:
        return list(tasks)
    selection = choose_law(joint, JOINT_LAWS, _settings(config).objective)
    law = law_named(selection.law)
    return [replace(task, law=law, selection=selection) if task.law in JOINT_LAWS else task for task in tasks]


def _fixed(law: Law, rows: Sequence[Observation]) -> dict[str, float]:
    """Return what a one-axis law holds fixed: the N with the most values of D (the larger at a tie), or the reverse."""
    if len(law.inputs) != 1:
        return {}
    varied = law.inputs[0]
    held = "num_params" if varied == "train_tokens" else "train_tokens"
    levels: dict[float, set[float]] = defaultdict(set)
    for row in rows:
        value, level = row.value(held), row.value(varied)
        if value is not None and level is not None:
            levels[value].add(level)
    if not levels:
        return {}
    return {held: max(levels, key=lambda value: (len(levels[value]), value))}


def _task(law: Law, fixed: dict[str, float], group: str, observations: Observations) -> Task:
    rows = [
        row
        for row in observations.of(group)
        if all(row.value(name) == value for name, value in fixed.items())
    ]
    return Task(law, columns_of(rows), group, fixed, observations.excluded_of(group))


def _joint_shortage(task: Task) -> str | None:
    if shortage := too_few(task.law, task.rows):
        return shortage
    for name in task.law.inputs:
        levels = len(set(task.rows[name]))  # type: ignore[arg-type]  # an array of numbers
        if levels < LEVELS_FOR_JOINT:
            return f"{name} takes {levels} different values and auto asks for {LEVELS_FOR_JOINT}"
    return None


# --- what is written -------------------------------------------------------------------------------------------


def _recipe(config: LawsConfig) -> dict[str, Any]:
    unused = {"plan", "root"} if config.runs is not None else {"columns"}
    return {name: value for name, value in config.identity().items() if name not in unused}


def _settings(config: LawsConfig) -> Settings:
    delta = config.huber_delta if config.objective == "huber_log" else None
    return Settings(
        objective=Objective(config.objective, delta),
        bootstrap_samples=config.bootstrap_samples,
        confidence=config.confidence,
        hold_out_largest=config.hold_out_largest,
        seed=config.seed,
    )


def _listed(observations: Observations, fits: Sequence[FittedLaw]) -> list[dict[str, Any]]:
    used = {row for fitted in fits for row in fitted.record.rows_used}
    dropped = (row.observation for row in observations.left_out if row.observation is not None)
    measured = [
        {
            "run_id": row.row,
            "group": row.group,
            "num_params": row.num_params,
            "train_tokens": row.train_tokens,
            "loss": row.loss,
            "share": row.share,
            "synthetic": row.synthetic,
            "used": row.row in used,
        }
        for row in (*observations.rows, *dropped)
    ]
    nothing = dict.fromkeys(("num_params", "train_tokens", "loss", "share"))
    return measured + [
        {"run_id": row.run_id, "group": row.group, **nothing, "synthetic": row.synthetic, "used": False}
        for row in observations.left_out
        if row.observation is None
    ]


def _write(
    directory: UPath, file: FitFile, fits: Sequence[FittedLaw], observations: Observations
) -> list[str]:
    from tune.figures import write_figures  # matplotlib is slow to load, and planning needs none

    save_samples(directory, tuple(fits))
    figures = write_figures(directory, fits, {row.row: row for row in observations.rows})
    write_json_atomic(directory / FIT_FILE, file.model_dump(mode="json"))
    return figures
