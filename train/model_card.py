"""The card of a generator: what it is, what it can and cannot do, as measured, and examples nobody picked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synth.percentage import percentage


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


MEASURES = {
    "ends_with_stop_fraction": "answers that end with a stop token",
    "ask.format_valid_fraction": "question answers in the form `Question: ... Answer: ...`",
    "ask.supported_answers_fraction": "answers all of whose content words occur in their source",
    "rewrite.in_band_fraction": "rewritings 0.5 to 1.5 times as long as their source, with its words, and no copy of it",
}
"""What the targets of `train.assessment.TARGETS` are called."""

LIMITS = """\
It has learnt by heart a few frames and about a hundred changes of words, and to copy what is between them from the text it is
given. It reads the docstrings of Python packages, in English, some 240 characters at a time, behind the prompts of the recipes
it was trained on; any other prompt, and any other kind of text, it answers badly or not at all. It knows nothing: what is not
in the text it is given is not to be had from it. It can repeat itself, drop a word, mix up two names and cut a sentence short.
It is there so that a study of a few minutes on a laptop has synthetic text that is truly made from its source; for a corpus
that anybody is to learn from, take an instruct model of a billion parameters or more."""


def card_of(
    title: str,
    generator: Mapping[str, Any],
    recipe: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    reached: Mapping[str, tuple[float | None, float]],
    examples: Sequence[Answered],
) -> str:
    """Return the card as Markdown: of a generator's manifest and configuration, its measures, and rows to show."""
    return "\n".join([
        f"# {title}", "", *_facts(generator, recipe), "", "## What it can and cannot do", "", LIMITS, "",
        "## Measured", "", *_measured(evaluation, reached), "", "## Examples", "", *_examples(examples),
    ])  # fmt: skip


def _facts(generator: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    taught = recipe["exchanges"]["recipes"]
    learnt = ", ".join(f"`{name}` ({each['task']})" for name, each in taught.items())
    yield f"- Llama-style decoder, {generator['num_params_total']:,} parameters, {generator['num_params_non_embedding']:,} of them"
    yield f"  not in the embedding; byte-level BPE of {recipe['vocab_size']:,} tokens; weights in bfloat16."
    yield f"- Trained on {generator['train_tokens']:,} tokens ({generator['train_flops']:.3g} FLOP) of docstrings and the answers"
    yield "  that rules make of them; the loss counts the answers alone."
    yield f"- Recipes it answers: {learnt}."


def _measured(
    evaluation: Mapping[str, Any], reached: Mapping[str, tuple[float | None, float]]
) -> Iterator[str]:
    yield (
        f"{evaluation['rows']:,} answers to {evaluation['documents']:,} documents of packages it never read "
        f"({', '.join(evaluation['domains'])}), written through vLLM by `rephrase_corpus`, none left out."
    )
    yield ""
    yield "| measure | aim | reached |"
    yield "|---|---|---|"
    for name, (value, target) in reached.items():
        yield f"| {MEASURES[name]} | {percentage(target)} | {_percent(value)} |"
    yield f"| refusals | 0 | {evaluation['refusals']} |"
    yield f"| answers that echo the prompt | 0 | {evaluation['prompt_echoes']} |"
    yield ""
    yield "| recipe | answers | kept by its thresholds | length over source | words from the source | 5-grams from the source |"
    yield "|---|---|---|---|---|---|"
    for name, each in evaluation["recipes"].items():
        means = (each[f"mean_{measure}"] for measure in ("length_ratio", "source_words", "source_overlap"))
        shown = " | ".join("-" if mean is None else f"{mean:.2f}" for mean in means)
        yield f"| `{name}` | {each['rows']:,} | {_percent(each['kept_fraction'])} | {shown} |"


def _examples(examples: Sequence[Answered]) -> Iterator[str]:
    yield f"The first {len(examples)} answers, whatever they are; documents come in the order of a hash."
    for number, each in enumerate(examples, 1):
        verdict = ", ".join([each.row["verdict"], *each.row["reject_reasons"]])
        yield ""
        yield f"### {number}. `{each.recipe}`, {each.domain} ({verdict})"
        yield ""
        yield from (f"    {line}".rstrip() for line in each.source.splitlines())
        yield ""
        yield from (f"> {line}".rstrip() + "  " for line in each.text.splitlines() or ["(nothing)"])


def _percent(value: float | None) -> str:
    return "not measured" if value is None else percentage(value, 1)
