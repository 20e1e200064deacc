"""`evaluate_models`: score the kept models of a plan with lm-evaluation-harness."""

from rayjobs.cli import Job, lazily, main_of
from train.config import EvaluateConfig

JOB = Job(
    name="evaluate_models",
    config=EvaluateConfig,
    plan=lazily("train.harness:plan_evaluation"),
    run=lazily("train.job:evaluate_models"),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
