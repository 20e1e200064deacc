"""What is evaluated on: whole rows of held-out text, with the bytes they predict, none of it trained on."""

import pyarrow as pa
import pytest
from upath import UPath

from synth.documents import document_id
from synth.errors import UserError
from synth.storage import read_json, read_parquet, write_json_atomic, write_parquet_atomic
from tests.assets.byte_tokens import IN_ORDER, TEXTS, config_of, documents_of, spelled
from train import packing


def test_evaluation_rows_count_the_bytes_of_their_predicted_text(tmp_path, write_corpus, pack):
    texts = ["aé漢b", "two words", "x" * 20]
    order = sorted(texts, key=document_id)
    write_corpus(str(tmp_path), "natural", TEXTS, {"web": texts, "tiny": ["abcdefg"], "exact": ["abcdefgh"]})
    packed = pack(config_of(str(tmp_path)))
    stream = b"".join(b"\0" + text.encode() for text in order)  # one token a byte, the mark as zero
    num_rows = (len(stream) - 1) // 8
    predicted = stream[1 : 8 * num_rows + 1]
    web = packed.evaluation["web"]
    assert web.rows.shape == (num_rows, 9)
    assert (web.num_tokens, web.num_bytes) == (8 * num_rows, len(predicted) - predicted.count(0))
    assert (packed.evaluation["exact"].num_tokens, packed.evaluation["exact"].num_bytes) == (8, 8)
    assert spelled(packed, packed.evaluation["exact"].rows) == ["¶abcdefgh"]
    assert packed.info.domains_left_out == {"tiny": "8 tokens of held-out text, one row takes 9"}


def test_bytes_are_exact_where_a_row_ends_inside_a_character(tmp_path, write_corpus, pack):
    write_corpus(str(tmp_path), "natural", TEXTS, {"web": ["漢" * 30]})
    web = pack(config_of(str(tmp_path))).evaluation["web"]
    assert (web.num_tokens, web.num_bytes) == (
        88,
        88,
    )  # 90 bytes; the 88th is the first of a character's three


def test_an_evaluation_set_is_capped_at_whole_rows_of_the_lowest_ids(tmp_path, write_corpus, pack):
    texts = [f"held out document number {i}, of which there are many" for i in range(40)]
    write_corpus(str(tmp_path), "natural", TEXTS, {"web": texts, "few": ["one short document"]})
    config = config_of(str(tmp_path), sequence_length=24, max_evaluation_tokens_per_domain=300)
    packed = pack(config)
    web = packed.evaluation["web"]
    assert (len(web.rows), web.num_tokens) == (12, 288)
    stream = "".join("¶" + text for text in sorted(texts, key=document_id))
    assert spelled(packed, web.rows[-1:]) == [stream[11 * 24 : 12 * 24 + 1]]
    assert packed.info.evaluation["web"].num_documents == stream[: 12 * 24].count("¶")


def test_a_document_held_out_of_two_corpora_is_evaluated_once(tmp_path, write_corpus, pack):
    write_corpus(str(tmp_path), "natural", TEXTS, {"web": ["a text in both of them"]})
    write_corpus(
        str(tmp_path), "other", ["train text"], {"web": ["a text in both of them", "a text only here"]}
    )
    packed = pack(config_of(str(tmp_path), evaluate_on=("natural", "other")))
    assert packed.info.evaluation["web"].num_documents == 2


def test_held_out_text_that_fills_no_row_at_all_is_refused(tmp_path, write_corpus, pack):
    write_corpus(str(tmp_path), "natural", TEXTS, {"web": ["short"]})
    with pytest.raises(UserError, match="no domain in the held-out split of natural fills one row"):
        pack(config_of(str(tmp_path)))


def test_a_domain_whose_rows_hold_prompts_alone_is_left_out(tmp_path, write_corpus, pack):
    """No prediction in them counts, so there is no loss to take a mean of."""
    write_corpus(
        str(tmp_path), "natural", ["pptrain text"], {"some": ["ppanswers"], "none": ["ppppppppanswer"]}
    )
    directory = tmp_path / "corpora" / "natural"
    for path in map(UPath, directory.glob("*/*.parquet")):
        table = read_parquet(path)
        prompts = [len(text) - len(text.lstrip("p")) for text in table["text"].to_pylist()]
        write_parquet_atomic(path, table.append_column("prompt_characters", pa.array(prompts, pa.int32())))
    manifest = read_json(UPath(directory / "manifest.json"))
    write_json_atomic(UPath(directory / "manifest.json"), manifest | {"prompts": True})
    packed = pack(config_of(str(tmp_path)))
    assert packed.info.domains_left_out == {"none": "no text in its 1 rows counts: prompts fill them"}
    (some,) = packed.evaluation.values()
    assert (some.num_tokens, some.num_bytes) == (6, 6)
    assert spelled(packed, some.rows) == ["¶ppanswer"]


def test_what_is_evaluated_on_is_not_trained_on(tmp_path, write_corpus, write_synthetic, pack):
    """A corpus may train on what another one holds out, and a rephrasing of it would leak as well."""
    shared = ["a text held out there and trained on here", "another of that kind, also held out"]
    write_corpus(str(tmp_path), "natural", [*TEXTS, shared[0]], {})
    write_corpus(str(tmp_path), "other", ["of no concern"], {"web": shared})
    leaked = document_id(shared[1])
    write_synthetic(
        str(tmp_path), "made", [[(leaked, "qa", 0, 0, "leaked", True), ("d1", "qa", 0, 0, "kept", True)]]
    )
    sources = {"natural": {"corpus": "natural"}, "qa": {"synthetic": "made"}}
    packed = pack(config_of(str(tmp_path), sources=sources, evaluate_on=("other",)))
    assert documents_of(packed, "natural") == IN_ORDER
    assert documents_of(packed, "qa") == ["kept"]
    assert [source.num_evaluated_documents for source in packed.info.sources.values()] == [1, 1]
    assert any("1 documents left out" in remark for remark in packing.remarks_on(packed.info))
