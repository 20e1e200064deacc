import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.errors import IncompleteArtefact, UserError
from synth.storage import study_path
from train.config import PackConfig
from train.tokens import PackedInfo, PackedSet, token_dtype

TEXTS = [f"text {number}, " * (number % 7 + 1) for number in range(40)]


def config_of(root: str) -> PackConfig:
    return PackConfig(
        root=root,
        tokenizer={"vocab_size": 300},
        sources={"natural": {"corpus": "natural"}, "other": {"corpus": "other"}},
        evaluate_on=("natural",),
        sequence_length=16,
    )


def packed_at(root: str, write_corpus, pack) -> PackedSet:
    # One document a part: most rows run across shards, some across several.
    write_corpus(
        root,
        "natural",
        TEXTS,
        {"b": ["held out text " * 9], "a": ["more held out text " * 5]},
        documents_per_part=1,
    )
    write_corpus(root, "other", TEXTS[5:25], documents_per_part=20)
    return pack(config_of(root))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def packed(root, write_corpus, pack) -> PackedSet:
    return packed_at(root, write_corpus, pack)


@pytest.fixture
def stream(packed) -> np.ndarray:
    """The tokens of source `natural`, read from its files."""
    directory = Path(packed.tokenizer_directory).parent / "sources" / "natural"
    return np.concatenate([np.fromfile(path, "<u2") for path in sorted(directory.glob("*.tokens"))])


def test_row_i_is_t_inputs_and_the_next_token(packed, stream):
    natural = packed.sources["natural"]
    rows = natural.rows(np.arange(natural.num_rows))
    assert natural.num_rows == (len(stream) - 1) // 16 > 20
    assert rows.shape == (natural.num_rows, 17)
    for number, row in enumerate(rows):
        assert np.array_equal(row, stream[number * 16 : number * 16 + 17])


def test_any_rows_in_any_order(packed):
    natural = packed.sources["natural"]
    whole = natural.rows(np.arange(natural.num_rows))

    @settings(max_examples=50)
    @given(st.lists(st.integers(0, natural.num_rows - 1), max_size=50))
    def check(indices):
        assert np.array_equal(natural.rows(np.array(indices, np.int64)), whole[indices])

    check()


def test_any_span_of_the_stream(packed, stream):
    @settings(max_examples=50)
    @given(st.tuples(st.integers(0, len(stream)), st.integers(0, len(stream))).map(sorted))
    def check(span):
        assert np.array_equal(packed.sources["natural"].tokens(*span), stream[span[0] : span[1]])

    check()


@pytest.mark.parametrize("indices", [[-1], [0, 10**6], [10**12]])
def test_a_row_that_is_not_there_is_an_index_error(packed, indices):
    with pytest.raises(IndexError):
        packed.sources["natural"].rows(np.array(indices))


def test_what_is_read_may_be_written_to_without_harm(packed):
    """A batch is the caller's own; the set stays as it is, on disk and for the next reader."""
    natural = packed.sources["natural"]
    before = natural.rows(np.arange(5))
    natural.rows(np.arange(5))[:] = 0
    natural.tokens(0, 9)[:] = 0
    assert np.array_equal(natural.rows(np.arange(5)), before)
    with pytest.raises(ValueError, match="read-only"):
        packed.evaluation["a"].rows[:] = 0


def test_gather_takes_each_row_from_its_source(packed):
    names = ("natural", "other")
    sources, rows = np.array([1, 0, 0, 1, 1]), np.array([0, 3, 0, 2, 0])
    batch = packed.gather(names, sources, rows)
    for got, source, row in zip(batch, sources, rows, strict=True):
        assert np.array_equal(got, packed.sources[names[source]].rows(np.array([row]))[0])


def test_evaluation_rows_are_found_by_domain(packed):
    assert list(packed.evaluation) == ["a", "b"]
    for domain, tokens in packed.evaluation.items():
        info = packed.info.evaluation[domain]
        assert tokens.rows.shape == (info.num_rows, 17)
        assert (tokens.num_tokens, tokens.num_bytes) == (info.num_tokens, info.num_bytes)
        assert tokens.rows[0, 0] == packed.eot_id


def test_info_needs_no_tokens(packed, root, tmp_path):
    copy = tmp_path / "packed" / "packed"
    copy.mkdir(parents=True)
    shutil.copy(study_path(root, "packed", "packed", "manifest.json"), copy)
    info = PackedInfo.read(str(tmp_path), "packed")
    assert info == packed.info
    assert info.num_rows == {name: source.num_rows for name, source in packed.sources.items()}
    assert (packed.hash, packed.sequence_length, packed.vocab_size) == (info.hash, 16, 300)


