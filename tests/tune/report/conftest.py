"""A finished simulated study and its report, written once for all tests of this directory; none of them changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.assets.report_page import Page
from tests.assets.simulated_study import SMALL, simulate_study
from tune.config import ReportConfig
from tune.report.artefact import write_report


@pytest.fixture(scope="package")
def config(tmp_path_factory: pytest.TempPathFactory) -> ReportConfig:
    """A finished study and the configuration of its report."""
    return simulate_study(str(tmp_path_factory.mktemp("study")), SMALL, bootstrap_samples=20)


@pytest.fixture(scope="package")
def report(config: ReportConfig) -> Path:
    """The directory of the report, written."""
    write_report(config)
    return Path(config.root) / config.name


@pytest.fixture(scope="package")
def page(report: Path) -> Page:
    """The page, parsed."""
    return Page((report / "index.html").read_text(encoding="utf-8"))
