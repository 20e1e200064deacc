"""Ctrl-C in the middle of a study's step: one sentence at once, nothing that looks finished, and the next start goes on."""

import os
import signal
import time

import pytest

from synth.ledger import missing_parts
from synth.storage import list_names, read_json, study_path
from tests.assets.processes import Family

pytestmark = pytest.mark.timeout(900)

STUDY = """
root = "{root}"
[corpora.natural]
sources = [{{ kind = "docstrings", packages = ["optuna"] }}]
documents_per_part = 16
max_documents = 96
held_out_fraction = 0.1
[rephrase.made]
corpus = "natural"
recipes = ["hq"]
max_reject_fraction = 1.0
engine = {{ kind = "fake", model = "fake", engine_arguments = {{ latency_seconds = 0.3 }} }}
placement = {{ max_num_seqs = 4, parts_in_flight = 1 }}
[pack.packed]
sources = {{ natural = {{ corpus = "natural" }} }}
evaluate_on = ["natural"]
sequence_length = 64
tokenizer = {{ vocab_size = 512 }}
max_evaluation_tokens_per_domain = 1024
[pretrain.grid]
synthetic = []
shares = [0.0]
axes = [{{ models = ["12k"], train_tokens = [16384, 32768, 65536] }}]
run = {{ max_epochs = 1000.0, rows_per_step = 16 }}
placement = {{ rows_per_microbatch = 16 }}
"""


@pytest.fixture
def study(tmp_path):
    """Return (study root, path of its file)."""
    file = tmp_path / "study.toml"
    file.write_text(STUDY.format(root=tmp_path / "study"))
    return study_path(str(tmp_path / "study")), str(file)


def interrupt(job, log):
    """Press Ctrl-C, which reaches every process of the terminal's group; see that all of them go, and what is said."""
    before = len(log.read_text())
    family = Family(job.pid)
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(30) == 130
    said = log.read_text()[before:].splitlines()
    assert said[-1] == "run_study: interrupted: what is done stays done, run it again to go on."
    assert not [line for line in said if "Traceback" in line or "Error" in line], said
    assert family.left_after(60) == []


def wait_for(there, job, log):
    while not there():
        assert job.poll() is None, log.read_text()[-4000:]
        time.sleep(0.02)


@pytest.mark.slow
def test_an_interrupted_rephrasing_ends_at_once_and_goes_on_where_it_was(study, start_job, tmp_path):
    root, file = study
    argv, log = ("--config", file, "--until", "rephrase.made"), tmp_path / "log"
    made = root / "synthetic" / "made"
    job = start_job("run_study", *argv, log=log)
    wait_for(lambda: len(list_names(made / "ledger", ".json")) >= 2, job, log)
    interrupt(job, log)
    done = {path: path.stat().st_mtime_ns for path in (made / "ledger").iterdir()}
    assert not (made / "manifest.json").exists()
    assert list_names(root / "running") == []
    assert start_job("run_study", *argv, log=log).wait(600) == 0, log.read_text()[-4000:]
    parts = read_json(made / "manifest.json")["parts"]
    assert missing_parts(made, parts) == []
    assert 2 <= len(done) < parts
    assert {path: path.stat().st_mtime_ns for path in done} == done, "finished parts were made again"


@pytest.mark.drill
def test_an_interrupted_training_records_no_failure_and_goes_on_where_it_was(study, start_job, tmp_path):
    root, file = study
    argv, log = ("--config", file, "--until", "pretrain.grid"), tmp_path / "log"
    job = start_job("run_study", *argv, log=log)
    wait_for(lambda: list(root.glob("runs/*/record.json")), job, log)
    interrupt(job, log)
    done = {path: path.stat().st_mtime_ns for path in root.glob("runs/*/record.json")}
    assert 1 <= len(done) < 3
    assert not (root / "plans" / "grid" / "manifest.json").exists()
    assert start_job("run_study", *argv, log=log).wait(600) == 0, log.read_text()[-4000:]
    records = list(root.glob("runs/*/record.json"))
    assert [read_json(path)["status"] for path in records] == ["complete"] * 3
    assert {path: path.stat().st_mtime_ns for path in done} == done, "finished runs were trained again"
