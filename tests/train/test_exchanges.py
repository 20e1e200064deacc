"""Exchanges of recipes: prompts as they will be asked, and a loss that counts the answers alone."""

import numpy as np
import pyarrow as pa
import pydantic
import pytest

from synth.documents import document_id
from synth.pairs import Pair
from synth.recipe import load_recipe
from synth.storage import read_parquet, study_path
from train.config import GeneratorConfig
from train.exchanges import ANSWER_LINE, CHAT_TEMPLATE, exchange_of, write_exchanges
from train.generator import claim_generator, pack_config, plan_generator
from train.tokens import PackedSet

DOCSTRING = """Return the number of {thing} in a store.

Parameters
----------
path : str
    Where the store lies, {number} characters.
strict : bool
    Whether {thing} that are damaged count."""


@pytest.fixture
def config(tmp_path, write_corpus):
    """A generator that learns two recipes from eight docstrings."""
    texts = [DOCSTRING.format(thing=f"parts{n}", number=n) for n in range(8)]
    held_out = {"web": [DOCSTRING.format(thing=f"rows{n}", number=100 + n) for n in range(6)]}
    write_corpus(str(tmp_path), "docs", texts, held_out=held_out)
    fields = {
        "root": str(tmp_path), "corpus": "docs", "model": "12k", "vocab_size": 300, "sequence_length": 512,
        "train_tokens": 8192, "recipes": {"hq_brief": "rewrite", "qa_brief": "ask"},
    }  # fmt: skip
    return GeneratorConfig.model_validate(fields)


def test_a_prompt_is_what_the_chat_template_makes_of_the_recipes_messages():
    jinja2 = pytest.importorskip("jinja2")
    recipe = load_recipe("hq", {"chunking": {"unit": "characters"}})
    prompt, answer = exchange_of(Pair(recipe, "{{ 7 * 7 }} <|endoftext|>", (), "So."), "web")
    messages = [
        {"role": each.role, "content": each.content.replace("{document}", "{{ 7 * 7 }} <|endoftext|>")}
        for each in recipe.messages
    ]
    rendered = jinja2.Template(CHAT_TEMPLATE).render(messages=messages, bos_token="")
    assert (prompt, answer) == (rendered, "So.")


def test_exchanges_of_recipes_pack_with_a_flag_for_every_token_of_an_answer(config, pack):
    write_exchanges(config)
    directory = study_path(config.root, "corpora", "tiny.exchanges", "train")
    table = pa.concat_tables([read_parquet(path) for path in sorted(directory.iterdir())])
    assert table.num_rows == 16
    for row in table.to_pylist():
        assert row["text"][: row["prompt_characters"]].endswith(f"\n\n{ANSWER_LINE}\n")
        assert row["doc_id"] == document_id(row["text"])
    packed = pack(pack_config(config))
    source = packed.sources["exchanges"]
    tokens = source.tokens(0, source.num_tokens)
    flags = np.concatenate([np.asarray(each) for each in source._flag_maps])
    assert len(flags) == len(tokens)
    assert flags[tokens == packed.eot_id].all()
    assert packed.info.sources["exchanges"].num_counted_tokens == flags.sum() < len(tokens)
    from upath import UPath

    from train.tokenizer import Encoder

    encoder = Encoder.read(UPath(packed.tokenizer_directory))
    answers = [row["text"][row["prompt_characters"] :] for row in table.to_pylist()]
    counted = tokens[flags.astype(bool)]
    starts = np.flatnonzero(counted == packed.eot_id)
    said = {encoder.decode(piece) for piece in np.split(counted, starts) if len(piece)}
    assert said == set(answers)


def test_a_document_that_begins_before_its_row_does_not_count(config, pack):
    write_exchanges(config)
    packed = pack(pack_config(config))
    rows = np.arange(packed.sources["exchanges"].num_rows)
    sources = np.zeros(len(rows), np.int64)
    tokens = packed.gather(["exchanges"], sources, rows)
    counted = packed.gather_counted(["exchanges"], sources, rows, tokens)
    assert counted.any()
    for row, flags in zip(tokens, counted, strict=True):
        first = np.flatnonzero(row == packed.eot_id)[0] if (row == packed.eot_id).any() else len(row)
        assert not flags[: max(0, first)].any()


def test_held_out_losses_are_over_answers_too(config, pack):
    write_exchanges(config)
    pack(pack_config(config))
    packed = PackedSet.open(config.root, "tiny.exchanges")
    domain = packed.evaluation["web"]
    assert domain.counted is not None
    assert domain.num_tokens == domain.counted.sum() < domain.counted.size


def test_what_recipes_teach_is_part_of_a_generators_identity(config):
    claim_generator(config)
    assert not plan_generator(config).finished
    from synth.errors import IdentityMismatch

    with pytest.raises(IdentityMismatch, match="exchanges"):
        plan_generator(config.model_copy(update={"recipes": {"hq_brief": "rewrite"}}))


def test_recipes_and_a_synthetic_set_do_not_go_together():
    with pytest.raises(pydantic.ValidationError, match="leave out synthetic, or recipes"):
        GeneratorConfig(corpus="a", synthetic="b", natural_fraction=0.5, recipes={"hq_brief": "rewrite"})
