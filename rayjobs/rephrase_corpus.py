"""`rephrase_corpus`: send every chunk of a corpus through an instruct model, part by part, into Parquet."""

from rayjobs.cli import Job, Look, lazily, main_of
from synth.config import RephraseConfig

JOB = Job(
    name="rephrase_corpus",
    config=RephraseConfig,
    plan=lazily("synth.estimate:plan_rephrase"),
    run=lazily("synth.job:rephrase_corpus"),
    looks=(
        Look(
            "--list-recipes",
            "print the shipped recipes with their budgets and sources, start nothing",
            lazily("synth.preview:list_recipes"),
            needs_config=False,
        ),
        Look(
            "--preview",
            "print the prompts of the first N documents and token counts of a sample, start nothing",
            lazily("synth.preview:preview_prompts"),
        ),
    ),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
