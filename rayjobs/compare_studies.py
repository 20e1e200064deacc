"""`compare_studies`: paired differences of two studies, or of two synthetic sources of one, with intervals."""

import sys
from collections.abc import Sequence

from rayjobs.cli import Job, lazily, main_of
from tune.config import CompareConfig

JOB = Job(
    name="compare_studies",
    config=CompareConfig,
    plan=lazily("tune.report.comparison_page:plan_comparison"),
    run=lazily("tune.report.comparison_page:write_comparison"),
    needs_ray=False,
)
_main = main_of(JOB)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; `A B` at the front stands for `--study_a A --study_b B`."""
    return _main(with_names(sys.argv[1:] if argv is None else argv))


def with_names(argv: Sequence[str]) -> list[str]:
    """Return the words with `A B` at the front written as `--study_a A --study_b B`."""
    words, names, front = list(argv), ["--study_a", "--study_b"], []
    while words and names and not words[0].startswith("-"):
        front += [names.pop(0), words.pop(0)]
    return [*front, *words]


if __name__ == "__main__":
    raise SystemExit(main())
