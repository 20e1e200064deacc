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
    """Run the job; `A B` at the front stands for `--a A --b B`."""
    words = list(sys.argv[1:] if argv is None else argv)
    names = ["--a", "--b"]
    front: list[str] = []
    while words and names and not words[0].startswith("-"):
        front += [names.pop(0), words.pop(0)]
    return _main([*front, *words])


if __name__ == "__main__":
    raise SystemExit(main())
