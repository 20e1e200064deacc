"""`study_status`: the steps of a study with their state, what they have taken, and how long the rest will take."""

import functools

from rayjobs.cli import Flag, Job, main_of
from rayjobs.status import print_status
from rayjobs.study import StudyConfig
from synth.plan import Plan
from synth.storage import study_path


def plan_status(study: StudyConfig, json: bool = False) -> Plan:
    """Return what `study_status` would do: it reads, and that is all."""
    return Plan(
        "study_status", str(study_path(study.root)), False, {"reads": "records, ledgers and manifests"}
    )


def study_status(study: StudyConfig, json: bool = False) -> None:
    """Print the status of a study. Raises Mistakes, after the table, when a step cannot be run as it stands."""
    print_status(study, json, functools.partial(print, flush=True))


JOB = Job(
    name="study_status",
    config=StudyConfig,
    plan=plan_status,
    run=study_status,
    needs_ray=False,
    flags=(Flag("--json", "print JSON for a program to read", switch=True),),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
