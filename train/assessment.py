"""How good a generator is at what it was taught: measures of what it wrote about documents it never saw, and its card.

Every measure is a pure function of the rows of a synthetic set and of their sources, so it is about the real path from
prompt to verdict, served by a real engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synth.corpus import open_corpus
from synth.ledger import open_synthetic
from synth.quality.verdict import words_of
from synth.recipe import Recipe, Task
from synth.storage import read_parquet
from train.config import AssessConfig

LENGTH_RATIO = (0.5, 1.5)
"""Lengths a rewriting may have, answer over source."""

TARGETS = {
    "ends_with_stop_fraction": 0.9,
    "ask.format_valid_fraction": 0.9,
    "ask.supported_answers_fraction": 0.8,
    "rewrite.in_band_fraction": 0.7,
}
"""What is aimed at; refusals and prompt echoes are to be none."""

_LABEL = re.compile(r"^(Question|Answer):[ \t]*", re.MULTILINE)
_FUNCTION_WORDS = frozenset(
    "that this these those with from into than then them they their there what when where which while will would shall "  # noqa: SIM905
    "should could must have does been being were also only such each other more most some very used using".split()
)


@dataclass(frozen=True)
class Answered:
    """One row of the synthetic set that was asked, with its source."""

    recipe: str
    doc_id: str
    domain: str
    source: str
    text: str
    """As generated."""
    row: Mapping[str, Any]
    """Its columns, `synth.rows.REPHRASED_SCHEMA`."""


def answered_rows(config: AssessConfig, corpus: str) -> Iterator[Answered]:
    """Yield every row that an engine answered, in order: parts, then documents by id, which are hashes."""
    outputs, _ = open_synthetic(config.root, config.synthetic)
    inputs, _ = open_corpus(config.root, corpus)
    for output, origin in zip(outputs, inputs, strict=False):
        documents = read_parquet(origin, ["doc_id", "text"])
        texts = dict(zip(documents["doc_id"].to_pylist(), documents["text"].to_pylist(), strict=True))
        for row in read_parquet(output).to_pylist():
            if row["finish_reason"] is None:
                continue
            source = texts[row["doc_id"]][row["chunk_start"] : row["chunk_end"]]
            text = row["raw_text"] if row["raw_text"] is not None else row["text"]
            yield Answered(row["recipe"], row["doc_id"], row["domain"], source, text, row)


def answers_in(text: str) -> list[str]:
    """Return the answers of a text of `Question: ... Answer: ...` pairs."""
    pieces = _LABEL.split(text)
    return [body.strip() for label, body in zip(pieces[1::2], pieces[2::2], strict=True) if label == "Answer"]


def content_words(text: str) -> list[str]:
    """Return the words of a text that say something: four characters and more, no function words."""
    return [word for word in words_of(text) if len(word) > 3 and word not in _FUNCTION_WORDS]


def supported(answer: str, source: str) -> bool:
    """Return whether every content word of an answer occurs in its source, and there is one."""
    words = content_words(answer)
    return bool(words) and set(words) <= set(words_of(source))


def evaluate(rows: Sequence[Answered], recipes: Mapping[str, tuple[Recipe, Task]]) -> dict[str, Any]:
    """Return the measures of a generator's rows, by recipe and in all; a fraction of nothing is null."""
    by_recipe = {
        name: _of_recipe([each for each in rows if each.recipe == name], recipe, task)
        for name, (recipe, task) in recipes.items()
    }
    return {
        "rows": len(rows),
        "documents": len({each.doc_id for each in rows}),
        "domains": sorted({each.domain for each in rows}),
        "ends_with_stop_fraction": _fraction([each.row["finish_reason"] == "stop" for each in rows]),
        "refusals": sum(bool(each.row["is_refusal"]) for each in rows),
        "prompt_echoes": sum(
            each.row["prompt_echo"] > recipes[each.recipe][0].thresholds.max_prompt_echo for each in rows
        ),
        "recipes": by_recipe,
    }


def _of_recipe(rows: Sequence[Answered], recipe: Recipe, task: Task) -> dict[str, Any]:
    found: dict[str, Any] = {
        "task": task,
        "rows": len(rows),
        "kept_fraction": _fraction([each.row["keep"] for each in rows]),
        "ends_with_stop_fraction": _fraction([each.row["finish_reason"] == "stop" for each in rows]),
        "mean_length_ratio": _mean([each.row["length_ratio"] for each in rows]),
        "mean_source_words": _mean([each.row["source_words"] for each in rows]),
        "mean_source_overlap": _mean([each.row["source_overlap"] for each in rows]),
    }
    if task == "ask":
        answers = [(answer, each.source) for each in rows for answer in answers_in(each.text)]
        found |= {
            "format_valid_fraction": _fraction([each.row["format_items"] >= 1 for each in rows]),
            "answers": len(answers),
            "supported_answers_fraction": _fraction([supported(*each) for each in answers]),
            "content_words_in_source_fraction": _words_in_source(answers),
        }
    if task == "rewrite":
        limits = recipe.thresholds
        found["in_band_fraction"] = _fraction([
            LENGTH_RATIO[0] <= each.row["length_ratio"] <= LENGTH_RATIO[1]
            and limits.min_source_words <= each.row["source_words"]
            and each.row["source_overlap"] <= limits.max_source_overlap
            for each in rows
        ])  # fmt: skip
    return found


def reached(evaluation: Mapping[str, Any]) -> dict[str, tuple[float | None, float]]:
    """Return each target with what was reached: name -> (reached, target); of several recipes of a task the worst."""
    found: dict[str, tuple[float | None, float]] = {}
    for name, target in TARGETS.items():
        task, _, measure = name.rpartition(".")
        if not task:
            found[name] = (evaluation[measure], target)
            continue
        values = [each[measure] for each in evaluation["recipes"].values() if each["task"] == task]
        known = [value for value in values if value is not None]
        if values:
            found[name] = (min(known) if len(known) == len(values) else None, target)
    return found


def _words_in_source(answers: Sequence[tuple[str, str]]) -> float | None:
    return _fraction(
        [word in set(words_of(source)) for answer, source in answers for word in content_words(answer)]
    )


def _fraction(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
