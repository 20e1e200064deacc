"""`fit_laws`: fit scaling laws to a plan's records or to any table of runs."""

from rayjobs.cli import Job, lazily, main_of
from tune.config import LawsConfig

JOB = Job(
    name="fit_laws",
    config=LawsConfig,
    plan=lazily("tune.fitting:plan_laws"),
    run=lazily("tune.fitting:fit_laws"),
    needs_ray=False,
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
