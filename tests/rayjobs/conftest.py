"""The demo study made small enough to run twice in a test: same file, same steps, same parts, less of everything."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.assets.study_results import results_of

ROOT = Path(__file__).parent.parent.parent
DEMO = "rayjobs/configs/demo.toml"
TRAINING = {"rows_per_step": 4, "max_epochs": 100.0, "optimizer": {"warmup_tokens": 512}}
SHRUNK = {
    "corpora": {
        "natural": {"sources": [{"kind": "docstrings", "packages": ["pandas", "optuna"]}], "max_documents": 300, "documents_per_part": 32},
    },
    "rephrase": {"rephrased": {"max_documents": 64}},
    "pack": {"packed": {"tokenizer": {"vocab_size": 512}, "max_evaluation_tokens_per_domain": 1024}},
    "pretrain": {
        "grid": {
            "axes": [
                {"models": ["12k"], "train_tokens": [2048, 4096, 8192, 16384, 32768]},
                {"models": ["12k", "25k", "49k", "98k", "197k"], "train_tokens": [8192]},
            ],
            "run": TRAINING,
            "placement": {"rows_per_microbatch": 4},
        }
    },
    "search": {
        "share": {
            "cells": [{"model": "12k", "train_tokens": 4096}, {"model": "25k", "train_tokens": 4096}],
            "trials_per_cell": 4,
            "run": TRAINING,
            "placement": {"rows_per_microbatch": 4},
        }
    },
    "laws": {"laws": {"bootstrap_samples": 100}},
}  # fmt: skip


def shrunk_demo_argv(root):
    argv = ["--config", DEMO, "--root", str(root)]
    for section, tables in SHRUNK.items():
        argv += [f"--{section}", json.dumps(tables)]
    return argv


@pytest.fixture
def shrunk_demo(tmp_path):
    """Return (argv of run_study, study root) of the demo study in small."""
    return shrunk_demo_argv(tmp_path / "study"), tmp_path / "study"


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory):
    """Return the root of the demo study in small, run once and undisturbed."""
    root = tmp_path_factory.mktemp("undisturbed") / "study"
    command = [sys.executable, "-m", "rayjobs.run_study", *shrunk_demo_argv(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    return root


@pytest.fixture
def start_job():
    """Start a job as its own process group, so that a test can SIGKILL all of it: `start(job, *argv)` -> `kill`, `wait`."""
    started = []

    def start(job, *argv, log):
        command = [sys.executable, "-m", f"rayjobs.{job}", *argv]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, start_new_session=True, stdout=output, stderr=subprocess.STDOUT,
                preexec_fn=_hear_interrupts,
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        kill_group(process)


def _hear_interrupts():
    """Undo what a shell does to what it runs in the background: its processes, tests and all, would be deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_group(process):
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return
    process.wait()


@pytest.fixture
def sigkill():
    """SIGKILL a job started by `start_job` and everything it started in turn."""
    return kill_group


@pytest.fixture(name="results_of")
def _results_of():
    """Return what a study found, free of times and provenance: relative path -> bytes or JSON value."""
    return results_of


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.mkdir()
    for number in range(6):
        words = " ".join(f"word{number}x{each}" for each in range(60))  # no document repeats another
        (path / f"{number}.txt").write_text(f"document {number}: {words}")
    return path
