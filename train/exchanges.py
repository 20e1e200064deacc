"""What a generator of one's own learns from: exchanges of a prompt and its answer, a corpus of their own.

An exchange is one training document, in plain text: the prompt, a line that says an answer follows, the answer. The
packed stream puts an end-of-text token before each document, so the model learns to end its answer with that token,
and the chat template writes prompts the same way: end-of-text, prompt, that line. No token is special besides, so a
document that spells out the template is text like any other.

There are two kinds. With `recipes` in the configuration a generator learns to answer the prompts of these, by the answers of
`synth.pairs`; the loss then counts answers alone. Without, it learns to continue: neighbouring pieces of documents, the
second in answer to the first.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import pyarrow as pa
from upath import UPath

from synth.chunking import chunk_spans, count_characters
from synth.corpus import Split, corpus_directory, open_corpus
from synth.documents import DOCUMENT_SCHEMA, document_id
from synth.engines.fake import CharacterTokenizer
from synth.identity import claim_directory, finish, is_finished
from synth.ledger import open_synthetic
from synth.pairs import Pair, TaughtRecipe, check_taught, pairs_of
from synth.parts import part_name
from synth.prompt import PromptTemplate
from synth.recipe import load_recipes
from synth.storage import exists, read_parquet, write_parquet_atomic
from train.config import GeneratorConfig, PackConfig, PackSource
from train.sources import PROMPT_CHARACTERS, open_sources

SOURCE = "exchanges"
SYNTHETIC_SOURCE = "synthetic-exchanges"
"""The same of a synthetic set, in a generator of a later round."""

FORMAT = 2
"""Raised whenever the same configuration would give other exchanges; part of the identity."""

PAIRS_FORMAT = 1
"""Raised whenever the rules of `synth.pairs` would give other answers; part of the identity of what learns from them."""

ANSWER_LINE = "### Answer"
"""The line between prompt and answer."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] | trim }}\n\n{% endfor %}"
    + ANSWER_LINE
    + "{{ '\\n' }}"  # a line break that ends a template itself is dropped
)
"""Prompts of any roles, in order, as the exchanges have them."""

CHARACTERS_PER_TOKEN = 3
"""Rough length of a token of a small vocabulary; decides only how long exchanges are, characters."""

EXCHANGE_SCHEMA = DOCUMENT_SCHEMA.append(pa.field(PROMPT_CHARACTERS, pa.int32(), nullable=False))
"""Columns of exchanges that a recipe's prompt begins; the loss does not count the prompt."""


def exchanges_of(text: str, sequence_length: int) -> list[str]:
    """Return the exchanges a document gives: neighbouring pieces of it, the second in answer to the first.

    Two pieces together fill about `sequence_length` tokens. A text of a single word gives none.
    """
    longest = min(
        sequence_length * CHARACTERS_PER_TOKEN // 2, math.ceil(len(text) * 2 / 3)
    )  # so that there are two
    pieces = [text[span.start : span.end] for span in chunk_spans(text, longest, count_characters)]
    pairs = list(zip(pieces[::2], pieces[1::2], strict=False))
    if len(pieces) > 1 and len(pieces) % 2:
        pairs.append((pieces[-2], pieces[-1]))
    return [f"{prompt}\n\n{ANSWER_LINE}\n{answer}" for prompt, answer in pairs]


def write_exchanges(config: GeneratorConfig) -> None:
    """Write the exchanges of the corpus, part by part, as a corpus of their own, and those of the synthetic set likewise.

    Does nothing where they are there.
    """
    _, manifest = open_corpus(config.root, config.corpus)
    directory = corpus_directory(config.root, own_name(config))
    recipe = {"sequence_length": config.sequence_length, "format": FORMAT}
    if config.recipes:
        recipe = taught_identity(config)
    identity = claim_directory(directory, SOURCE, recipe, {"corpus": manifest["hash"]})
    if not is_finished(directory):
        splits = {split: _write_split(config, split, directory) for split in get_args(Split)}
        more = {"prompts": True} if config.recipes else {}
        finish(directory, identity, splits=splits, **more)
    if config.synthetic is not None:
        _write_synthetic_exchanges(config, config.synthetic)


