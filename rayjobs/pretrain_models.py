"""`pretrain_models`: pre-train every (N, D, share) of a plan, one record each."""

from rayjobs.cli import Job, Look, lazily, main_of
from train.config import PretrainConfig

JOB = Job(
    name="pretrain_models",
    config=PretrainConfig,
    plan=lazily("train.grid:plan_pretrain"),
    run=lazily("train.job:pretrain_models"),
    looks=(
        Look(
            flag="--list-sizes",
            help="list the model sizes with parameters and FLOP by every convention, start nothing",
            show=lazily("train.sizes:describe_sizes"),
            needs_config=False,
        ),
    ),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
