"""`write_report`: a self-contained page, its Markdown twin, figures and CSVs, from what the other steps left behind.

The report is a view: it holds nothing that is not in the records it shows, so writing it again replaces it. The same
inputs give the same bytes; only `manifest.json`, which says when and by what it was written, differs.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

from upath import UPath

from synth.errors import UserError
from synth.identity import RECIPE_FILE, claim_directory, finish
from synth.plan import Plan
from synth.progress import Progress
from synth.storage import MARKER, list_names, read_json, study_path, write_text_atomic
from tune.config import ReportConfig
from tune.report.claims import study_roles
from tune.report.inputs import Study, read_study

KIND = "report"
MADE_BY = "write_report"
PAGE = "index.html"
FIGURES = "figures"


def plan_report(config: ReportConfig) -> Plan:
    """Return what `write_report` would do. Raises UserError, naming the job to run, when something named is missing."""
    study = read_study(config)
    study_roles(study)
    directory = _directory(config)
    warnings = [
        f"{run.run_id} of plan {config.plan} has no record yet" for run in study.runs if run.record is None
    ]
    facts: dict[str, object] = {
        "runs": len(study.records),
        "fits": len(study.laws.fits),
        "searched cells": len(study.optima),
        "recommendations": len(study.recommendations),
    }
    return Plan(MADE_BY, str(directory), _is_current(directory, study), facts, tuple(warnings))


def write_report(config: ReportConfig) -> dict[str, Any]:
    """Write `<name>/{index.html, report.md, *.csv, figures/*.svg}` under the root; return the manifest.

    Does nothing but read when the report there is the one that would be written. Raises UserError, naming the job to
    run, when something the configuration names is missing, or when the directory holds something else.
    """
    progress = Progress(MADE_BY, 3, "stages")
    study = read_study(config)
    directory = _directory(config)
    if _is_current(directory, study):
        manifest: dict[str, Any] = read_json(directory / MARKER)
        return manifest
    progress.advance(note=f"{len(study.records)} runs read")
    from tune.report.page import render  # draws: keeps matplotlib and jinja2 out of --help and --dry-run

    contents = render(study)
    progress.advance(note=f"{len(contents)} files drawn")
    manifest = _replace(directory, study, contents)
    progress.advance(note=str(directory / PAGE))
    return manifest


def _directory(config: ReportConfig) -> UPath:
    """Return the report's directory. Raises UserError when something that is no report is in it."""
    directory = study_path(config.root, config.name)
    names = list_names(directory)
    recipe = read_json(directory / RECIPE_FILE) if RECIPE_FILE in names else {}
    if names and PAGE not in names and recipe.get("kind") != KIND:
        raise UserError(
            f"name = {config.name!r}: {directory} holds something that is no report; give the report another name."
        )
    return directory


def _identity(study: Study) -> tuple[dict[str, Any], dict[str, str]]:
    return {**study.config.identity(), "renderer": _renderer_hash()}, study.inputs


def _renderer_hash() -> str:
    """Return the hash of the code and templates that draw reports: with other ones, a report is drawn again."""
    package = files("tune.report")
    sources = [entry for entry in package.iterdir() if entry.name.endswith(".py")]
    sources += [entry for entry in (package / "templates").iterdir() if entry.name.endswith(".j2")]
    digest = hashlib.sha256()
    for entry in sorted(sources, key=lambda entry: entry.name):
        digest.update(entry.read_bytes())
    return digest.hexdigest()[:16]


def _is_current(directory: UPath, study: Study) -> bool:
    try:
        found = read_json(directory / MARKER)
    except FileNotFoundError:
        return False
    recipe, inputs = _identity(study)
    return bool(found["recipe"] == recipe and found["parents"] == inputs)


def _replace(directory: UPath, study: Study, contents: dict[str, str]) -> dict[str, Any]:
    """Put a new report in the place of an old one: unfinished first, finished last, nothing left over between."""
    for name in (
        MARKER,
        RECIPE_FILE,
    ):  # a kill right here leaves the old page, by which the directory is known
        (directory / name).unlink(missing_ok=True)
    identity = claim_directory(directory, KIND, *_identity(study))
    for name, text in contents.items():
        write_text_atomic(directory.joinpath(*name.split("/")), text)
    for name in list_names(directory / FIGURES, ".svg"):
        if f"{FIGURES}/{name}" not in contents:
            (directory / FIGURES / name).unlink()
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(contents.items())}
    return finish(directory, identity, files=hashes)
