"""A generator of a later round: it learns from what the one before wrote, and from natural text in a stated part."""

import pydantic
import pytest

from synth.errors import IncompleteArtefact
from synth.identity import read_manifest
from synth.storage import read_json, read_parquet, study_path
from train.config import GeneratorConfig
from train.exchanges import ANSWER_LINE, write_exchanges
from train.generator import claim_generator, pack_config, plan_generator, run_config

TEXT = " ".join(f"Sentence number {n} says something about the value {n * n}." for n in range(40))


@pytest.fixture
def config(tmp_path, write_corpus):
    """`config(field=value, ...)`: a generator learning from a corpus of eight documents."""
    texts = [TEXT.replace("something", f"thing {n}") for n in range(8)]
    held_out = {"web": [TEXT.replace("something", f"held-out thing {n}") for n in range(3)]}
    write_corpus(str(tmp_path), "prose", texts, held_out=held_out)

    def make(**changes):
        fields = {"root": str(tmp_path), "corpus": "prose", "model": "12k", "vocab_size": 300, "sequence_length": 64,
                  "train_tokens": 4096}  # fmt: skip
        return GeneratorConfig.model_validate(fields | changes)

    return make


def rows_of(text, keep=True):
    return [
        (f"d{n}", "continue", 0, 0, text.replace("something", f"made-up thing {n}"), keep) for n in range(4)
    ]


def test_a_later_round_draws_its_tokens_from_both_in_the_stated_parts(config, pack, write_synthetic):
    asked = config(name="second", synthetic="round1", natural_fraction=0.25)
    write_synthetic(asked.root, "round1", [rows_of(TEXT)])
    write_exchanges(asked)
    packed = pack(pack_config(asked))
    assert set(packed.info.sources) == {"exchanges", "synthetic-exchanges"}
    assert run_config(asked).mixture == {"exchanges": 0.25, "synthetic-exchanges": 0.75}


def test_rounds_of_a_chain_share_a_tokenizer_so_that_their_losses_compare(config, pack, write_synthetic):
    first, second = config(name="first"), config(name="second", synthetic="round1", natural_fraction=0.5)
    write_synthetic(second.root, "round1", [rows_of("Zebra quartz jumped over something vexing. " * 30)])
    for each in (first, second):
        write_exchanges(each)
    hashes = {pack(pack_config(each)).info.tokenizer_hash for each in (first, second)}
    assert len(hashes) == 1


def test_rows_that_were_not_kept_are_not_learnt_from(config, write_synthetic):
    asked = config(name="second", synthetic="round1", natural_fraction=0.5)
    write_synthetic(asked.root, "round1", [rows_of(TEXT), rows_of("Rejected. Text. " * 40, keep=False)])
    write_exchanges(asked)
    directory = study_path(asked.root, "corpora", "second.synthetic-exchanges")
    assert read_manifest(directory, "x")["splits"]["train"]["documents"] > 4
    texts = [
        text for path in (directory / "train").iterdir() for text in read_parquet(path)["text"].to_pylist()
    ]
    assert all(ANSWER_LINE in text and "made-up thing" in text for text in texts)


def test_a_later_round_is_made_from_the_set_it_names(config, write_synthetic):
    asked = config(name="second", synthetic="round1", natural_fraction=0.5)
    with pytest.raises(IncompleteArtefact, match="round1 is missing or unfinished"):
        plan_generator(asked)
    write_synthetic(asked.root, "round1", [rows_of(TEXT)])
    claim_generator(asked)
    claimed = read_json(study_path(asked.root, "generators", "second", "recipe.json"))
    assert set(claimed["parents"]) == {"corpus", "synthetic"}
    assert not plan_generator(asked).finished


def test_the_fraction_goes_with_the_set(config):
    with pytest.raises(
        pydantic.ValidationError, match="give natural_fraction exactly when synthetic names a set"
    ):
        config(synthetic="round1")
    with pytest.raises(
        pydantic.ValidationError, match="give natural_fraction exactly when synthetic names a set"
    ):
        config(natural_fraction=0.5)


def test_a_generator_of_one_round_is_who_it_was(config):
    asked = config()
    claim_generator(asked)
    claimed = read_json(study_path(asked.root, "generators", "tiny", "recipe.json"))
    assert not {"synthetic", "natural_fraction"} & claimed["recipe"].keys()
    assert set(claimed["parents"]) == {"corpus"}
