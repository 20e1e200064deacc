"""The data card of a synthetic set: what is in it and what it cost, for the person who is to train on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upath import UPath

from synth.recipe import Recipe
from synth.storage import read_parquet, write_text_atomic

CARD_FILE = "card.md"
NUM_EXAMPLES = 5
EXAMPLE_CHARACTERS = 600
"""Longer texts are cut here, with a sign."""

COUNTS = ("rows", "kept", "rejected", "quarantined", "prompt_tokens", "completion_tokens", "accepted_tokens",
          "input_truncated_tokens")  # fmt: skip


def write_card(
    directory: UPath, *, name: str, recipes: Sequence[Recipe], model: str, summary: Mapping[str, Any],
    examples: Sequence[Mapping[str, str]],
) -> None:  # fmt: skip
    """Write `card.md` into the directory of a synthetic set."""
    lines = [
        f"# {name}", "",
        f"Synthetic text made by `{model}` ({', '.join(summary['engine_versions'])}; prompt format: "
        f"{', '.join(summary['prompt_formats'])}) from {summary['documents']:,} documents.", "",
        "| recipe | " + " | ".join(column.replace("_", " ") for column in COUNTS) + " |",
        "|---|" + "---:|" * len(COUNTS),
        *(_count_row(recipe, tally) for recipe, tally in summary["recipes"].items()),
        _count_row("**all**", summary), "",
        "Every row is in the files, with its verdict; `keep` marks those to train on.", "",
        "## Why rows were not kept", "",
        *_reasons(summary), "",
        "## What it took", "",
        *_cost(summary), "",
        "## Recipes", "",
        *(f"- **{recipe.name}** ({recipe.hash}): {recipe.description} {recipe.idea}" for recipe in recipes), "",
        f"## {len(examples)} examples, not picked", "",
        "The first kept rows of the first parts.", "",
    ]  # fmt: skip
    for example in examples:
        lines += [f"### {example['recipe']} of {example['doc_id']} ({example['domain']})", ""]
        lines += [
            "Source:",
            "",
            *_quoted(example["source_text"]),
            "",
            "Text:",
            "",
            *_quoted(example["text"]),
            "",
        ]
    write_text_atomic(directory / CARD_FILE, "\n".join(lines).rstrip() + "\n")


def draw_examples(parts: Sequence[UPath], sources: Sequence[UPath]) -> list[dict[str, str]]:
    """Return the first kept row of each recipe of each part in turn, up to NUM_EXAMPLES, with its source text."""
    examples: list[dict[str, str]] = []
    columns = ["doc_id", "domain", "recipe", "chunk_start", "chunk_end", "text", "keep"]
    for part, source in zip(parts, sources, strict=True):
        seen: set[str] = set()
        documents: dict[str, str] | None = None
        for row in read_parquet(part, columns).to_pylist():
            if not row["keep"] or row["recipe"] in seen:
                continue
            if documents is None:
                table = read_parquet(source, ["doc_id", "text"])
                documents = dict(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))
            seen.add(row["recipe"])
            text = documents[row["doc_id"]][row["chunk_start"] : row["chunk_end"]]
            examples.append(
                {key: row[key] for key in ("doc_id", "domain", "recipe", "text")} | {"source_text": text}
            )
            if len(examples) == NUM_EXAMPLES:
                return examples
    return examples


def _count_row(label: str, tally: Mapping[str, Any]) -> str:
    return f"| {label} | " + " | ".join(f"{tally[column]:,}" for column in COUNTS) + " |"


def _reasons(summary: Mapping[str, Any]) -> list[str]:
    if not summary["reasons"]:
        return ["All rows were kept."]
    lines = [
        "A row with several reasons counts under each.",
        "",
        "| reason | rows | of all |",
        "|---|---:|---:|",
    ]
    ranked = sorted(summary["reasons"].items(), key=lambda item: (-item[1], item[0]))
    return lines + [f"| {reason} | {count:,} | {count / summary['rows']:.1%} |" for reason, count in ranked]


def _cost(summary: Mapping[str, Any]) -> list[str]:
    rate, hours = (
        summary["accepted_tokens_per_device_second"],
        summary["device_hours_per_billion_accepted_tokens"],
    )
    lines = [
        f"- device time at work: {summary['device_seconds'] / 3600:,.3f} hours; engine starts beside it: "
        f"{summary['engine_start_seconds'] / 3600:,.3f} hours",
        f"- engine deaths survived: {summary['engine_deaths']}; requests tried again: {summary['retries']}",
        f"- prompt tokens not computed again: {summary['cached_prompt_tokens']:,}",
    ]
    if rate is not None:
        lines.insert(
            0,
            f"- accepted tokens per device-second: {rate:,.1f}; device-hours per billion accepted tokens: {hours:,.1f}",
        )
    return lines


def _quoted(text: str) -> list[str]:
    """Return a text as a Markdown code block that nothing in the text can end."""
    cut = text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS] + " [...]"
    fence = "~" * (max((len(line) - len(line.lstrip("~")) for line in cut.splitlines()), default=0) + 3)
    return [fence + "text", cut, fence]
