"""How good a generator is at what it was taught: measures of what it wrote about documents it never saw, and its card.

Every measure is a pure function of the rows of a synthetic set and of their sources, so it is about the real path from
prompt to verdict, served by a real engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upath import UPath

from synth.corpus import open_corpus
from synth.errors import UserError
from synth.identity import RECIPE_FILE, claim_directory, finish, is_finished, read_manifest
from synth.ledger import open_synthetic, synthetic_directory
from synth.model_source import GENERATOR_PREFIX, ModelSource, locate_model
from synth.plan import Plan
from synth.quality.verdict import words_of
from synth.recipe import Task, Thresholds
from synth.storage import exists, read_json, read_parquet, study_path, write_json_atomic, write_text_atomic
from train.config import AssessConfig
from train.generator import MADE_BY as TRAINED_BY
from train.model_card import Answered, card_of

KIND = "assessment"
MADE_BY = "assess_generator"
EVALUATION_FILE = "evaluation.json"
CARD = "README.md"
RELEASE = "release"

FORMAT = 1
"""Raised whenever the same rows would give other measures; part of the identity."""

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


def evaluate(rows: Sequence[Answered], recipes: Mapping[str, tuple[Task, Thresholds]]) -> dict[str, Any]:
    """Return the measures of a generator's rows, by recipe and in all; a fraction of nothing is null."""
    by_recipe = {
        name: _of_recipe([each for each in rows if each.recipe == name], task, thresholds)
        for name, (task, thresholds) in recipes.items()
    }
    return {
        "rows": len(rows),
        "documents": len({each.doc_id for each in rows}),
        "domains": sorted({each.domain for each in rows}),
        "ends_with_stop_fraction": _fraction([each.row["finish_reason"] == "stop" for each in rows]),
        "refusals": sum(bool(each.row["is_refusal"]) for each in rows),
        "prompt_echoes": sum(
            each.row["prompt_echo"] > recipes[each.recipe][1].max_prompt_echo for each in rows
        ),
        "recipes": by_recipe,
    }


def _of_recipe(rows: Sequence[Answered], task: Task, limits: Thresholds) -> dict[str, Any]:
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


# --- the artefact ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assessed:
    """What an assessment is about."""

    model: ModelSource
    """The generator's checkpoint."""
    generator: dict[str, Any]
    """Its manifest."""
    recipe: dict[str, Any]
    """Its configuration, as it is in its identity."""
    synthetic: dict[str, Any]
    """Manifest of the set it wrote."""
    corpus: str
    """Corpus the set was written from."""
    tasks: dict[str, tuple[Task, Thresholds]]
    """Recipe -> what it was taught, and what the set's verdicts went by."""


def assessment_directory(config: AssessConfig) -> UPath:
    """Return `assessments/<name>` under the study root."""
    return study_path(config.root, "assessments", config.name)


def open_assessed(config: AssessConfig) -> Assessed:
    """Find what is assessed.

    Raises IncompleteArtefact when the generator or the set is not finished, UserError when the set was written by another
    model, or with no recipe the generator learnt.
    """
    directory = study_path(config.root, "generators", config.generator)
    generator = read_manifest(directory, TRAINED_BY)
    _, synthetic = open_synthetic(config.root, config.synthetic)
    model = locate_model(config.root, GENERATOR_PREFIX + config.generator)
    if synthetic["parents"]["model"] != model.hash:
        raise UserError(
            f"synthetic/{config.synthetic} was not written by generators/{config.generator} as it is now: set its engine.model "
            f"to {model.reference!r} and make it again."
        )
    recipe = read_json(directory / RECIPE_FILE)["recipe"]
    taught = recipe.get("exchanges", {}).get("recipes", {})
    written = read_json(synthetic_directory(config.root, config.synthetic) / RECIPE_FILE)["recipe"]
    tasks: dict[str, tuple[Task, Thresholds]] = {
        name: (taught[name]["task"], Thresholds.model_validate(each["thresholds"]))
        for name, each in written["recipes"].items()
        if name in taught
    }
    if not tasks:
        raise UserError(
            f"synthetic/{config.synthetic} was written with {', '.join(written['recipes'])}, and generators/{config.generator} "
            f"learnt {', '.join(taught) or 'no recipe'}: give it a recipe that was learnt."
        )
    return Assessed(model, generator, recipe, synthetic, written["corpus"], tasks)


def _identity(config: AssessConfig, assessed: Assessed) -> tuple[dict[str, Any], dict[str, str]]:
    parents = {"generator": assessed.generator["hash"], "synthetic": assessed.synthetic["hash"]}
    return {**config.identity(), "format": FORMAT}, parents


def plan_assessment(config: AssessConfig) -> Plan:
    """Return what assessing would do; nothing is written. Raises as `open_assessed` does, and IdentityMismatch."""
    directory = assessment_directory(config)
    assessed = open_assessed(config)
    if exists(directory / RECIPE_FILE):
        claim_directory(directory, KIND, *_identity(config, assessed))
    facts: dict[str, object] = {"rows": assessed.synthetic["rows"], "recipes": ", ".join(assessed.tasks)}
    return Plan(MADE_BY, str(directory), is_finished(directory), facts)


def assess_generator(config: AssessConfig) -> dict[str, Any]:
    """Measure, write the card and the release, return the manifest. Raises as `plan_assessment` does."""
    from train.release import write_release  # torch, only where weights are

    assessed = open_assessed(config)
    directory = assessment_directory(config)
    identity = claim_directory(directory, KIND, *_identity(config, assessed))
    if is_finished(directory):
        return read_manifest(directory, MADE_BY)
    rows = [each for each in answered_rows(config, assessed.corpus) if each.recipe in assessed.tasks]
    evaluation = evaluate(rows, assessed.tasks)
    write_json_atomic(directory / EVALUATION_FILE, evaluation)
    card = card_of(
        config.title,
        assessed.generator,
        assessed.recipe,
        evaluation,
        reached(evaluation),
        rows[: config.examples],
    )
    write_text_atomic(directory / CARD, card)
    release = write_release(
        assessed.model,
        directory / RELEASE,
        card,
        num_params_total=assessed.generator["num_params_total"],
        max_shard_megabytes=config.max_shard_megabytes,
    )
    return finish(directory, identity, evaluation=evaluation, release=release)
