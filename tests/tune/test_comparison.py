"""`compare_studies`: two studies of known difference, and what is said of it."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from rayjobs import compare_studies
from synth.errors import UserError
from synth.identity import claim_directory, finish
from synth.storage import study_path
from tests.assets.simulated_study import record_of, write_packed, write_search
from train.config import Axis, PretrainConfig
from train.grid import claim_plan, finish_plan, plan_runs
from train.record import write_record
from tune.claim_statistics import mean_of
from tune.config import CompareConfig
from tune.report.comparison import compare, verdict_of
from tune.report.comparison_page import answer_of, render_comparison
from tune.report.study_differences import differing_fields, texts_differ
from tune.results import Interval

AXES = (Axis(models=("25k", "98k"), train_tokens=(262_144, 524_288, 1_048_576)),)


def write_study(root, effect, sources=("hq",), searched=False):
    """Write a study whose synthetic runs have `effect` times the loss of the simulated law."""
    packed = write_packed(str(root), parents={"source.hq": str(effect)})
    config = PretrainConfig(root=str(root), synthetic=sources, shares=(0.0, 1 / 3, 2 / 3), axes=AXES)
    planned = list(plan_runs(config, packed))
    identity = claim_plan(config, packed, planned)
    # What makes the generators differ is the text alone: natural runs of both studies are the same to the last bit.
    records = [record_of(each.run, factor=effect if each.share else 1.0) for each in planned]
    for record in records:
        write_record(str(root), record)
    finish_plan(config, identity, records)
    if searched:
        write_search(config, packed, "hq")
    return str(root)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return (
        write_study(tmp_path_factory.mktemp("a"), 1.0, searched=True),
        write_study(tmp_path_factory.mktemp("b"), 0.97, searched=True),
    )


def test_a_better_generator_is_told_and_natural_text_is_not(studies):
    found = compare(CompareConfig(study_a=studies[0], study_b=studies[1]))
    by = {(each.what, each.share): each for each in found.by_share}
    better = by["hq", 1 / 3]
    assert (better.verdict, better.cells, better.pairs) == ("B is better", 6, 6)
    assert better.relative.low <= math.log(0.97) <= better.relative.high
    assert by["natural text alone", 0.0].verdict == "not told apart"
    assert by["hq", None].cells == 6
    assert {each.verdict for each in found.by_domain} == {"B is better"}


def test_exchanging_the_studies_changes_every_sign_and_nothing_else(studies):
    there = compare(CompareConfig(study_a=studies[0], study_b=studies[1]))
    back = compare(CompareConfig(study_a=studies[1], study_b=studies[0]))
    for one, other in zip(there.by_share, back.by_share, strict=True):
        assert one.relative.value == pytest.approx(-other.relative.value)
    assert back.by_share[1].verdict == "A is better"


def test_best_shares_of_common_cells_are_compared_with_both_errors(studies):
    names = ("search-hq",)
    found = compare(CompareConfig(study_a=studies[0], study_b=studies[1], searches_a=names, searches_b=names))
    assert [(each.what, each.model) for each in found.best_shares] == [("hq", "25k"), ("hq", "98k")]
    for each in found.best_shares:
        assert each.difference.value == pytest.approx(each.b.value - each.a.value)
        assert each.difference.standard_error == pytest.approx(
            math.hypot(each.a.standard_error, each.b.standard_error)
        )


def test_two_sources_of_one_study_are_compared_by_naming_them(tmp_path):
    root = write_study(tmp_path / "both", 1.0, sources=("hq", "qa"))
    found = compare(CompareConfig(study_a=root, study_b=root, pairs={"hq": "qa"}))
    assert {each.what for each in found.by_share} == {"hq against qa"}
    assert found.by_share[0].pairs == 6


def test_files_are_the_same_every_time_and_the_json_has_every_number(studies):
    found = compare(CompareConfig(study_a=studies[0], study_b=studies[1]))
    files = render_comparison(found)
    assert files == render_comparison(found)
    value = json.loads(files["comparison.json"])
    assert value["by_share"][1]["relative"]["value"] == found.by_share[1].relative.value
    assert "B is better" in files["comparison.md"]
    assert "http" not in files["index.html"].replace("http-equiv", "")


def test_the_job_takes_two_roots(studies, tmp_path, capsys):
    assert compare_studies.main([*studies, "--root", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / "comparison").iterdir()} == {
        "index.html", "comparison.md", "comparison.json",
    }  # fmt: skip


def test_a_study_is_not_compared_with_itself(studies):
    with pytest.raises(UserError, match="hold the same runs: there is nothing to compare"):
        compare(CompareConfig(study_a=studies[0], study_b=studies[0]))


def test_studies_without_a_common_cell_are_one_sentence(studies, tmp_path):
    packed = write_packed(str(tmp_path))
    axes = (Axis(models=("12k",), train_tokens=(131_072,)),)
    config = PretrainConfig(root=str(tmp_path), synthetic=("hq",), axes=axes)
    planned = list(plan_runs(config, packed))
    claim_plan(config, packed, planned)
    with pytest.raises(UserError, match="have no two finished runs of the same size, budget, share and seed"):
        compare(CompareConfig(study_a=studies[0], study_b=str(tmp_path)))
    with pytest.raises(UserError, match="pairs names 'xy', which is no synthetic source of study b"):
        compare(CompareConfig(study_a=studies[0], study_b=studies[1], pairs={"hq": "xy"}))


def test_other_held_out_texts_are_said_whatever_the_tokenizers(studies, tmp_path):
    root = tmp_path / "other"
    shutil.copytree(studies[1], root)
    path = root / "packed" / "packed" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(
        json.dumps(manifest | {"tokenizer_hash": "other", "parents": {"evaluate_on.natural": "elsewhere"}})
    )
    found = compare(CompareConfig(study_a=studies[0], study_b=str(root)))
    assert found.measure == "bits_per_byte"
    assert found.texts == "the held-out texts are of different corpora"
    assert any(found.texts in warning for warning in found.warnings)
    assert answer_of(found).startswith("On different held-out texts, ")
    assert not answer_of(compare(CompareConfig(study_a=studies[0], study_b=studies[1]))).startswith(
        "On different"
    )


def test_the_same_text_cut_elsewhere_is_told_from_other_text():
    def packed(tokenizer, corpus, size):
        return {
            "tokenizer_hash": tokenizer,
            "parents": {"evaluate_on.natural": corpus, "source.hq": tokenizer},
            "evaluation": {"web": {"num_documents": 40, "num_bytes": size}},
        }

    assert texts_differ(packed("a", "x", 9), packed("b", "x", 9)) is None
    assert "different corpora" in texts_differ(packed("a", "x", 9), packed("b", "y", 9))
    assert "9 bytes of 1 domains against 12 of 1" in texts_differ(packed("a", "x", 9), packed("b", "x", 12))


def test_an_interval_that_reaches_both_ways_is_no_verdict():
    assert verdict_of(Interval(value=-0.01, low=-0.03, high=0.01)) == "not told apart"
    assert verdict_of(mean_of([-0.02, -0.021, -0.019], 0.95)) == "B is better"
    assert verdict_of(mean_of([-0.02], 0.95)) == "not told apart"


def test_a_recipe_that_one_study_lacks_is_named_and_not_written_out(tmp_path):
    for root, name in (("a", "hq"), ("b", "hq_brief")):
        made = {"max_documents": 8, "recipes": {name: {"hash": f"{name}-hash", "messages": ["long"] * 9}}}
        directory = study_path(str(tmp_path / root), "synthetic", "made")
        finish(directory, claim_directory(directory, "synthetic", made, {}))
    roots = CompareConfig(study_a=str(tmp_path / "a"), study_b=str(tmp_path / "b"))
    assert list(differing_fields(roots, [])) == [
        {"artefact": "synthetic/made", "field": "recipes.hq", "a": "there (hq-hash)", "b": None},
        {"artefact": "synthetic/made", "field": "recipes.hq_brief", "a": None, "b": "there (hq_brief-hash)"},
    ]
