"""`write_report`: write the self-contained HTML report, its Markdown twin and the CSVs."""

from rayjobs.cli import Job, lazily, main_of
from tune.config import ReportConfig

JOB = Job(
    name="write_report",
    config=ReportConfig,
    plan=lazily("tune.report.artefact:plan_report"),
    run=lazily("tune.report.artefact:write_report"),
    needs_ray=False,
)
main = main_of(JOB)

if __name__ == "__main__":
    raise SystemExit(main())
