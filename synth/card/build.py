"""Looking through a finished synthetic set and writing what was found: card, statistics, near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upath import UPath

from synth.card.examples import draw_examples
from synth.card.page import Card, render_card
from synth.card.statistics import measure_statistics
from synth.card.survey import survey_set
from synth.config import RephraseConfig
from synth.ledger import LedgerEntry
from synth.quality.near_duplicates import find_near_duplicates
from synth.recipe import Recipe
from synth.storage import write_json_atomic, write_text_atomic

STATISTICS_FILE = "statistics.json"


def write_card(
    directory: UPath, config: RephraseConfig, *, recipes: Sequence[Recipe], parts: Sequence[UPath], sources: Sequence[UPath],
    held_out: Sequence[UPath], entries: Sequence[LedgerEntry], summary: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Check the accounts of every part, write card and statistics; return what the manifest adds to the summary.

    `sources[k]` is the corpus part that `parts[k]` was made from. A function of the files alone: at a second attempt it
    writes the same bytes. Raises UserError when a part is damaged or differs from its ledger entry.
    """
    survey = survey_set(parts, entries)
    duplicates = find_near_duplicates(directory, parts)
    statistics = measure_statistics(survey, sources, held_out, config.card)
    kept, rejected = draw_examples(survey, sources)
    card = Card(
        config.name, config.engine.model, tuple(recipes), summary, duplicates, survey, statistics, kept, rejected, config.cost
    )  # fmt: skip
    write_json_atomic(directory / STATISTICS_FILE, statistics)
    for name, text in render_card(card).items():
        write_text_atomic(directory / name, text)
    return {
        **duplicates,
        "held_out_rows": survey.held_out_rows,
        "languages": dict(sorted(survey.languages.items())),
    }
