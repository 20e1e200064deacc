"""Examples nobody picked: of each recipe the kept rows with the lowest seeds, and the first row of each reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upath import UPath

from synth.card.survey import Survey
from synth.rows import KEPT
from synth.storage import read_parquet

KEPT_EXAMPLES = 2
REJECTED_EXAMPLES = 8
EXAMPLE_CHARACTERS = 700
"""Longer texts are cut here, with a sign."""


@dataclass(frozen=True)
class Example:
    """One row with the text it was made from."""

    recipe: str
    doc_id: str
    domain: str
    verdict: str
    """`kept`, or the verdict and its reasons."""
    source_text: str
    text: str


def draw_examples(survey: Survey, sources: Sequence[UPath]) -> tuple[list[Example], list[Example]]:
    """Return kept and rejected examples; `sources[k]` is the part that part k was made from."""
    kept = [
        row
        for rows in survey.sample.values()
        for row in [r for r in rows if r["verdict"] == KEPT][:KEPT_EXAMPLES]
    ]
    rejected: list[dict[str, Any]] = []
    reasons: set[str] = set()
    everything = (row for rows in survey.sample.values() for row in rows)
    for row in sorted(everything, key=lambda row: row["seed"]):
        if row["verdict"] != KEPT and not set(row["reject_reasons"]) <= reasons:
            reasons.update(row["reject_reasons"])
            rejected.append(row)
    chosen = [*kept, *rejected[:REJECTED_EXAMPLES]]
    texts = _source_texts(chosen, sources)
    examples = [_example(row, texts[row["doc_id"]]) for row in chosen]
    return examples[: len(kept)], examples[len(kept) :]


def _source_texts(rows: Sequence[dict[str, Any]], sources: Sequence[UPath]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for part in sorted({row["part"] for row in rows}):
        table = read_parquet(sources[part], ["doc_id", "text"])
        wanted = {row["doc_id"] for row in rows if row["part"] == part}
        pairs = zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True)
        texts.update((doc_id, text) for doc_id, text in pairs if doc_id in wanted)
    return texts


def _example(row: dict[str, Any], document: str) -> Example:
    reasons = ", ".join(row["reject_reasons"])
    return Example(
        recipe=row["recipe"],
        doc_id=row["doc_id"],
        domain=row["domain"],
        verdict=f"{row['verdict']}: {reasons}" if reasons else row["verdict"],
        source_text=_shortened(document[row["chunk_start"] : row["chunk_end"]]),
        text=_shortened(row["text"]),
    )


def _shortened(text: str) -> str:
    if len(text) <= EXAMPLE_CHARACTERS:
        return text
    return f"{text[:EXAMPLE_CHARACTERS]} [... {len(text) - EXAMPLE_CHARACTERS:,} more characters]"
