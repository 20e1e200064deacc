"""`search_mixture`: search the best synthetic share for each (N, D) cell."""

from rayjobs.cli import Job, lazily, main_of
from tune.config import SearchConfig

JOB = Job(
    name="search_mixture",
    config=SearchConfig,
    plan=lazily("tune.search_plan:plan_search"),
    run=lazily("tune.job:search_mixture"),
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
