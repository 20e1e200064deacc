"""What a corpus promises: the same documents in the same parts whatever happened on the way, every row accounted for."""

import contextlib
import gzip
import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth import shuffle
from synth.config import CorpusConfig
from synth.corpus import finished_manifest, open_corpus, plan_corpus
from synth.documents import DOCUMENT_SCHEMA, Document, Row, admit, document_id, is_held_out, normalise
from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from tests.assets.file_corpus import build, bytes_under, documents, file_config, texts, write_jsonl
from tests.assets.object_store import object_store


def test_parts_hold_every_document_once_in_order_of_id(tmp_path, small_runs):
    written = texts(500)
    config = file_config(tmp_path, write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": t} for t in written]))
    manifest = build(config)

    seen = []
    for split in ("train", "held_out"):
        parts, _ = open_corpus(config.root, config.name, split)
        tables = [pq.read_table(part) for part in parts]
        assert all(table.schema.equals(DOCUMENT_SCHEMA) for table in tables)
        assert [table.num_rows for table in tables[:-1]] == [16] * (len(tables) - 1)
        assert parts[0].name == f"part-00000-of-{len(parts):05d}.parquet"
        whole = pa.concat_tables(tables)
        ids = whole["doc_id"].to_pylist()
        assert ids == sorted(ids)
        assert ids == [document_id(text) for text in whole["text"].to_pylist()]
        assert all(is_held_out(i, config.held_out_fraction) == (split == "held_out") for i in ids)
        counts = manifest["splits"][split]
        assert counts["documents"] == len(ids)
        assert counts["parts"] == len(parts)
        assert counts["characters"] == sum(map(len, whole["text"].to_pylist()))
        assert counts["bytes"] == sum(len(text.encode()) for text in whole["text"].to_pylist())
        seen += whole["text"].to_pylist()
    assert sorted(seen) == sorted(written)
    assert not (tmp_path / "corpora" / "natural" / ".work").exists()


def test_every_row_is_kept_or_dropped_for_a_reason(tmp_path):
    good = texts(20)
    rows = [{"text": text} for text in good]
    rows += [
        {"text": good[0]},
        {"text": good[1].replace(" ", "\r\n", 1)},
        {"text": good[1].replace(" ", "\n", 1)},
    ]
    rows += [
        {"text": None},
        {},
        {"text": 7},
        {"text": ["a"]},
        {"text": "short"},
        {"text": " " * 500},
        {"text": ""},
    ]
    rows += [[1, 2], {"text": "\ud800" * 300}]
    config = file_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows))
    manifest = build(config)
    assert manifest["rows_read"] == 32
    assert manifest["documents_kept"] == 21
    assert manifest["dropped"] == {
        "duplicate": 2, "null_text": 2, "not_text": 2, "too_short": 3, "not_an_object": 1, "invalid_unicode": 1,
    }  # fmt: skip
    assert manifest["sources"][0]["rows_read"] == 32
    assert manifest["sources"][0]["dropped_on_reading"] == manifest["dropped"]


def test_the_first_copy_of_a_document_stays(tmp_path, small_runs):
    shared = texts(200)
    late = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in shared])
    first = write_jsonl(tmp_path / "z.jsonl", [{"text": text} for text in shared[:120]])
    sources = (
        {"kind": "files", "paths": [first], "domain": "first"},
        {"kind": "files", "paths": [late], "domain": "late"},
    )
    config = CorpusConfig(root=str(tmp_path), sources=sources)
    manifest = build(config)
    assert manifest["dropped"] == {"duplicate": 120}
    rows = documents(config, "train").to_pylist() + documents(config, "held_out").to_pylist()
    domains = {row["text"]: row["domain"] for row in rows}
    assert domains == {text: "first" if number < 120 else "late" for number, text in enumerate(shared)}


def test_a_document_is_on_the_same_side_in_every_corpus(tmp_path):
    everything = write_jsonl(tmp_path / "all.jsonl", [{"text": text} for text in texts(400)])
    some = write_jsonl(tmp_path / "some.jsonl", [{"text": text} for text in texts(400)[::3]])
    whole = file_config(tmp_path, everything, name="whole", held_out_fraction=0.2)
    third = file_config(tmp_path, some, name="third", held_out_fraction=0.2)
    build(whole), build(third)
    for split in ("train", "held_out"):
        assert set(documents(third, split)["doc_id"].to_pylist()) <= set(
            documents(whole, split)["doc_id"].to_pylist()
        )
    assert documents(whole, "held_out").num_rows == pytest.approx(80, abs=25)


def test_other_corpora_are_stayed_clear_of_in_both_their_splits(tmp_path, small_runs):
    mine, theirs = texts(300), texts(300)[100:250]
    other = file_config(
        tmp_path,
        write_jsonl(tmp_path / "b.jsonl", [{"text": t} for t in theirs]),
        name="other",
        held_out_fraction=0.5,
    )
    build(other)
    rows = [{"text": text} for text in mine + mine[90:110]]
    config = file_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), disjoint_from=("other",))
    manifest = build(config)
    assert manifest["documents_kept"] == 150
    assert manifest["dropped"]["in_other"] + manifest["dropped"]["duplicate"] == 170
    assert manifest["dropped"]["in_other"] >= 150
    kept = documents(config, "train")["text"].to_pylist() + documents(config, "held_out")["text"].to_pylist()
    assert sorted(kept) == sorted(set(mine) - set(theirs))
    assert manifest["parents"]["disjoint_from.other"] == open_corpus(str(tmp_path), "other")[1]["hash"]


