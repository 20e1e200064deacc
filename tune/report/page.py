"""From a study to the files of its report: the page, the Markdown, the figures, the CSVs. Text in, text out."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from tune.report import tables, trust
from tune.report.format import ABSENT, FORMATS, amount, percent, show, show_end
from tune.report.inputs import Study
from tune.report.sections import build_sections
from tune.report.svg import PALETTE, Drawing
from tune.report.table import Column, Table, to_csv
from tune.report.tables import SHORT_ID
from tune.results import Interval

SMALLEST_STUDIED = 100_000_000
"""Smallest model of the work this platform follows (arXiv 2510.01631), non-embedding parameters."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


def render(study: Study) -> dict[str, str]:
    """Return every file of the report, path -> text; the same study gives the same text."""
    sections = build_sections(study)
    context: dict[str, Any] = {
        "study": study,
        "config": study.config,
        "sections": sections,
        "palette": PALETTE,
        "numbers": headline_numbers(study),
        "cautions": scale_cautions(study),
        "short": SHORT_ID,
        "linked": True,
    }
    environment = environment_of_report()
    context = with_script(environment, context)
    drawings = [drawing for section in sections for drawing in section.drawings]
    csvs = csv_files(study, next(section for section in sections if section.name == "claims").tables[0])
    context |= {"csvs": list(csvs)}
    return {
        "index.html": environment.get_template("report.html.j2").render(context),
        "report.md": environment.get_template("report.md.j2").render(context),
        **csvs,
        **{f"figures/{drawing.name}.svg": drawing.file_svg for drawing in drawings},
    }


def csv_files(study: Study, claims: Table) -> dict[str, str]:
    """Return the tables as CSV with full precision, by file name."""
    fits = study.laws.file.fits
    files: dict[str, tuple[Sequence[Column], Iterable[dict[str, Any]]]] = {
        "runs.csv": (tables.RUN_COLUMNS, tables.run_rows(study)),
        "evaluations.csv": (tables.EVALUATION_COLUMNS, tables.evaluation_rows(study)),
        "fits.csv": (tables.fit_columns(fits), tables.fit_rows(fits)),
        "law_selection.csv": (trust.SELECTION_COLUMNS, trust.selection_rows(study)),
        "profiles.csv": (trust.PROFILE_COLUMNS, trust.profile_rows(study)),
        "frontier.csv": (trust.FRONTIER_COLUMNS, trust.frontier_rows(study)),
        "share_by_law.csv": (trust.SHARE_BY_LAW_COLUMNS, trust.share_by_law_rows(study)),
        "isoflop.csv": (trust.ISOFLOP_COLUMNS, trust.isoflop_rows(study)),
        "optima.csv": (tables.OPTIMUM_COLUMNS, tables.optimum_rows(study.optima)),
        "equal_loss.csv": (tables.EQUAL_LOSS_COLUMNS, tables.equal_loss_rows(study.recommendations)),
        "sensitivity.csv": (trust.SENSITIVITY_COLUMNS, trust.sensitivity_rows(study.recommendations)),
        "next_runs.csv": (trust.NEXT_COLUMNS, trust.next_rows(study.recommendations)),
        "claims.csv": (claims.columns, claims.rows),
    }
    return {name: to_csv(columns, rows) for name, (columns, rows) in files.items()}


