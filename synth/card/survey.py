"""What is in a finished synthetic set, read from its files: the accounts checked, histograms, a sample of its texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from upath import UPath

from synth.errors import UserError, first_line
from synth.ledger import LedgerEntry
from synth.rows import KEPT, QUARANTINED, REJECTED
from synth.storage import in_order, read_parquet

_FRACTIONS = tuple(number / 10 for number in range(11))
_OPEN = float("inf")
_TOKENS = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, _OPEN)
EDGES: dict[str, tuple[float, ...]] = {
    "prompt_tokens": _TOKENS,
    "completion_tokens": _TOKENS,
    "length_ratio": (0, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, _OPEN),
    "source_overlap": _FRACTIONS,
    "source_words": _FRACTIONS,
    "repetition": _FRACTIONS,
    "prompt_echo": _FRACTIONS,
    "held_out_overlap": _FRACTIONS,
}
"""Column -> edges of its bins, lower ones included; the last bin takes its upper edge too."""

SAMPLED_PARTS = 64
SAMPLED_ROWS = 2000
"""Texts are read from at most so many parts, evenly spaced, and of these the rows of the lowest seeds, by recipe. Parts
and seeds go by hashes, so this is a random sample, and the same one every time."""

_SAMPLE_COLUMNS = ["doc_id", "domain", "recipe", "chunk_start", "chunk_end", "text", "verdict", "reject_reasons", "seed"]  # fmt: skip

Counts = NDArray[np.int64]
"""[2, bins]: rows that were kept, rows that were not."""


@dataclass
class Survey:
    """A synthetic set looked through."""

    histograms: dict[str, dict[str, Counts]] = field(default_factory=dict)
    """Recipe -> column -> counts in the bins of EDGES; rows without an answer have none of these."""
    held_out_rows: dict[str, int] = field(default_factory=dict)
    """Recipe -> rows with any 13-gram of the held-out split."""
    languages: dict[str, int] = field(default_factory=dict)
    """ISO 639-1 code of the answers -> rows, where one was told."""
    sample: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Recipe -> rows with their texts and the number of their part, by seed."""
    sampled_parts: tuple[int, ...] = ()


def survey_set(parts: Sequence[UPath], entries: Iterable[LedgerEntry]) -> Survey:
    """Return what is in a set. Raises UserError when a file is damaged or does not hold what its ledger entry says."""
    survey = Survey(sampled_parts=spaced(len(parts), SAMPLED_PARTS))
    columns = ["recipe", "verdict", "held_out_overlap", "language", *EDGES]
    tables = in_order(lambda part: _read(part, list(dict.fromkeys(columns))), parts)
    for part, table, entry in zip(parts, tables, entries, strict=True):
        check_accounts(part, table, entry)
        _count(survey, table)
    for number in survey.sampled_parts:
        _take_texts(survey, number, _read(parts[number], _SAMPLE_COLUMNS))
    return survey


def spaced(count: int, most: int) -> tuple[int, ...]:
    """Return up to `most` numbers below `count`, evenly spaced."""
    return tuple(dict.fromkeys(at * count // min(count, most) for at in range(min(count, most))))


def check_accounts(path: UPath, table: pa.Table, entry: LedgerEntry) -> None:
    """Compare a part with its ledger entry: rows by verdict and tokens, by recipe.

    Raises UserError when they differ: one of the two is not what was written.
    """
    for recipe, tally in entry.recipes.items():
        rows = table.filter(pc.field("recipe") == recipe)
        verdicts = rows["verdict"].to_pylist()
        written = {
            "rows": len(rows),
            "kept": verdicts.count(KEPT),
            "rejected": verdicts.count(REJECTED),
            "quarantined": verdicts.count(QUARANTINED),
            "prompt_tokens": pc.sum(rows["prompt_tokens"]).as_py() or 0,
            "completion_tokens": pc.sum(rows["completion_tokens"]).as_py() or 0,
        }
        for name, value in written.items():
            if value != getattr(tally, name):
                raise UserError(
                    f"{path} holds {value:,} {name} of recipe {recipe}, its ledger entry says {getattr(tally, name):,}: "
                    "delete both and run rephrase_corpus again."
                )
    if len(table) != entry.total.rows:
        raise UserError(
            f"{path} holds {len(table):,} rows, its ledger entry says {entry.total.rows:,}: delete both and run "
            "rephrase_corpus again."
        )


def _read(path: UPath, columns: list[str]) -> pa.Table:
    try:
        return read_parquet(path, columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}): delete it and its ledger entry and run rephrase_corpus again."
        ) from None


def _count(survey: Survey, table: pa.Table) -> None:
    for recipe in pc.unique(table["recipe"]).to_pylist():
        rows = table.filter((pc.field("recipe") == recipe) & pc.field("length_ratio").is_valid())
        kept = pc.equal(rows["verdict"], KEPT).to_numpy(zero_copy_only=False).astype(bool)
        mine = survey.histograms.setdefault(recipe, {})
        for column, edges in EDGES.items():
            valid = rows[column].is_valid().to_numpy(zero_copy_only=False).astype(bool)
            values = rows[column].to_numpy(zero_copy_only=False).astype(np.float64)
            bins = np.clip(np.searchsorted(edges, values[valid], side="right") - 1, 0, len(edges) - 2)
            counts = mine.setdefault(column, np.zeros((2, len(edges) - 1), np.int64))
            for row, chosen in enumerate((kept[valid], ~kept[valid])):
                counts[row] += np.bincount(bins[chosen], minlength=len(edges) - 1)
        overlap = pc.sum(pc.greater(rows["held_out_overlap"], 0.0)).as_py() or 0
        survey.held_out_rows[recipe] = survey.held_out_rows.get(recipe, 0) + overlap
    for row in table["language"].drop_null().value_counts().to_pylist():
        survey.languages[row["values"]] = survey.languages.get(row["values"], 0) + row["counts"]


def _take_texts(survey: Survey, part: int, table: pa.Table) -> None:
    for recipe in pc.unique(table["recipe"]).to_pylist():
        rows = table.filter(pc.field("recipe") == recipe).sort_by("seed").slice(0, SAMPLED_ROWS).to_pylist()
        mine = survey.sample.setdefault(recipe, [])
        mine.extend(row | {"part": part} for row in rows)
        mine.sort(key=lambda row: row["seed"])
        del mine[SAMPLED_ROWS:]
