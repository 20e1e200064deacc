"""`sweep_learning_rates`: find the best peak learning rate of each model size from short runs."""

from rayjobs.cli import Job, lazily, main_of
from train.config import RateSweepConfig

JOB = Job(
    name="sweep_learning_rates",
    config=RateSweepConfig,
    plan=lazily("train.rate_sweep:plan_sweep"),
    run=lazily("train.job:sweep_learning_rates"),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
