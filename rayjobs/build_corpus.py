"""`build_corpus`: read documents from anywhere, drop duplicates, hold some out, write Parquet."""

from rayjobs.cli import Job, lazily, main_of
from synth.config import CorpusConfig

JOB = Job(
    name="build_corpus",
    config=CorpusConfig,
    plan=lazily("synth.corpus:plan_corpus"),
    run=lazily("synth.job:build_corpus"),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
