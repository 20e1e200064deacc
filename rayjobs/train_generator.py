"""`train_generator`: train a small stand-in generator and export it as a Hugging Face checkpoint."""

from rayjobs.cli import Job, lazily, main_of
from train.config import GeneratorConfig

JOB = Job(
    name="train_generator",
    config=GeneratorConfig,
    plan=lazily("train.generator:plan_generator"),
    run=lazily("train.job:train_generator"),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