def test_a_larger_limit_only_adds_documents(tmp_path, small_runs):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(300)])
    kept = {}
    for limit in (1, 100, 101, 299, 300, 1000):
        config = file_config(tmp_path, path, name=f"n{limit}", max_documents=limit, held_out_fraction=0.3)
        manifest = build(config)
        ids = [i for split in ("train", "held_out") for i in documents(config, split)["doc_id"].to_pylist()]
        assert len(ids) == manifest["documents_kept"] == min(limit, 300)
        assert manifest["dropped"].get("over_max_documents", 0) == 300 - len(ids)
        kept[limit] = sorted(ids)
    assert all(kept[limit] == kept[1000][:limit] for limit in kept)


def test_beyond_the_limit_no_bucket_is_read(tmp_path):
    space = shuffle.Workspace(str(tmp_path), "nothing-is-there", num_buckets=3)
    kept = [{"train": 4, "held_out": 1}, {"train": 7, "held_out": 0}, {"train": 2, "held_out": 2}]
    nothing = {"train": 0, "held_out": 0}
    assert shuffle.lowest_documents(space, kept, 5) == [kept[0], nothing, nothing]


def test_parts_do_not_depend_on_how_the_work_was_cut(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(300) + texts(50)])
    whole = file_config(tmp_path / "whole", path, documents_per_part=7)
    build(whole)
    monkeypatch.setattr(shuffle, "RUN_BYTES", 5_000)
    monkeypatch.setattr(shuffle, "ROWS_PER_GROUP", 3)
    monkeypatch.setattr("synth.corpus.RUN_BYTES", 5_000)
    cut = file_config(tmp_path / "cut", path, documents_per_part=7)
    build(cut)
    assert bytes_under(tmp_path / "whole" / "corpora") == bytes_under(tmp_path / "cut" / "corpora")


def test_the_plan_says_what_there_is_to_do_and_writes_nothing(tmp_path):
    path = write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": text} for text in texts(30)])
    plan = plan_corpus(file_config(tmp_path / "root", path))
    assert not plan.finished
    assert plan.facts["input files"] == 1
    assert plan.facts["input bytes"] == os.path.getsize(path)
    assert not (tmp_path / "root").exists()


def test_no_document_left_is_an_error_with_the_reasons(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "too short"}] * 3)
    with pytest.raises(UserError, match=r"No document is left of 3 rows \(3 too short\)"):
        build(file_config(tmp_path, path))


@pytest.mark.parametrize(("fraction", "empty"), [(0.0, "held_out"), (1.0, "train")])
def test_a_split_may_be_empty(tmp_path, fraction, empty):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(30)])
    config = file_config(tmp_path, path, held_out_fraction=fraction)
    manifest = build(config)
    assert open_corpus(config.root, config.name, empty) == ([], manifest)
    assert manifest["splits"][empty] == {
        "parts": 0,
        "documents": 0,
        "characters": 0,
        "bytes": 0,
        "domains": {},
    }
    assert manifest["documents_kept"] == 30


def test_unfinished_and_damaged_corpora_cannot_be_opened(tmp_path):
    with pytest.raises(IncompleteArtefact, match="run build_corpus first"):
        open_corpus(str(tmp_path), "natural")
    config = file_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(60)]))
    with pytest.raises(IncompleteArtefact):
        plan_corpus(config.model_copy(update={"name": "mine", "disjoint_from": ("natural",)}))
    build(config)
    parts, _ = open_corpus(config.root, config.name)
    parts[1].unlink()
    with pytest.raises(UserError, match=f"has lost 1 of {len(parts)} parts"):
        open_corpus(config.root, config.name)


def test_a_corpus_cannot_be_disjoint_from_itself(tmp_path):
    config = file_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", []), disjoint_from=("natural",))
    with pytest.raises(UserError, match="disjoint_from names the corpus 'natural' itself"):
        plan_corpus(config)


@pytest.mark.parametrize("protocol", ["memory", "s3"])
def test_a_corpus_lives_on_any_file_system(tmp_path, small_runs, protocol):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(100)])
    with object_store() if protocol == "s3" else contextlib.nullcontext():
        on_disk, remote = file_config(tmp_path, path), file_config(f"{protocol}://bucket/study", path)
        manifests = [build(on_disk), build(remote)]
        assert manifests[0]["hash"] == manifests[1]["hash"]
        assert finished_manifest(remote) == manifests[1]
        parts, _ = open_corpus(remote.root, "natural")
        for there, here in zip(parts, open_corpus(on_disk.root, "natural")[0], strict=True):
            assert there.read_bytes() == here.read_bytes()
        assert not (parts[0].parent.parent / ".work").exists()


