"""Scores of lm-evaluation-harness: refused early where there is nothing to score, read as the harness writes them."""

import importlib.util
import json

import pytest
from upath import UPath

from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from tests.assets.packed_set import write_packed_set
from train.config import EvaluateConfig, PretrainConfig
from train.grid import claim_plan, finish_plan, plan_pretrain, plan_runs
from train.harness import (
    claim_evaluation,
    complete_runs,
    finish_evaluation,
    missing_scores,
    plan_evaluation,
    read_scores,
    score_model,
)
from train.lanes.queue import failed_record
from train.record import MODEL_DIRECTORY, run_directory, write_record

STEP = 8 * 32


@pytest.fixture
def plan(tmp_path):
    """`plan(keep_models)`: a finished plan of two runs, one complete and one diverged; returns the complete one's id."""
    packed = write_packed_set(tmp_path).info

    def make(keep_models=True):
        config = PretrainConfig(
            root=str(tmp_path), packed="tiny", shares=(0.0,), seeds=(0, 1),
            axes=({"models": ("12k",), "train_tokens": (4 * STEP,)},), placement={"keep_models": keep_models},
        )  # fmt: skip
        planned = plan_runs(config, packed)
        identity = claim_plan(config, packed, planned)
        records = []
        for each, status in zip(planned, ("complete", "diverged"), strict=True):
            record = failed_record(
                each.run, packed.vocab_size, config.placement, "why", tokens=STEP, seconds=1.0, tokens_per_second=1.0,
                attempts=1,
            )  # fmt: skip
            records.append(record.model_copy(update={"status": status}))
            write_record(config.root, records[-1])
        finish_plan(config, identity, records)
        return records[0].run_id

    return make


@pytest.fixture
def config(tmp_path):
    return EvaluateConfig(root=str(tmp_path), tasks=("tiny_choice",))


@pytest.fixture
def _installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_without_the_harness_one_sentence_says_how_to_get_it(config, plan, monkeypatch):
    plan()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package lm_eval.*pip install lm_eval\[hf\]"):
        plan_evaluation(config)


@pytest.mark.usefixtures("_installed")
def test_only_complete_runs_of_a_finished_plan_are_scored(config, plan):
    with pytest.raises(IncompleteArtefact, match="pretrain_models"):
        plan_evaluation(config)
    run_id = plan()
    assert complete_runs(config) == missing_scores(config) == [run_id]
    assert plan_evaluation(config).facts["models missing"] == 1


@pytest.mark.usefixtures("_installed")
def test_a_run_without_a_model_is_named_with_the_remedy_and_the_plan_warns(config, plan, tmp_path):
    run_id = plan(keep_models=False)
    with pytest.raises(UserError, match=rf"run {run_id} of plans/grid has no model.*keep_models = true"):
        plan_evaluation(config)
    again = PretrainConfig(
        root=str(tmp_path), packed="tiny", shares=(0.0,), seeds=(0, 1),
        axes=({"models": ("12k",), "train_tokens": (4 * STEP,)},), placement={"keep_models": True},
    )  # fmt: skip
    assert any("1 runs are finished without a model" in each for each in plan_pretrain(again).warnings)


@pytest.mark.usefixtures("_installed")
def test_another_evaluation_under_the_same_name_is_refused(config, plan):
    plan()
    claim_evaluation(config)
    with pytest.raises(IdentityMismatch, match=r"recipe\.limit"):
        plan_evaluation(config.model_copy(update={"limit": 3}))


def test_measures_are_read_with_their_errors_and_everything_else_is_left():
    found = {
        "results": {
            "arc_easy": {
                "alias": "arc_easy",
                "acc,none": 0.25,
                "acc_stderr,none": 0.05,
                "acc_norm,none": 0.5,
                "acc_norm_stderr,none": "N/A",
            },
            "wikitext": {
                "alias": "wikitext",
                "bits_per_byte,none": 1.5,
                "bits_per_byte_stderr,none": float("nan"),
            },
        },
        "n-samples": {"arc_easy": {"original": 100, "effective": 20}},
    }
    read = [
        (each.task, each.metric, each.value, each.standard_error, each.questions)
        for each in read_scores(found)
    ]
    assert read == [
        ("arc_easy", "acc,none", 0.25, 0.05, 20),
        ("arc_easy", "acc_norm,none", 0.5, None, 20),
        ("wikitext", "bits_per_byte,none", 1.5, None, None),
    ]


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.mark.slow
def test_a_kept_model_is_scored_by_the_real_harness(config, plan, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm_eval is optional")
    from train.export import export_checkpoint
    from train.model import Vocabulary, build_llama
    from train.sizes import SIZES
    from train.tokenizer import train_tokenizer

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run_id = plan()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    info = train_tokenizer([TASK * 3], 280, UPath(tokenizer))
    llama = build_llama(SIZES["12k"], Vocabulary(info.vocab_size, info.eot_id), 64, seed=3)
    export_checkpoint(llama, tokenizer, run_directory(config.root, run_id) / MODEL_DIRECTORY, max_position=64)
    own = tmp_path / "tasks"
    own.mkdir()
    questions = [{"question": f"{n} is", "choices": ["odd", "even"], "answer": 1 - n % 2} for n in range(6)]
    (own / "questions.json").write_text("\n".join(map(json.dumps, questions)))
    (own / "tiny_choice.yaml").write_text(TASK.format(data=own / "questions.json"))

    config = config.model_copy(update={"include_path": str(own)})
    identity = claim_evaluation(config)
    with pytest.raises(UserError, match=r"tasks: 'other' is not a task"):
        score_model(config.model_copy(update={"tasks": ("other",)}), run_id)
    score_model(config, run_id)
    manifest = finish_evaluation(config, identity)
    assert manifest["measures"] == ["tiny_choice: acc,none"]
    scores = json.loads((tmp_path / "evaluations" / "evaluation" / "scores" / f"{run_id}.json").read_text())
    (score,) = scores["scores"]
    assert 0.0 <= score["value"] <= 1.0
    assert score["questions"] == 6
    assert plan_evaluation(config).finished
