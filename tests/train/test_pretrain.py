"""`pretrain_models` as a person runs it: a grid, killed at a bad moment, run again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.assets.packed_set import write_packed_set
from train.record import read_records

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).parents[2]
STEP = 8 * 32

CONFIG = f"""
packed = "tiny"
synthetic = ["synthetic"]
shares = [0.0, 0.5]
axes = [{{ models = ["12k"], train_tokens = [{150 * STEP}, {300 * STEP}] }}]
seeds = [0, 1]
run = {{ max_epochs = 100.0, evaluations = 2 }}
placement = {{ lanes = 2, checkpoint_every_seconds = 0.2 }}
"""


def start_job(root):
    config = root / "grid.toml"
    config.write_text(CONFIG + f'root = "{root}"\n')
    command = [sys.executable, "-m", "rayjobs.pretrain_models", "--config", str(config)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_job(root):
    job = start_job(root)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    return output


def record_files(root):
    return {path.parent.name: path.stat().st_mtime_ns for path in (root / "runs").glob("*/record.json")}


def numbers(root):
    clocks = {"wall_seconds", "device_seconds", "tokens_per_second", "provenance", "attempts", "device"}
    return {record.run_id: record.model_dump(exclude=clocks) for record in read_records(str(root))}


def test_a_grid_whose_driver_is_killed_goes_on_where_it_was_and_ends_the_same(tmp_path):
    disturbed, quiet = tmp_path / "disturbed", tmp_path / "quiet"
    for root in (disturbed, quiet):
        write_packed_set(root)

    job = start_job(disturbed)
    deadline = time.monotonic() + 300
    while len(record_files(disturbed)) < 2 and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    output = job.communicate(timeout=60)[0]
    finished = record_files(disturbed)
    assert 2 <= len(finished) < 8, output
    assert not (disturbed / "plans" / "grid" / "manifest.json").exists()

    run_job(disturbed)
    after = record_files(disturbed)
    assert {run_id: after[run_id] for run_id in finished} == finished
    assert len(after) == 8

    run_job(quiet)
    assert numbers(disturbed) == numbers(quiet)
    manifests = [
        json.loads((root / "plans" / "grid" / "manifest.json").read_text()) for root in (disturbed, quiet)
    ]
    assert manifests[0]["runs"] == manifests[1]["runs"]
    assert manifests[0]["complete"] == 8

    assert "nothing to do" in run_job(disturbed)
    assert record_files(disturbed) == after
