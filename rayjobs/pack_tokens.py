"""`pack_tokens`: tokenise corpora and synthetic sets into memory-mapped rows."""

from rayjobs.cli import Job, lazily, main_of
from train.config import PackConfig

JOB = Job(
    name="pack_tokens",
    config=PackConfig,
    plan=lazily("train.packing:plan_pack"),
    run=lazily("train.job:pack_tokens"),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
