"""`rephrase_corpus`: send every chunk of a corpus through an instruct model, part by part, into Parquet."""

from rayjobs.cli import Job, lazily, main_of
from synth.config import RephraseConfig

JOB = Job(
    name="rephrase_corpus",
    config=RephraseConfig,
    plan=lazily("synth.rephrase:plan_rephrase"),
    run=lazily("synth.job:rephrase_corpus"),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