def _write_synthetic_exchanges(config: GeneratorConfig, synthetic: str) -> None:
    directory = corpus_directory(config.root, f"{config.name}.{SYNTHETIC_SOURCE}")
    recipe = {"sequence_length": config.sequence_length, "format": FORMAT}
    made = open_synthetic(config.root, synthetic)[1]["hash"]
    identity = claim_directory(directory, SYNTHETIC_SOURCE, recipe, {"synthetic": made})
    if is_finished(directory):
        return
    asked = PackConfig(
        root=config.root, sources={synthetic: PackSource(synthetic=synthetic)}, evaluate_on=(config.corpus,)
    )
    source = open_sources(asked)[synthetic]

    def documents(part: int) -> pa.Table:
        rows = [
            {"doc_id": each.doc_id, "text": each.text, "domain": "synthetic", "source": synthetic}
            for each in source.read(part)
        ]
        return pa.Table.from_pylist(rows, DOCUMENT_SCHEMA)

    parts = [functools.partial(documents, part) for part in range(len(source.parts.paths))]
    nothing = {"parts": 0, "documents": 0, "bytes": 0}
    table_of = functools.partial(_exchanges_table, sequence_length=config.sequence_length)
    counts = _write_parts(parts, directory / "train", table_of)
    finish(directory, identity, splits={"train": counts, "held_out": nothing})


def _write_split(config: GeneratorConfig, split: Split, directory: UPath) -> dict[str, int]:
    paths, _ = open_corpus(config.root, config.corpus, split)
    parts = [functools.partial(read_parquet, path) for path in paths]
    if config.recipes:
        return _write_parts(
            parts, directory / split, functools.partial(_taught_table, taught=taught_recipes(config))
        )
    table_of = functools.partial(_exchanges_table, sequence_length=config.sequence_length)
    return _write_parts(parts, directory / split, table_of)


def _write_parts(
    parts: Sequence[Callable[[], pa.Table]], directory: UPath, table_of: Callable[[pa.Table], pa.Table]
) -> dict[str, int]:
    counts = {"parts": len(parts), "documents": 0, "bytes": 0}
    for part, read in enumerate(parts):
        target = directory / part_name(part, len(parts))
        if not exists(target):
            write_parquet_atomic(target, table_of(read()))
        texts = read_parquet(target, ["text"])["text"].to_pylist()
        counts["documents"] += len(texts)
        counts["bytes"] += sum(len(text.encode()) for text in texts)
    return counts


def _exchanges_table(documents: pa.Table, sequence_length: int) -> pa.Table:
    rows = sorted(
        (document_id(exchange), exchange, row["domain"], row["source"])
        for row in documents.to_pylist()
        for exchange in exchanges_of(row["text"], sequence_length)
    )
    return pa.Table.from_pylist(
        [dict(zip(DOCUMENT_SCHEMA.names, row, strict=True)) for row in rows], DOCUMENT_SCHEMA
    )


# --- exchanges of recipes ----------------------------------------------------------------------------------------


def own_name(config: GeneratorConfig) -> str:
    """Return the name of the generator's exchanges and of its packed set."""
    return f"{config.name}.{SOURCE}"


def taught_recipes(config: GeneratorConfig) -> tuple[TaughtRecipe, ...]:
    """Return the recipes a generator is to learn. Raises UserError for one that is not there or cannot be taught."""
    recipes = load_recipes(list(config.recipes))
    taught = tuple(
        TaughtRecipe(recipe, task) for recipe, task in zip(recipes, config.recipes.values(), strict=True)
    )
    for each in taught:
        check_taught(each)
    return taught


def taught_identity(config: GeneratorConfig) -> dict[str, Any]:
    """Return what decides the exchanges of recipes: the recipes' contents and the rules that answer them."""
    recipes = {
        each.recipe.name: {"task": each.task, "recipe": each.recipe.hash} for each in taught_recipes(config)
    }
    return {"recipes": recipes, "format": PAIRS_FORMAT}


def exchange_of(pair: Pair, domain: str) -> tuple[str, str]:
    """Return prompt and answer of a pair as the chat template writes them, but for the end-of-text token before them."""
    tokenizer = _Characters()
    template = PromptTemplate.of(pair.recipe, tokenizer)
    data = {"document": pair.chunk, "keywords": ", ".join(pair.keywords), "domain": domain}
    prompt = template.fill(dict(zip(data, tokenizer.encode_data(list(data.values())), strict=True)))
    return tokenizer.decode(prompt), pair.answer


class _Characters(CharacterTokenizer):
    """CHAT_TEMPLATE without a model, a token a character: the exchanges are there before any tokenizer is."""

    prompt_format = "chat_template"

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "".join(f"{message['content'].strip()}\n\n" for message in messages) + f"{ANSWER_LINE}\n"


def _taught_table(documents: pa.Table, taught: Sequence[TaughtRecipe]) -> pa.Table:
    left_out: Counter[str] = Counter()
    rows = {}
    for row in documents.to_pylist():
        for each in taught:
            for pair in pairs_of(row, each, left_out):
                prompt, answer = exchange_of(pair, row["domain"])
                text = prompt + answer
                rows[document_id(text)] = (text, row["domain"], row["source"], len(prompt))
    return pa.Table.from_pylist(
        [
            dict(zip(EXCHANGE_SCHEMA.names, (doc_id, *rest), strict=True))
            for doc_id, rest in sorted(rows.items())
        ],
        EXCHANGE_SCHEMA,
    )
