"""SIGKILL the whole study in the middle of each long step and run it again: same numbers, nothing finished redone."""

import re
import time

import pytest

pytestmark = pytest.mark.timeout(1500)

MOMENTS = [
    ("synthetic/rephrased/ledger/*.json", 1),
    ("runs/*/record.json", 3),
    ("runs/*/record.json", 12),
    ("searches/share/*/trials.jsonl", 1),
]
"""When to kill: as soon as so many files match the pattern."""


@pytest.mark.drill
def test_a_study_killed_in_every_long_step_ends_like_an_undisturbed_one(
    shrunk_demo, finished_demo, start_job, sigkill, results_of, tmp_path
):
    argv, root = shrunk_demo
    log = tmp_path / "log"
    finished_before = {}
    for pattern, count in MOMENTS:
        job = start_job("run_study", *argv, log=log)
        while len(list(root.glob(pattern))) < count:
            assert job.poll() is None, log.read_text()[-4000:]
            time.sleep(0.02)
        sigkill(job)
        finished_before |= {p: p.stat().st_mtime_ns for p in root.glob("runs/*/record.json")}
        finished_before |= {p: p.stat().st_mtime_ns for p in root.glob("synthetic/*/ledger/*.json")}
        assert not (root / "report" / "index.html").exists(), "it was killed after it had finished"
    last = start_job("run_study", *argv, log=log)
    assert last.wait(900) == 0, log.read_text()[-4000:]
    assert results_of(root) == results_of(finished_demo)
    assert {path: path.stat().st_mtime_ns for path in finished_before} == finished_before, (
        "finished work was redone"
    )


@pytest.mark.drill
def test_a_finished_study_says_so_and_starts_nothing(shrunk_demo, finished_demo, start_job, tmp_path):
    argv, _ = shrunk_demo
    argv[argv.index("--root") + 1] = str(finished_demo)
    log, began = tmp_path / "log", time.monotonic()
    assert start_job("run_study", *argv, log=log).wait(120) == 0, log.read_text()[-4000:]
    steps = re.findall(r"\[study\] \d+/(\d+) .*: finished already", log.read_text())
    assert steps == [str(len(steps))] * len(steps), "every step is there"
    assert steps
    assert "Ray" not in log.read_text()
    assert "warning" not in log.read_text()
    assert time.monotonic() - began < 60