def test_a_set_travels_as_its_address(packed):
    data = pickle.dumps(packed)
    assert len(data) < 500
    there = pickle.loads(data)
    assert np.array_equal(
        there.sources["other"].rows(np.arange(3)), packed.sources["other"].rows(np.arange(3))
    )


def test_an_unfinished_set_is_refused(tmp_path):
    with pytest.raises(IncompleteArtefact, match=r"packed/nowhere is missing or unfinished.*pack_tokens"):
        PackedSet.open(str(tmp_path), "nowhere")


@pytest.mark.parametrize("damage", ["short", "gone"])
def test_a_damaged_shard_is_told_on_the_first_read(packed, root, tmp_path, damage):
    shutil.copytree(study_path(root, "packed"), tmp_path / "packed")
    shard = sorted((tmp_path / "packed" / "packed" / "sources" / "natural").glob("*.tokens"))[7]
    if damage == "short":
        shard.write_bytes(shard.read_bytes()[:-2])
    else:
        shard.unlink()
    opened = PackedSet.open(str(tmp_path), "packed")
    with pytest.raises(
        UserError, match=rf"{shard.name} (has \d+ bytes where|is missing).*run pack_tokens again"
    ):
        opened.sources["natural"].rows(np.arange(1))


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(257, "<u2"), (65_535, "<u2"), (65_536, "<u4"), (128_256, "<u4")]
)
def test_ids_take_two_bytes_while_they_fit(vocab_size, dtype):
    assert token_dtype(vocab_size) == np.dtype(dtype)


# --- sets in an object store -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote_root() -> str:
    return "memory://tokens-test"


@pytest.fixture
def remote(remote_root, write_corpus, pack) -> PackedSet:
    return packed_at(remote_root, write_corpus, pack)


def test_a_remote_set_is_copied_once_and_only_what_is_read(remote, remote_root, packed, tmp_path):
    opened = PackedSet.open(remote_root, "packed", cache_directory=tmp_path)
    assert not list(tmp_path.iterdir())
    rows = np.arange(10)
    assert np.array_equal(opened.sources["other"].rows(rows), packed.sources["other"].rows(rows))
    copies = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tokens")}
    assert [path.parent.name for path in copies] == ["other"]
    assert np.array_equal(opened.evaluation["b"].rows, packed.evaluation["b"].rows)
    again = PackedSet.open(remote_root, "packed", cache_directory=tmp_path)
    again.sources["other"].rows(rows)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("other/*.tokens")} == copies
    assert sorted(path.name for path in opened.tokenizer_directory.iterdir() if not path.name.startswith(".")) == [
        "manifest.json", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip


def test_a_tokenizer_is_fetched_with_what_lies_deeper(remote, remote_root, tmp_path):
    templates = study_path(remote_root, "packed", "packed", "tokenizer", "additional_chat_templates")
    (templates / "tools.jinja").write_text("{{ messages }}")
    try:
        opened = PackedSet.open(remote_root, "packed", cache_directory=tmp_path)
        assert (
            opened.tokenizer_directory / "additional_chat_templates" / "tools.jinja"
        ).read_text() == "{{ messages }}"
    finally:
        templates.fs.rm(templates.path, recursive=True)


def test_readers_at_the_same_time_share_the_copy(remote, remote_root, tmp_path):
    results: list[np.ndarray] = []

    def read() -> None:
        opened = PackedSet.open(remote_root, "packed", cache_directory=tmp_path)
        results.append(opened.sources["natural"].rows(np.arange(20)))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(each, results[0]) for each in results)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_shard_damaged_in_the_store_is_not_read(remote, remote_root, tmp_path):
    shard = study_path(remote_root, "packed", "packed", "sources", "natural", "part-00003-of-00040.tokens")
    data = shard.read_bytes()
    shard.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    try:
        opened = PackedSet.open(remote_root, "packed", cache_directory=tmp_path)
        with pytest.raises(UserError, match=r"part-00003-of-00040\.tokens is damaged: its SHA-256"):
            opened.sources["natural"].rows(np.arange(1))
        assert not list(tmp_path.rglob("part-00003*"))
    finally:
        shard.write_bytes(data)