def with_script(environment: jinja2.Environment, context: dict[str, Any]) -> dict[str, Any]:
    """Return the context with the page's script and its hash.

    Only this very script may run in the page: text of a corpus that got through as markup would stay dead.
    """
    script = environment.get_template("report.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return context | {"script": script, "script_hash": digest}


def headline_numbers(study: Study) -> dict[str, Any]:
    """Return what the study amounts to, for the line under the title."""
    complete = [record for record in study.records.values() if record.status == "complete"]
    return {
        "runs": len(complete),
        "models": len({record.num_params_non_embedding for record in complete}),
        "largest_num_params": max((record.num_params_non_embedding for record in complete), default=None),
        "longest_train_tokens": max((record.train_tokens for record in complete), default=None),
        "train_tokens": sum(record.own_tokens for record in complete),
        "fits": len(study.laws.fits),
    }


def scale_cautions(study: Study) -> tuple[str, ...]:
    """Return, in plain words, how far the study's own scale carries; the recommendations add their own warnings."""
    numbers = headline_numbers(study)
    largest, longest = numbers["largest_num_params"], numbers["longest_train_tokens"]
    if largest is None:
        return ("No run of this study has a result: nothing here is a measurement.",)
    cautions = []
    if largest < SMALLEST_STUDIED:
        cautions.append(
            f"This is a demonstration on tiny models: the largest has {amount(largest)} non-embedding parameters and the "
            f"longest run {amount(longest)} tokens. The work it follows begins at {amount(SMALLEST_STUDIED)} parameters. "
            "The numbers show that the method runs end to end; do not plan a real training run by them."
        )
    unfinished = sum(run.record is None for run in study.runs)
    if unfinished:
        cautions.append(
            f"{unfinished} of {len(study.runs)} planned runs have no record yet; the report leaves them out."
        )
    return tuple(cautions)


# --- templates -------------------------------------------------------------------------------------------------


def environment_of_report() -> jinja2.Environment:
    """Return the templates with the filters they use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tune.report", "templates"),
        autoescape=lambda name: name is not None and ".html." in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": html_value,
        "cell": html_cell,
        "short": lambda run_id: run_id[:SHORT_ID],
        "clean": clean_text,
        "show": show,
        "percent": percent,
        "amount": amount,
        "markdown": markdown_text,
        "markdown_table": markdown_table,
        "indented": lambda text: "\n".join(f"    {line}" for line in clean_text(text).splitlines()),
    }
    environment.tests |= {"interval": lambda value: isinstance(value, Interval) and has_ends(value)}
    environment.globals |= {
        "verdict_word": verdict_word,
        "caption": figure_caption,
        "markdown_file": markdown_file,
    }
    return environment


def has_ends(interval: Interval) -> bool:
    """Return whether an interval was computed."""
    return interval.low is not None or interval.high is not None


def html_value(value: Any, kind: str) -> Markup:
    """Return a number as `<data value="full precision">short text</data>`, an interval as three of them."""
    if isinstance(value, Interval):
        text = html_value(value.value, kind)
        if not has_ends(value):
            return text
        ends = [
            escape(show_end(None, kind)) if end is None else html_value(end, kind)
            for end in (value.low, value.high)
        ]
        return Markup('{} <span class="interval">[{}, {}]</span>').format(text, *ends)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and kind in FORMATS:
        return Markup('<data value="{}">{}</data>').format(repr(value), show(value, kind))
    return escape(show(value, kind))


def html_cell(row: dict[str, Any], column: Column) -> Markup:
    """Return the inside of a table cell."""
    value = row.get(column.key)
    if value is None:
        return Markup('<span class="absent">{}</span>').format(ABSENT)
    if column.kind == "run":
        return Markup('<a class="run" href="#run-{}"><code>{}</code></a>').format(value, value[:SHORT_ID])
    if column.kind == "code":
        return Markup("<code>{}</code>").format(value)
    if column.kind == "verdict":
        return Markup('<span class="verdict {}">{}</span>').format(verdict_word(value), show(value, "text"))
    return html_value(value, column.kind)


def verdict_word(value: Any) -> str:
    """Return `good`, `bad` or `open` for a status, a yes or a no."""
    words = {
        "complete": "good",
        "yes": "good",
        "supported": "good",
        "A is better": "good",
        "B is better": "good",
        "diverged": "bad",
        "failed": "bad",
        "no": "bad",
        "not supported": "bad",
    }
    return words.get(show(value, "text"), "open")


def figure_caption(drawing: Drawing) -> str:
    """Return how many runs a figure shows, in words."""
    return f"{len(drawing.run_ids)} run{'s' * (len(drawing.run_ids) != 1)}"


def clean_text(text: str) -> str:
    """Return text of unknown origin without control and direction-changing characters, which could disturb the page."""
    return _CONTROL.sub("\ufffd", text)


def markdown_text(text: Any) -> str:
    """Return text that Markdown shows as it is, on one line."""
    plain = clean_text(" ".join(str(text).split()))
    return re.sub(r"([\\`*\[\]|<])", r"\\\1", plain)


def markdown_table(table: Table) -> str:
    """Return a table in GitHub's Markdown."""
    lines = [_markdown_row(column.label for column in table.columns)]
    lines.append(_markdown_row("---:" if column.is_number else "---" for column in table.columns))
    lines += [_markdown_row(_markdown_cell(row.get(c.key), c) for c in table.columns) for row in table.rows]
    return "\n".join(lines)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(value: Any, column: Column) -> str:
    if column.kind == "run" and value is not None:
        return f"`{value[:SHORT_ID]}`"
    return markdown_text(show(value, column.kind))


def markdown_file(drawing: Drawing) -> str:
    """Return the path of a figure as report.md links it."""
    return f"figures/{drawing.name}.svg"
