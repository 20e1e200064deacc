"""`fit_laws`: the laws of a study, or of any table of runs, into one directory.

What is fitted to which rows is decided in `tune.law_tasks`. A law that a group has too few runs for is named in the
file's warnings, what was made of the rows in its notes; a law that was asked for by name and cannot be fitted is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upath import UPath

from synth.identity import claim_directory, finish, is_finished, provenance
from synth.plan import Plan
from synth.progress import Progress
from synth.storage import study_path, write_json_atomic
from tune.config import LawsConfig
from tune.law_tasks import choose_families, read_observations
from tune.laws import FittedLaw, Objective, tabulate
from tune.laws.estimate import Settings, fit_all
from tune.laws.saved import FIT_FILE, load_directory, save_samples
from tune.laws.summary import describe_selection
from tune.observations import ALL, Observations
from tune.results import FitFile, Selection

KIND = "laws"


def plan_laws(config: LawsConfig) -> Plan:
    """Return what fitting would do. Raises UserError when the runs are missing, unreadable or too few."""
    choice = choose_families(config, read_observations(config))
    directory = laws_directory(config)
    facts: dict[str, object] = {
        "rows": len(choice.observations.rows),
        "rows left out": len(choice.observations.left_out),
        "groups": ", ".join(choice.observations.groups),
        "fits": choice.num_fits,
        "laws": choice.laws,
        "objective": config.objective,
        "bootstrap resamples per fit": config.bootstrap_samples,
    }
    return Plan("fit_laws", str(directory), is_finished(directory), facts, (*choice.notes, *choice.skipped))


def fit_laws(config: LawsConfig) -> FitFile:
    """Fit, write `fit.json`, `bootstrap.npz` and figures, and return the fit file; only read it when it is finished.

    Raises UserError as `plan_laws` does, and IdentityMismatch when the directory holds the fit of other runs.
    """
    choice = choose_families(config, read_observations(config))
    directory = laws_directory(config)
    recipe, parents = _recipe(config), {"runs": choice.observations.hash}
    identity = claim_directory(directory, KIND, recipe, parents)
    if is_finished(directory):
        return load_directory(directory).file
    tasks = [task for family in choice.families for task in family.decided(_settings(config).objective)]
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
        rows=tuple(_listed(choice.observations, fits)),
        warnings=choice.skipped,
        notes=choice.notes,
        provenance=provenance(),
    )
    figures = _write(directory, file, fits, choice.observations)
    # The comparison of a single fit of all rows stands under that fit.
    chosen: list[Selection] = []
    for fit in file.fits:
        if fit.selection is not None and fit.group != ALL and fit.selection not in chosen:
            chosen.append(fit.selection)
    compared = [line for selection in chosen for line in describe_selection(selection)]
    said = (*choice.notes, *choice.skipped)
    for line in [*tabulate(file.fits), *compared, *(f"! {sentence}" for sentence in said)]:
        progress.say(line)
    finish(directory, identity, fits=len(fits), rows=len(file.rows), figures=figures)
    progress.say(f"{len(fits)} fits in {directory}")
    return file


def laws_directory(config: LawsConfig) -> UPath:
    """Return where the fit is written: `laws/<name>` under the study root, or `out`."""
    return study_path(config.out) if config.out is not None else study_path(config.root, "laws", config.name)


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
