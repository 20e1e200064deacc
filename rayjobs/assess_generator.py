"""`assess_generator`: measure a generator on what it wrote about documents it never saw; write its card and its release."""

from rayjobs.cli import Job, lazily, main_of
from train.config import AssessConfig

JOB = Job(
    name="assess_generator",
    config=AssessConfig,
    plan=lazily("train.assessment:plan_assessment"),
    run=lazily("train.assessment:assess_generator"),
    needs_ray=False,
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
