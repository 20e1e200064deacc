"""A corpus cut off on the way and taken up again, finished and asked for again, or asked for otherwise."""

import os

import pytest

from synth.corpus import CorpusBuild, finished_manifest, plan_corpus
from synth.errors import IdentityMismatch, UserError
from tests.assets.file_corpus import build, bytes_under, file_config, texts, write_jsonl


def test_work_cut_off_anywhere_is_taken_up_again_and_done_once(tmp_path, small_runs, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(120)])
    reference = file_config(tmp_path / "reference", path)
    build(reference)
    config = file_config(tmp_path / "killed", path)
    done = set()
    for _ in range(1000):  # one task per life of the process
        work = CorpusBuild(config)
        task = None
        for stage in work.stages():
            if stage.todo:
                task = (stage.name, stage.todo[0].number)
                stage.work(stage.todo[0])
                break
        if task is None:
            break
        assert task not in done
        done.add(task)
    assert finished_manifest(config) is None
    work.finish()
    assert bytes_under(tmp_path / "killed" / "corpora") == bytes_under(tmp_path / "reference" / "corpora")


@pytest.mark.parametrize(
    ("constant", "differs"),
    [
        ("synth.corpus.RUN_BYTES", "num_buckets"),
        ("synth.inputs.UNIT_FILES", "read_tasks"),
        ("synth.corpus.ROWS_PER_GROUP", "rows_per_group"),
    ],
)
def test_a_build_is_not_finished_by_a_version_that_cuts_it_otherwise(
    tmp_path, monkeypatch, constant, differs
):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{"text": t} for t in texts(40)]) for name in "ab"]
    config = file_config(tmp_path, *paths)
    reading = next(CorpusBuild(config).stages())
    for task in reading.todo[:1]:
        reading.work(task)
    assert CorpusBuild(config).read_stage().todo == reading.todo[1:]
    with monkeypatch.context() as upgraded:
        upgraded.setattr(constant, 1)
        for attempt in (build, plan_corpus):
            with pytest.raises(
                UserError, match=rf"another version .* \({differs}\): delete .*\.work to begin anew"
            ):
                attempt(config)
    build(config)


def test_a_finished_corpus_is_only_read(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(30)])
    config = file_config(tmp_path, path)
    assert finished_manifest(config) is None
    manifest = build(config)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "corpora").rglob("*")}
    assert finished_manifest(config) == manifest
    assert plan_corpus(config).finished
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "corpora").rglob("*")} == before


def test_a_finished_corpus_outlives_its_inputs_but_not_a_change_of_them(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(30)])
    config = file_config(tmp_path, path)
    build(config)
    os.utime(path, (1, 1))
    with pytest.raises(IdentityMismatch, match=r"parents\.sources\.0"):
        plan_corpus(config)
    os.remove(path)
    assert plan_corpus(config).finished
    with pytest.raises(IdentityMismatch, match=r"recipe\.min_characters: there 200, asked for 100"):
        plan_corpus(config.model_copy(update={"min_characters": 100}))


def test_an_unfinished_corpus_of_another_recipe_is_not_mixed_into(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(30)])
    next(CorpusBuild(file_config(tmp_path, path)).stages())
    with pytest.raises(IdentityMismatch, match="held_out_fraction"):
        plan_corpus(file_config(tmp_path, path, held_out_fraction=0.1))
