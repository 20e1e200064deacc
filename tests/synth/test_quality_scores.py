"""Quality scores of one's own: read beside the documents, part of the set's identity, refused where they do not fit."""

import contextlib

import pyarrow as pa
import pytest
from upath import UPath

from synth.companions import quality_fingerprint
from synth.errors import IdentityMismatch, UserError
from synth.rephrase import open_work
from synth.storage import read_parquet, study_path, write_parquet_atomic
from tests.assets.object_store import object_store


@pytest.fixture
def scored(fake_config, natural, tmp_path):
    """`scored(change={number of a document: score}, directory)`: a configuration over `natural` with a score for each."""

    def scored(change=None, directory=tmp_path / "scores"):
        sources = open_work(fake_config()).sources
        number = 0
        for source in sources:
            ids = read_parquet(UPath(source), ["doc_id"])["doc_id"].to_pylist()
            values = [(change or {}).get(number + at, 0.25 + 0.01 * (number + at)) for at in range(len(ids))]
            number += len(ids)
            table = pa.table({"doc_id": ids, "quality": pa.array(values, pa.float64())})
            write_parquet_atomic(study_path(str(directory), UPath(source).name), table)
        return fake_config(quality_scores=str(directory))

    return scored


def test_every_document_has_its_score(scored):
    work = open_work(scored())
    assert [work.read_part(part)["quality"].to_pylist()[0] for part in (0, 5)] == pytest.approx([0.25, 0.45])


@pytest.mark.parametrize("where", ["disk", "memory", "object store"])
def test_another_score_anywhere_is_another_set(scored, tmp_path, where):
    with object_store() if where == "object store" else contextlib.nullcontext():
        directory = {
            "disk": tmp_path / "scores",
            "memory": f"memory://{tmp_path.name}/scores",
            "object store": "s3://bucket/scores",
        }[where]
        before = quality_fingerprint(scored({22: 0.5}, directory))
        assert quality_fingerprint(scored({22: 0.5}, directory)) == before
        assert quality_fingerprint(scored({22: 0.6}, directory)) != before, "one number of the last file"


def test_a_part_without_scores_is_named_before_anything_is_claimed(scored, tmp_path):
    config = scored()
    sources = [UPath(source).name for source in open_work(config).sources]
    (tmp_path / "scores" / sources[-1]).unlink()
    with pytest.raises(UserError, match=rf"lacks 1 of {len(sources)} parts \({sources[-1]} first\)"):
        open_work(config)
    first = config.model_copy(update={"max_documents": 1})
    assert len(open_work(first).sources) == 1, "what is not rephrased needs no score"


def test_a_set_is_not_finished_with_other_scores(scored):
    open_work(scored()).claim()
    with pytest.raises(IdentityMismatch, match=r"parents\.quality_scores"):
        open_work(scored({22: 0.6})).claim()


@pytest.mark.parametrize("score", [None, 1.5, float("nan")])
def test_a_score_that_is_none_is_named_with_its_document(scored, score):
    work = open_work(scored({23: score}))
    assert work.read_part(0)["quality"].null_count == 0
    with pytest.raises(
        UserError, match=r"gives document \w{24} the score (None|1.5|nan): every document needs one"
    ):
        work.read_part(5)


def test_a_directory_without_scores_is_one_sentence(fake_config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.parquet file: give a directory"):
        open_work(fake_config(quality_scores=str(tmp_path / "empty")))
