"""Packing: rows of tokens out of corpora and synthetic sets, what is refused, and what a kill leaves."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers
from upath import UPath

from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from synth.storage import study_path, write_parquet_atomic
from tests.assets.byte_tokens import IN_ORDER, TEXTS, config_of, documents_of, spelled
from train import packing
from train.evaluation_rows import build_evaluation
from train.tokenizer import train_tokenizer
from train.tokens import PackedSet


@pytest.fixture
def root(tmp_path, write_corpus) -> str:
    root = str(tmp_path / "study")
    assert (
        write_corpus(root, "natural", TEXTS, {"web": ["a text of more than forty letters is held out"]}, 2)
        == IN_ORDER
    )
    return root


def files_of(directory: str | Path) -> dict[str, bytes]:
    """All files under a directory; of a manifest, all but the provenance."""
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "manifest.json":
                data = json.dumps({k: v for k, v in json.loads(data).items() if k != "provenance"}).encode()
            found[str(path.relative_to(directory))] = data
    return found


# --- rows ------------------------------------------------------------------------------------------------------


def test_documents_are_packed_end_to_end_each_after_its_mark(root, pack):
    packed = pack(config_of(root))
    natural = packed.sources["natural"]
    assert spelled(packed, natural.rows(np.arange(4))) == ["¶klmnopqr", "rstu¶hij¶", "¶abcdefg¶", "¶xyz 1234"]
    assert (natural.num_tokens, natural.num_rows, natural.info.num_dropped_tokens) == (40, 4, 7)
    assert spelled(packed, [natural.tokens(32, 40)])[0].startswith("45 ")
    assert (natural.num_documents, natural.num_bytes) == (5, sum(len(text.encode()) for text in TEXTS))
    assert [shard.num_tokens for shard in natural.info.shards] == [16, 21, 3]
    assert natural.rows(np.arange(1)).dtype == "<u2"


@pytest.mark.parametrize(
    ("length", "rows", "dropped"), [(8, 4, 7), (13, 3, 0), (38, 1, 1), (39, 1, 0), (40, 0, 40)]
)
def test_the_tail_that_fills_no_row_is_dropped_and_counted(root, pack, length, rows, dropped):
    info = pack(config_of(root, sequence_length=length)).sources["natural"].info
    assert (info.num_rows, info.num_dropped_tokens) == (rows, dropped)
    assert info.num_tokens == (rows * length + 1 if rows else 0) + dropped


def test_rows_and_documents_do_not_depend_on_how_the_corpus_is_cut(tmp_path, write_corpus, pack):
    texts = [f"text {i} " + "lorem ipsum " * (i % 5) for i in range(60)]
    rows, evaluations, orders = [], [], []
    for per_part in (1, 7, 60):
        root = str(tmp_path / str(per_part))
        order = write_corpus(
            root, "natural", texts, {"web": ["some held out text"] * 1}, documents_per_part=per_part
        )
        packed = pack(config_of(root, tokenizer={"vocab_size": 300}))
        natural = packed.sources["natural"]
        rows.append(natural.rows(np.arange(natural.num_rows)))
        evaluations.append(packed.evaluation["web"].rows)
        orders.append(documents_of(packed, "natural"))
        assert orders[-1] == order
    assert all(np.array_equal(each, rows[0]) for each in rows)
    assert all(np.array_equal(each, evaluations[0]) for each in evaluations)


def test_more_parts_than_shards_share_shards(tmp_path, write_corpus, pack, monkeypatch):
    monkeypatch.setattr(packing, "MAX_SHARDS", 4)
    root = str(tmp_path)
    order = write_corpus(
        root, "natural", [f"text {i}" for i in range(23)], {"web": ["held out text"]}, documents_per_part=1
    )
    config = config_of(root)
    shards = packing.list_shards(config)
    assert [len(shard.source.parts.paths) for shard in shards] == [5, 6, 6, 6]
    packed = pack(config)
    assert documents_of(packed, "natural") == order
    assert len(packed.sources["natural"].info.shards) == 4


def test_a_document_that_spells_the_mark_does_not_end_there(tmp_path, write_corpus, pack):
    texts = ["before <|endoftext|> after", "another document here"]
    order = write_corpus(str(tmp_path), "natural", texts, {"web": ["held <|endoftext|> out"]})
    packed = pack(config_of(str(tmp_path)))
    natural = packed.sources["natural"]
    assert documents_of(packed, "natural") == order
    assert np.count_nonzero(natural.tokens(0, natural.num_tokens) == packed.eot_id) == 2
    assert np.count_nonzero(packed.evaluation["web"].rows == packed.eot_id) == 1


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path, write_corpus, pack):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    vocabulary["zz"] = 70_000
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(
        tmp_path / "tok"
    )
    order = write_corpus(str(tmp_path), "natural", TEXTS, {"web": ["held out text"]})
    packed = pack(config_of(str(tmp_path), tokenizer={"kind": "load", "path": "root:tok"}))
    assert packed.vocab_size == 70_001
    assert packed.sources["natural"].rows(np.arange(1)).dtype == "<u4"
    assert documents_of(packed, "natural") == order


# --- synthetic sources -----------------------------------------------------------------------------------------

FIRST_PART = [
    ("d1", "qa", 0, 1, "second chunk", True),
    ("d1", "qa", 0, 0, "first chunk", True),
    ("d1", "hq", 0, 0, "high quality", True),
    ("d0", "qa", 1, 0, "another sample", True),
    ("d0", "qa", 0, 0, "kept", True),
    ("d0", "qa", 0, 1, "REJECTED", False),
    ("d0", "qa", 0, 2, "kept too", True),
]
SECOND_PART = [("d2", "hq", 0, 0, "REJECTED", False), ("d3", "hq", 0, 0, "the last", True)]


def test_chunks_of_a_document_are_joined_in_order_without_the_rejected(root, pack, write_synthetic):
    write_synthetic(root, "made", [FIRST_PART, SECOND_PART])
    packed = pack(config_of(root, sources={"natural": {"corpus": "natural"}, "all": {"synthetic": "made"}}))
    assert packed.sources["all"].documents()["document"].to_pylist() == [
        "d0/qa/0",
        "d0/qa/1",
        "d1/hq/0",
        "d1/qa/0",
        "d3/hq/0",
    ]
    assert documents_of(packed, "all") == [
        "kept\n\nkept too", "another sample", "high quality", "first chunk\n\nsecond chunk", "the last"
    ]  # fmt: skip
    assert documents_of(packed, "natural") == IN_ORDER


def test_a_source_can_be_one_recipe_of_a_set(root, pack, write_synthetic):
    write_synthetic(root, "made", [FIRST_PART, SECOND_PART, []])
    packed = pack(config_of(root, sources={"hq": {"synthetic": "made", "recipe": "hq"}}))
    assert documents_of(packed, "hq") == ["high quality", "the last"]
    with pytest.raises(
        UserError, match=r"sources\.x\.recipe = 'faq' made no row of synthetic/made: choose one of hq, qa"
    ):
        packing.plan_pack(
            config_of(root, name="other", sources={"x": {"synthetic": "made", "recipe": "faq"}})
        )


def test_a_source_without_a_kept_row_has_no_rows(root, pack, write_synthetic):
    write_synthetic(root, "made", [[("d2", "hq", 0, 0, "REJECTED", False)]])
    config = config_of(root, sources={"natural": {"corpus": "natural"}, "hq": {"synthetic": "made"}})
    packed = pack(config)
    assert packed.info.num_rows == {"natural": 4, "hq": 0}
    assert packed.sources["hq"].num_tokens == 0
    assert "source hq has no row: 0 tokens, one row takes 9" in packing.plan_pack(config).warnings


def test_shards_of_another_tokenizer_are_not_mixed_in(root):
    config = config_of(root)
    packing.claim(config)
    packing.prepare_tokenizer(config)
    build_evaluation(config)
    for shard in packing.list_shards(config):
        packing.tokenize_shard(config, shard)
    train_tokenizer(["another text"], 259, packing.packed_directory(config) / "tokenizer")
    with pytest.raises(UserError, match="was made with another tokenizer"):
        packing.finish_pack(config)


# --- resuming --------------------------------------------------------------------------------------------------


def test_whatever_is_lost_before_the_end_is_made_again_the_same(root, pack, monkeypatch):
    """Every prefix of the writes of a whole run stands for a kill there; what is committed is not done again."""
    config = config_of(root)
    pack(config)
    directory = Path(root) / "packed" / "packed"
    whole = files_of(directory)
    by_time = sorted(
        (path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns
    )
    kept = Path(root) / "kept"
    directory.rename(kept)
    for num_written in range(len(by_time)):
        shutil.rmtree(directory, ignore_errors=True)
        for path in by_time[:num_written]:
            target = directory / path.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(kept / path.relative_to(directory), target)
        committed = set(directory.rglob("ledger/*.json"))
        stamps = {path: path.stat().st_mtime_ns for path in committed}
        pack(config)
        assert files_of(directory) == whole
        assert {path: path.stat().st_mtime_ns for path in committed} == stamps


def test_a_finished_set_is_only_read(root, pack):
    pack(config_of(root))
    before = {path: path.stat().st_mtime_ns for path in Path(root).rglob("*")}
    pack(config_of(root))
    assert {path: path.stat().st_mtime_ns for path in Path(root).rglob("*")} == before
    assert packing.plan_pack(config_of(root)).finished


@pytest.mark.parametrize("field", [{"sequence_length": 16}, {"tokenizer": {"vocab_size": 300}}])
def test_another_configuration_under_the_same_name_is_refused(root, pack, field):
    pack(config_of(root))
    for step in (packing.plan_pack, packing.claim):
        with pytest.raises(IdentityMismatch, match=next(iter(field))):
            step(config_of(root, **field))


def test_another_corpus_under_the_same_name_is_refused(root, pack, write_corpus):
    pack(config_of(root))
    shutil.rmtree(Path(root) / "corpora" / "natural")
    write_corpus(root, "natural", ["other texts"], {"web": ["held out text"]})
    with pytest.raises(IdentityMismatch, match=r"parents\.source\.natural"):
        packing.plan_pack(config_of(root))


def test_identity_covers_the_tokenizer_a_name_stands_for(tmp_path, write_corpus, pack):
    hashes = set()
    for number, size in enumerate((300, 300, 301)):
        root = str(tmp_path / str(number))
        write_corpus(root, "natural", TEXTS, {"web": ["held out text"]})
        train_tokenizer([f"text {i}" for i in range(100)], size, study_path(root, "tokenizer"))
        hashes.add(pack(config_of(root, tokenizer={"kind": "load", "path": "root:tokenizer"})).hash)
    assert len(hashes) == 2


# --- the plan --------------------------------------------------------------------------------------------------


def test_the_plan_counts_what_is_missing(root):
    config = config_of(root)
    plan = packing.plan_pack(config)
    assert not plan.finished
    assert plan.facts["shards missing"] == plan.facts["shards"] == 3
    assert plan.facts["natural: documents"] == 5
    assert not (Path(root) / "packed").exists()
    packing.claim(config)
    packing.prepare_tokenizer(config)
    build_evaluation(config)
    packing.tokenize_shard(config, packing.list_shards(config)[1])
    assert packing.plan_pack(config).facts["shards missing"] == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sources": {"natural": {"corpus": "nowhere"}}},
            "corpora/nowhere is missing or unfinished.*build_corpus",
        ),
        (
            {"sources": {"qa": {"synthetic": "nowhere"}}},
            "synthetic/nowhere is missing or unfinished.*rephrase_corpus",
        ),
        ({"evaluate_on": ("nowhere",)}, "corpora/nowhere is missing"),
        (
            {"tokenizer": {"train_on": ("qa",)}},
            "train_on names 'qa', which is not one of the sources .natural.",
        ),
        (
            {"tokenizer": {"kind": "load", "path": "gpt2", "train_on": ("natural",)}},
            "train_on has no meaning",
        ),
        ({"sequence_length": 512}, "max_evaluation_tokens_per_domain = 256 is less than one row"),
    ],
)
def test_what_cannot_be_packed_is_refused_before_anything_is_written(root, fields, message):
    for step in (packing.plan_pack, packing.claim):
        with pytest.raises((UserError, IncompleteArtefact), match=message):
            step(config_of(root, **fields))
    assert not (Path(root) / "packed").exists()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "column"])
def test_a_damaged_part_is_named(root, pack, damage):
    path = Path(root) / "corpora" / "natural" / "train" / "part-00001-of-00003.parquet"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "garbage":
        data = bytearray(path.read_bytes())
        data[4:200] = b"\xff" * 196
        path.write_bytes(data)
    else:
        write_parquet_atomic(UPath(path), pa.table({"doc_id": ["a"]}))
    with pytest.raises(
        UserError, match=r"part-00001-of-00003\.parquet cannot be read.*run build_corpus again"
    ):
        pack(config_of(root))


def test_a_study_in_an_object_store(write_corpus, pack, tmp_path):
    root = "memory://packing-test"
    order = write_corpus(root, "natural", TEXTS, {"web": ["held out text"]}, documents_per_part=2)
    opened = pack(config_of(root))
    packed = PackedSet.open(root, "packed", cache_directory=tmp_path)
    assert opened.hash == packed.hash
    assert documents_of(packed, "natural") == order
    assert math.prod(packed.evaluation["web"].rows.shape) == 9
    assert spelled(packed, packed.sources["natural"].rows(np.array([1]))) == ["rstu¶hij¶"]