def test_inputs_may_lie_in_an_object_store(tmp_path):
    with object_store() as client:
        body = "".join(json.dumps({"text": text}) + "\n" for text in texts(20))
        client.put_object(Bucket="bucket", Key="raw/a.jsonl.gz", Body=gzip.compress(body.encode()))
        config = file_config(tmp_path, "s3://bucket/raw")
        manifest = build(config)
        assert manifest["documents_kept"] == 20
        sources = documents(config, "train")["source"].to_pylist()
        assert all(re.fullmatch(r"s3://bucket/raw/a\.jsonl\.gz#\d+", source) for source in sources)
        client.put_object(Bucket="bucket", Key="raw/a.jsonl.gz", Body=gzip.compress(body.upper().encode()))
        with pytest.raises(IdentityMismatch):
            plan_corpus(config)


def test_a_damaged_corpus_to_stay_clear_of_is_named(tmp_path):
    rows = [{"text": text} for text in texts(60)]
    other = file_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), name="other")
    build(other)
    part = open_corpus(other.root, "other")[0][0]
    part.write_bytes(part.read_bytes()[:-9])
    config = file_config(tmp_path, str(tmp_path / "a.jsonl"), disjoint_from=("other",))
    with pytest.raises(
        UserError, match=rf"{part.name}.* is damaged .*delete .*other and run build_corpus again"
    ):
        build(config)


# --- documents --------------------------------------------------------------------------------------------------


def test_equal_texts_have_equal_ids_however_they_are_encoded():
    assert normalise("caf\u0065\u0301\r\nline\rline\n") == "café\nline\nline\n"
    assert document_id("café") == "850f7dc43910ff890f8879c0"
    assert admit(Row("cafe\u0301", "d", "s"), 1) == admit(Row("café".encode(), "d", "s"), 1)


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(min_size=1).filter(str.strip))
def test_an_admitted_document_carries_the_id_of_its_text(text):
    verdict = admit(Row(text, "d", "s"), 1)
    if isinstance(verdict, Document):
        assert verdict.doc_id == document_id(verdict.text)
        assert len(verdict.doc_id) == 24
    else:
        assert verdict == "invalid_unicode"


def test_held_out_is_a_nested_share_independent_of_the_order_of_ids():
    ids = sorted(document_id(str(number)) for number in range(20_000))
    fractions = [0.01, 0.05, 0.5]
    sets = [{i for i in ids if is_held_out(i, fraction)} for fraction in fractions]
    assert sets[0] < sets[1] < sets[2]
    for fraction, held_out in zip(fractions, sets, strict=True):
        for half in (ids[:10_000], ids[10_000:]):
            share = np.mean([i in held_out for i in half])
            assert share == pytest.approx(fraction, abs=4 * np.sqrt(fraction / 10_000))
    assert not any(is_held_out(i, 0.0) for i in ids)
    assert all(is_held_out(i, 1.0) for i in ids)


# --- what is too much like the held-out split -------------------------------------------------------------------------


def with_copies(of_held_out: float, count: int = 200) -> list[str]:
    """Texts of different words, and for every held-out one a copy that shares so much of its words with it."""
    written = []
    for number in range(count):
        words = [f"w{number}x{at}" for at in range(60)]
        written.append(" ".join(words))
        if is_held_out(document_id(written[-1]), 0.1):
            shared = round(60 * of_held_out)
            written.append(" ".join([*words[:shared], *(f"own{number}x{at}" for at in range(60 - shared))]))
    return written


@pytest.mark.parametrize(("shared", "rule", "left_out"), [(0.5, {}, True), (0.5, {"max_fraction": 0.6}, False), (0.15, {}, False),
                                                          (0.5, {"max_fraction": 1.0}, False), (0.25, {"ngram": 16}, False)])  # fmt: skip
def test_training_documents_too_much_like_the_held_out_split_are_dropped_and_counted(
    tmp_path, small_runs, shared, rule, left_out
):
    written = with_copies(shared)
    path = write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": text} for text in written])
    config = file_config(tmp_path, path, held_out_fraction=0.1, decontaminate=rule)
    manifest = build(config)
    held_out = documents(config, "held_out")["text"].to_pylist()
    train = documents(config, "train")["text"].to_pylist()
    originals = [text for text in held_out if "own" not in text]
    copies = {text for text in written if "own" in text} - set(held_out)
    assert len(originals) > 10
    assert sorted([*held_out, *train]) == sorted(set(written) - (copies if left_out else set()))
    assert manifest["dropped"] == ({"like_held_out": len(copies)} if left_out else {})
    assert manifest["rows_read"] == manifest["documents_kept"] + sum(manifest["dropped"].values())


def test_the_limit_is_taken_before_the_comparison_and_the_account_still_closes(tmp_path, small_runs):
    path = write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": text} for text in with_copies(0.5)])
    manifest = build(file_config(tmp_path, path, held_out_fraction=0.1, max_documents=100))
    dropped = manifest["dropped"]
    assert manifest["documents_kept"] + dropped["like_held_out"] == 100
    assert manifest["documents_kept"] + sum(dropped.values()) == manifest["rows_read"]
