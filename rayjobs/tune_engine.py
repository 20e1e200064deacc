"""`tune_engine`: find the engine settings under which `rephrase_corpus` makes most accepted tokens per second."""

from rayjobs.cli import Job, lazily, main_of
from synth.engines.search import TuneEngineConfig

JOB = Job(
    name="tune_engine",
    config=TuneEngineConfig,
    plan=lazily("synth.engines.tuning:plan_tuning"),
    run=lazily("synth.engines.job:tune_engine"),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
