"""The demo study through `ray job submit`, on a cluster with token authentication and the dashboard on."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.timeout(1500)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """Start a head node on loopback; return (environment of a client that holds the token, dashboard address)."""
    directory = Path(tempfile.mkdtemp(prefix="ray-"))  # short: unix socket paths may have 107 characters
    token, port, dashboard = directory / "token", free_port(), free_port()
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"PATH": f"{BIN}:{env['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    token.write_text("a-token-of-this-test-only-0123456789abcdef")
    token.chmod(0o600)
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
         f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={directory}", "--num-cpus=2"],
        env=env, cwd=directory, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_until(lambda: status_of(f"{address}/api/version") in (200, 401, 403), seconds=90)
        client = {**env, "RAY_API_SERVER_ADDRESS": address}
        # The dashboard answers before the node's agent, which starts the jobs, is there.
        wait_until(lambda: submit(client, "this").returncode == 0, seconds=180)
        yield client, address
    finally:
        os.killpg(head.pid, 15)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, 9)
        shutil.rmtree(directory, ignore_errors=True)


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


def submit(env, *command):
    return subprocess.run(
        [BIN / "ray", "job", "submit", "--working-dir", str(ROOT), "--", "python", "-m", *command],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=1400,
    )  # fmt: skip


@pytest.mark.slow
def test_a_stranger_without_the_token_is_turned_away(cluster):
    _, address = cluster
    assert status_of(f"{address}/api/jobs/") in (401, 403)


@pytest.mark.drill
def test_the_demo_study_gives_the_same_numbers_when_submitted_and_resubmitting_it_changes_nothing(
    cluster, shrunk_demo, finished_demo, results_of
):
    env, _ = cluster
    argv, root = shrunk_demo
    done = submit(env, "rayjobs.run_study", *argv)
    assert done.returncode == 0, done.stdout[-4000:]
    assert (root / "report" / "index.html").exists()
    assert f"report: {root}/report/index.html" in done.stdout
    records = {path: path.stat().st_mtime_ns for path in root.glob("runs/*/record.json")}
    assert results_of(root) == results_of(finished_demo)
    again = submit(env, "rayjobs.run_study", *argv)
    assert again.returncode == 0, again.stdout[-4000:]
    assert "write_report report: finished already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in root.glob("runs/*/record.json")} == records


@pytest.mark.slow
def test_a_mistake_fails_the_job_with_its_sentence_in_the_log(cluster, tmp_path):
    env, _ = cluster
    done = submit(env, "rayjobs.fit_laws", "--runs", str(tmp_path / "nothing.csv"))
    assert done.returncode != 0
    assert "nothing.csv" in done.stdout
    assert "Traceback" not in done.stdout
