"""A Ray head node of a test's own: on loopback, closed by a token, its jobs submitted as a person would submit them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
TOKEN = "a-token-of-this-test-only-0123456789abcdef"


@dataclass(frozen=True)
class Head:
    """A head node that is up."""

    directory: Path
    env: dict[str, str]
    """Environment of a client that holds the token."""
    dashboard: str
    """Address of the dashboard and its job server."""
    metrics_port: int

    def ray(self, *words: str, timeout: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the `ray` command against this cluster, from a directory that does not hold the project."""
        return subprocess.run(
            [BIN / "ray", *words], env=self.env | env, cwd=self.directory, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def submit(
        self, *command: str, options: Sequence[str] = (), upload: bool = True, timeout: float = 1400
    ) -> subprocess.CompletedProcess[str]:
        """Submit `python -m <command>` from the checkout and follow it to its end.

        Without `upload` the job runs from the checkout itself: nodes on one machine share the directory that uploads are
        unpacked in, and each unpacks anew, under the feet of the driver.
        """
        source = ("--working-dir", str(ROOT))
        if not upload:
            source = ("--runtime-env-json", json.dumps({"env_vars": {"PYTHONPATH": str(ROOT)}}))
        return self.ray("job", "submit", *source, *options, "--", "python", "-m", *command, timeout=timeout)

    def submit_detached(self, *command: str, options: Sequence[str] = (), upload: bool = True) -> str:
        """Submit and leave; return the submission id."""
        done = self.submit(*command, options=("--no-wait", *options), upload=upload)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(re.findall(r"Job '([\w-]+)' submitted successfully", done.stdout)[0])

    def job(self, submission: str) -> dict[str, object]:
        """Return what the job server knows of a job."""
        return json.loads(self.get(f"/api/jobs/{submission}"))

    def status(self, submission: str) -> str:
        """Return a job's status."""
        return str(self.job(submission)["status"])

    def logs(self, submission: str) -> str:
        """Return what a job has said so far."""
        return self.ray("job", "logs", submission).stdout

    def get(self, path: str) -> str:
        """Return the answer of the dashboard to a client that shows the token."""
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())

    def raylets(self) -> dict[str, psutil.Process]:
        """Return the nodes that are processes of this machine: `node type/node id` -> process."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                    env = process.environ()
                    node = env.get("RAY_OVERRIDE_NODE_ID_FOR_TESTING", str(process.pid))
                    found[f"{env.get('RAY_NODE_TYPE_NAME', 'head')}/{node[-5:]}"] = process
        return found

    def processes(self) -> list[psutil.Process]:
        """Return everything that was started under this cluster's token."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAY_AUTH_TOKEN_PATH") == self.env["RAY_AUTH_TOKEN_PATH"]:
                    found.append(process)
        return found


@contextlib.contextmanager
def ray_head(*options: str, port: int | None = None, **env: str) -> Iterator[Head]:
    """Start a head node with these options of `ray start` and environment; take everything down at the end."""
    directory = Path(tempfile.mkdtemp(prefix="ray-"))  # short: unix socket paths may have 107 characters
    token, dashboard, metrics = directory / "token", free_port(), free_port()
    token.write_text(TOKEN)
    token.chmod(0o600)
    address = f"http://127.0.0.1:{dashboard}"
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    own |= {"PATH": f"{BIN}:{own['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    head = Head(directory, own | {"RAY_API_SERVER_ADDRESS": address}, address, metrics)
    with (directory / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port or free_port()}",
             f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={directory}",
             f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={free_port()}", *options],
            env=own | env, cwd=directory, start_new_session=True, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until(lambda: status_of(f"{address}/api/version") in (200, 401, 403), seconds=120)
        # The dashboard answers before the node's agent, which starts the jobs, is there.
        wait_until(
            lambda: head.ray("job", "submit", "--", "python", "-c", "pass").returncode == 0, seconds=180
        )
        yield head
    finally:
        # By descent too: what renames itself, as Ray's agents do, loses its environment.
        left = [process, *psutil.Process(process.pid).children(recursive=True), *head.processes()]
        for each in left:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                each.kill()
        process.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def closed_by_a_token(directory: Path) -> Iterator[None]:
    """Close the clusters that this process and its children start by a token.

    Ray reads its mode once, on loading, which may have been long ago, so it is told to read it again.
    """
    from ray._private.authentication_test_utils import reset_auth_token_state

    token = directory / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        reset_auth_token_state()
        yield
    reset_auth_token_state()


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(url: str) -> int | None:
    """Return the HTTP status a stranger gets, None when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_until(condition: Callable[[], object], seconds: float, said: Callable[[], str] = lambda: "") -> None:
    """Wait for something to become true; fail with what `said` returns when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s {said()}"
        time.sleep(0.3)
