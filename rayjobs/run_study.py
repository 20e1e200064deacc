"""`run_study`: run every step of a study from one file; skip what is finished, resume what is not."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

from rayjobs.aside import move_aside, what_is_there
from rayjobs.cli import Flag, Job, Mistakes, main_of
from rayjobs.forecast import Forecast, StudyForecast
from rayjobs.schedule import SILENT_SECONDS, Schedule, running_beside
from rayjobs.study import Selection, Step, StudyConfig, select
from rayjobs.studyfile import write_study_file
from synth.config import JobConfig, RephraseConfig
from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from synth.model_source import STUDY_PREFIX, find_model
from synth.plan import Plan
from synth.progress import clock
from synth.storage import exists, study_path

Words = tuple[str, ...]


def plan_study(study: StudyConfig, only: Words = (), until: Words = (), force: Words = ()) -> list[Plan]:
    """Return the plan of every step, forecast where its inputs are still to be made, and the sum of what is left.

    Raises Mistakes with one sentence for every step that cannot be done.
    """
    selection = select(study, only, until, force)
    forecast = StudyForecast(study, select(study).steps)
    plans: list[Plan] = []
    mistakes = list(_at_work(study, selection.redone))
    for step in selection.steps:
        try:
            plans.append(_plan_step(step, forecast.of(step), step in selection.redone))
        except UserError as error:
            mistakes.append(f"{step.key}: {error}{_or_force(step, error)}")
    if mistakes:
        raise Mistakes(mistakes)
    left = [forecast.of(step) for step, plan in zip(selection.steps, plans, strict=True) if not plan.finished]
    if left:
        facts = {
            "steps": len(left),
            **total_of(left, _currency(study)),
            "resting on": "the file alone, see each step",
        }
        plans.append(Plan("all steps that are left", str(study_path(study.root)), False, facts))
    return plans


def _at_work(study: StudyConfig, redone: Sequence[Step]) -> Iterator[str]:
    """Yield a sentence for every step to be done again that another process is making: it would lose what it writes to."""
    there = [
        (step.key, entry)
        for entry in running_beside(study.root)
        for step in redone
        if step.key in entry["steps"]
    ]
    for key, entry in there:
        yield (
            f"{key}: --force would move it aside while process {entry['pid']} on {entry['host']} makes it, since "
            f"{entry['steps'][key]}: wait for that process or end it first (one killed on another machine is forgotten "
            f"{SILENT_SECONDS / 60:.0f} minutes after)."
        )


def total_of(forecasts: Sequence[Forecast], currency: str | None) -> dict[str, object]:
    """Return the sums over steps as facts; a sum with an unknown part says that it is the least.

    `currency` is None when no price is given: then there is no money, and it says how to get some.
    """
    labels = {
        "generated_tokens": "tokens generated",
        "trained_tokens": "tokens trained on",
        "generation_flops": "FLOP of generation",
        "training_flops": "FLOP of training",
        "generation_device_hours": "device-hours of generation",
        "training_device_hours": "device-hours of training",
        "money": f"price, {currency}",
    }
    facts: dict[str, object] = {}
    for each in fields(Forecast):
        if each.name not in labels:
            continue
        if each.name == "money" and currency is None:
            facts["price"] = "no price set: give [prices] generation_device_hour and training_device_hour"
            continue
        values = [getattr(forecast, each.name) for forecast in forecasts]
        known = math.fsum(value for value in values if value is not None)
        unknown = sum(value is None for value in values)
        amount = round(known) if "tokens" in each.name else float(f"{known:.4g}")
        label = labels[each.name]
        if not unknown and not known:
            continue
        if unknown and not known:
            facts[label] = f"unknown for {unknown} of {len(values)} steps, see there"
        else:
            facts[label + (f" at least (unknown for {unknown} steps)" if unknown else "")] = amount
    return facts


def _or_force(step: Step, error: UserError) -> str:
    if not isinstance(error, IdentityMismatch):
        return ""
    return f" Or give --force {step.key}: what is there is moved aside, and it is made again with all that is made from it."


def _currency(study: StudyConfig) -> str | None:
    """Return the currency when the study names a price anywhere."""
    prices = (study.prices.generation_device_hour, study.prices.training_device_hour)
    named = [*prices, *(step.cost.device_hour_price for step in study.rephrase.values())]
    return study.prices.currency if any(named) else None


def _plan_step(step: Step, forecast: Forecast, redone: bool) -> Plan:
    """Return a step's own plan, or what the study file alone says of it while its inputs are not there."""
    needs: dict[str, object] = {"needs": ", ".join(step.parents)} if step.parents else {}
    foreseen = Plan(step.job.name, step.config.name, False, {**needs, **forecast.facts}, forecast.warnings)
    if redone:
        there = ", ".join(str(path) for path in what_is_there(step)) or "nothing"
        return replace(
            foreseen,
            facts={"is done again": f"what is there is moved aside first: {there}", **foreseen.facts},
        )
    try:
        plan = step.plan()
    except IncompleteArtefact:
        return replace(foreseen, warnings=(*foreseen.warnings, *_model_out_of_reach(step)))
    except UserError as error:
        if not step.reads_elsewhere:
            raise
        # A study is planned on a laptop too, where a bucket or the hub may be out of reach; the run itself will ask again.
        return replace(foreseen, warnings=(*foreseen.warnings, f"not looked at from here: {error}"))
    if plan.finished:
        return plan
    warnings = (*plan.warnings, *forecast.warnings, *_more_than_there_is(step, plan, forecast))
    return replace(plan, facts={**needs, **forecast.facts, **plan.facts}, warnings=warnings)


