import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from synth.engines import guard

REPOSITORY = Path(__file__).parents[2]
PARENT = """
import subprocess, sys, time
from synth.engines.guard import Guard

guard = Guard()
with guard.watching():
    child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; sleep 600"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    print(child.pid, int(child.stdout.readline()), flush=True)
    if sys.argv[1] == "while starting":
        time.sleep(600)
if sys.argv[1] == "released":
    guard.release()
time.sleep(600)
"""


def children_after_a_kill(moment):
    """Start a parent with a child and a grandchild, SIGKILL the parent, return the two that are still there."""
    command = [sys.executable, "-c", PARENT, moment]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    started = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    time.sleep(1.0)
    parent.kill()
    parent.wait()
    _, left = psutil.wait_procs(started, timeout=3)
    for process in left:
        process.kill()
    return left


@pytest.mark.parametrize("moment", ["while starting", "running"])
def test_what_a_killed_process_had_started_goes_with_it(moment):
    assert children_after_a_kill(moment) == []


def test_what_was_released_lives_on():
    assert len(children_after_a_kill("released")) == 2


@pytest.mark.parametrize(("began", "lives"), [(guard.began_at, False), (lambda _: "1", True)])
def test_a_process_that_has_the_number_of_one_that_ended_is_let_be(monkeypatch, began, lives):
    monkeypatch.setattr(guard, "began_at", began)
    watch = guard.Guard()
    with watch.watching():
        child = subprocess.Popen(["sleep", "600"])
    watch.kill()
    try:
        assert (child.poll() is None) == lives if lives else child.wait(3) == -9
    finally:
        child.kill()
        child.wait()
