"""`recommend_mixture`: say what share to use for a target (N, D), and what it costs."""

from rayjobs.cli import Job, lazily, main_of
from tune.config import RecommendConfig

JOB = Job(
    name="recommend_mixture",
    config=RecommendConfig,
    plan=lazily("tune.recommendation:plan_recommend"),
    run=lazily("tune.recommendation:recommend_mixture"),
    needs_ray=False,
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
