"""`write_report` on a study simulated from a known law: the page is whole, stands alone, and comes out the same again."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from synth.errors import UserError
from tests.assets.report_page import Page
from tests.assets.simulated_study import NASTY
from tune.config import ReportConfig
from tune.report.artefact import plan_report, write_report

# --- the page stands alone ---------------------------------------------------------------------------------------


def test_page_asks_for_nothing_outside_itself(report: Path, page: Page) -> None:
    loading = {"src", "srcset", "poster", "data", "action", "formaction", "background"}
    asked = [(tag, name, value) for tag, name, value in page.attributes if name in loading]
    links = [
        value
        for _, name, value in page.attributes
        if name in ("href", "xlink:href") and not value.startswith("#")
    ]
    style = re.search(r"<style>(.*?)</style>", (report / "index.html").read_text(encoding="utf-8"), re.DOTALL)
    assert asked == []
    assert links == ["data:,"]  # the empty icon, so that browsers do not ask for one
    assert style is not None
    assert "@import" not in style.group(1)
    assert "url(" not in style.group(1)
    assert not [
        value for _, name, value in page.attributes if name != "value" and re.search(r"https?://", value)
    ]
    assert not [
        tag
        for tag, name, _ in page.attributes
        if tag in ("iframe", "object", "embed") or name.startswith("on")
    ]


def test_the_one_script_is_the_one_the_page_allows_itself(report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'" in text
    )
    assert not re.search(r"fetch|XMLHttpRequest|import|https?:|innerHTML|eval", script)


def test_every_series_can_be_hidden_by_a_button_that_is_there(report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r'<figure id="figure-([^"]+)">(.*?)</figure>', text, re.DOTALL)
    togglable = {name: body for name, body in figures if 'class="key"' in body}
    assert any(name.startswith("law-d") for name in togglable)
    for name, body in togglable.items():
        keys = set(re.findall(r'data-key="(\d+)"', body))
        parts = set(re.findall(r'data-series="(\d+)"', body))
        assert keys == parts, name


def test_identifiers_are_unique_and_every_reference_leads_somewhere(page: Page) -> None:
    twice = [name for name, count in Counter(page.identifiers).items() if count > 1]
    there = set(page.identifiers)
    targets = [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    targets += [found for _, _, value in page.attributes for found in re.findall(r"url\(#([^)]+)\)", value)]
    targets += [value for _, name, value in page.attributes if name == "aria-labelledby"]
    assert twice == []
    assert [target for target in targets if target not in there] == []
    assert len(targets) > 100


def test_sections_come_in_reading_order(page: Page) -> None:
    wanted = ["answer", "what-if", "loss-by-share", "data-law", "model-law", "fits", "trust", "best-share", "equal-loss", "claims", "domains", "words",
              "training",
              "corpora", "synthetic", "packed", "cost", "failures", "runs", "provenance"]  # fmt: skip
    assert [name for name in page.identifiers if name in wanted] == wanted


def test_every_figure_is_described_and_names_its_runs(report: Path, page: Page) -> None:
    described = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    figures = sorted(path.stem for path in (report / "figures").iterdir())
    assert (
        len(described)
        == len(figures)
        == len([tag for tag, name, _ in page.attributes if (tag, name) == ("svg", "viewbox")])
    )
    assert all(len(text) > 40 for text in described)
    for stem in figures:
        svg = (report / "figures" / f"{stem}.svg").read_text(encoding="utf-8")
        assert re.search(r"<title>[^<]*\b([0-9a-f]{16}|search-\w+|\d+ %)", svg), stem


def test_foreign_text_is_shown_and_not_obeyed(report: Path, page: Page) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    assert NASTY.rstrip("\u202e") in page.text["synthetic"]
    assert text.count("<script") == 1
    assert "<out of memory>" in page.text["failures"]
    assert "\u202e" not in text
    assert "\u202e" not in (report / "report.md").read_text(encoding="utf-8")


# --- written again -----------------------------------------------------------------------------------------------


def test_same_study_gives_the_same_bytes(config: ReportConfig, report: Path) -> None:
    again = config.model_copy(update={"name": "again"})
    write_report(again)
    for path in sorted(report.rglob("*")):
        if path.is_file() and path.name not in ("manifest.json", "recipe.json"):
            assert (
                path.read_bytes() == (Path(config.root) / "again" / path.relative_to(report)).read_bytes()
            ), path.name


def test_finished_report_is_left_alone_until_something_changes(config: ReportConfig, report: Path) -> None:
    assert plan_report(config).finished
    before = (report / "index.html").stat().st_mtime_ns
    write_report(config)
    assert (report / "index.html").stat().st_mtime_ns == before
    assert not plan_report(config.model_copy(update={"title": "Another title"})).finished


# --- what is missing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "job"),
    [
        ({"plan": "nowhere"}, "pretrain_models"),
        ({"laws": "nowhere"}, "fit_laws"),
        ({"searches": ("nowhere",)}, "search_mixture"),
        ({"recommendations": ("nowhere",)}, "recommend_mixture"),
        ({"synthetic": ("nowhere",)}, "rephrase_corpus"),
        ({"corpora": ("nowhere",)}, "build_corpus"),
    ],
)
def test_something_named_and_missing_is_one_sentence(
    config: ReportConfig, changed: dict[str, Any], job: str
) -> None:
    with pytest.raises(UserError, match=rf"nowhere.*run {job} first"):
        plan_report(config.model_copy(update=changed))


def test_a_directory_that_is_no_report_is_left_alone(config: ReportConfig) -> None:
    with pytest.raises(UserError, match="no report"):
        write_report(config.model_copy(update={"name": "corpora"}))


def test_sections_without_input_say_which_job_makes_it(config: ReportConfig) -> None:
    bare = ReportConfig(root=config.root, name="bare")
    write_report(bare)
    page = Page((Path(config.root) / "bare" / "index.html").read_text(encoding="utf-8"))
    for section, job in (("answer", "recommend_mixture"), ("best-share", "search_mixture"), ("corpora", "build_corpus"), ("synthetic", "rephrase_corpus")):  # fmt: skip
        assert f"run {job}" in page.text[section]
        assert section not in page.numbers or section == "answer"