def _more_than_there_is(step: Step, plan: Plan, forecast: Forecast) -> tuple[str, ...]:
    """Say when a corpus is assumed to have more tokens than its input has bytes: what is planned on it will not do."""
    tokens, there = forecast.facts.get("tokens, assumed"), plan.facts.get("input bytes")
    if not isinstance(tokens, int) or not isinstance(there, int) or not 0 < there < tokens:
        return ()
    return (
        f"assumptions.corpora.{step.config.name} makes {tokens:,} tokens of an input of {there:,} bytes, and a token takes three or "
        "four: what follows is planned on text that is not there",
    )


def _model_out_of_reach(step: Step) -> tuple[str, ...]:
    """Return the complaint of a hub model that is not found from here, so that a misspelt name shows before its turn.

    Raises UserError for a directory that is not there.
    """
    if not isinstance(step.config, RephraseConfig) or step.config.engine.model.startswith(STUDY_PREFIX):
        return ()
    try:
        find_model(step.config.root, step.config.engine)
    except UserError as error:
        if _ON_THE_HUB.fullmatch(step.config.engine.model):
            return (f"not looked at from here: {error}",)
        raise
    return ()


_ON_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def run_study(
    study: StudyConfig,
    *,
    connect: Callable[[str, JobConfig], None],
    only: Words = (),
    until: Words = (),
    force: Words = (),
) -> None:
    """Run the steps, each when those it needs are done, beside each other where the cluster has room for both.

    Each leaves a finished artefact, so a kill costs at most the open parts of the open steps.
    """
    selection = select(study, only, until, force)
    began = time.monotonic()
    for root in study.share_with:
        if not exists(study_path(root)):
            say(
                f"warning: share_with = {root!r}: there is nothing, so nothing is taken over; correct it if it is misspelt"
            )
    _set_aside(study, selection)
    write_study_file(study)
    Schedule(study, selection.steps, connect, say, redone=selection.redone).run()
    say(f"finished in {clock(time.monotonic() - began)}")
    for step in selection.steps:
        if step.section == "report":
            say(f"report: {study_path(study.root, step.config.name, 'index.html')}")


def _set_aside(study: StudyConfig, selection: Selection) -> None:
    for step in selection.redone:
        for old, new in move_aside(study.root, step):
            say(f"{step.title} is done again: {old} moved to {new}")


def say(text: str) -> None:
    """Print a line of the study's own."""
    print(f"[study] {text}", file=sys.stderr, flush=True)


FLAGS = (
    Flag(
        "--only",
        "run this step alone, by its place in the file (`pretrain.grid`) or its section; may be repeated",
    ),
    Flag("--until", "run this step and the steps it needs; may be repeated"),
    Flag(
        "--force",
        "do this step and what is made from it again; what is there is moved to `aside/`, never deleted",
    ),
)

JOB = Job(
    name="run_study",
    config=StudyConfig,
    plan=plan_study,
    run=run_study,
    needs_ray=False,
    connects_itself=True,
    flags=FLAGS,
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
