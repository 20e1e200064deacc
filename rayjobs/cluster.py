"""Join the Ray cluster a job was submitted to, or start a local one for the job's lifetime; see that a step fits it."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from rayjobs.capacity import check_capacity, idle_gpus, need_of
from rayjobs.metadata import PROGRESS, STEP, STUDY, JobPage
from synth import progress
from synth.config import JobConfig
from synth.errors import UserError, first_line

STARTS = 3
"""Times a local Ray is started: a node gives itself 30 s, which a cold or busy machine can miss once."""
ANSWER_SECONDS = 20.0
"""Longest a cluster is waited for that does not answer, such as a head that starts again."""


def connect(step: str, config: JobConfig, *, dashboard: bool = False) -> None:
    """Connect to the cluster in RAY_ADDRESS (`ray job submit` sets it), or start one on this machine, for a step.

    It is started where RAY_ADDRESS is not set or `local`; what another cluster of this machine has left is not looked at.

    Joins once a process; each step's name and progress are then shown on the job's page and as metrics. A local
    cluster has the machine's CPUs and GPUs and asks every client for Ray's token; `dashboard` serves its dashboard on
    loopback and prints the address; its processes take a good part of a small machine.

    Raises UserError when the study root is relative on a cluster, when no cluster answers at the address, when no local Ray comes up, or when the cluster can never hold
    what the step's placement asks for.
    """
    _check_root(step, config.root)
    _join(step, dashboard)
    JobPage().put(**{STUDY: config.root, STEP: step, PROGRESS: "begun"})
    if need := need_of(config):
        check_capacity(step, need, may_grow=_address() is not None)
    import ray

    if sentence := idle_gpus(config, ray.cluster_resources().get("GPU", 0)):
        print(f"[{step}] warning: {sentence}", file=sys.stderr, flush=True)


def _check_root(step: str, root: str) -> None:
    """Refuse a relative root on a cluster: each of its processes has a working directory of its own."""
    if _address() is not None and "://" not in root and not os.path.isabs(root):
        raise UserError(
            f"{step}: root = {root!r} is relative, and every process of a cluster runs in a directory of its own: give a bucket, or an "
            "absolute path that all nodes see."
        )


def _address() -> str | None:
    """Return the address of the cluster to join; None when one is to be started."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def _join(step: str, dashboard: bool) -> None:
    # Settings of the driver alone: no usage report, no accelerator warning.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = _address()
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # before the import: Ray reads it once, on loading
    import ray

    if ray.is_initialized():
        return
    if address is not None:
        _wait_for_answer(address)
        ray.init(address=address, log_to_driver=True)
    else:
        context = _start_local(step, dashboard)
        if dashboard:
            print(f"[{step}] Ray dashboard: http://{context.dashboard_url}", file=sys.stderr)
    _show_progress()


def _wait_for_answer(address: str) -> None:
    """Return when something answers at an address: Ray itself asks for two minutes, and ends in a traceback."""
    from ray._common.utils import get_ray_address_file
    from ray._private.services import get_ray_address_from_environment

    remedy = "start it, correct the address, or set RAY_ADDRESS=local to start one on this machine"
    where = "RAY_ADDRESS"
    if address == "auto":
        try:
            address = get_ray_address_from_environment(address, None)
        except ConnectionError:
            raise UserError(f"RAY_ADDRESS = auto: no Ray cluster runs on this machine: {remedy}.") from None
        where = f"RAY_ADDRESS = auto, {get_ray_address_file(None)}"
        remedy = f"run `ray stop` or delete that file if its cluster is gone; {remedy}"
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            at = urlsplit(address if "://" in address else f"//{address}")
            with socket.create_connection((at.hostname or "", at.port or 0), ANSWER_SECONDS):
                return
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) or time.monotonic() > deadline:
                raise UserError(
                    f"{where}: no Ray cluster answers at {address} ({first_line(error)}): {remedy}."
                ) from None
        time.sleep(1)


def _show_progress() -> None:
    from synth.job import publish
    from synth.telemetry import of_progress

    page = JobPage()
    progress.listen(page.hear)
    progress.listen(lambda step, _: publish(of_progress(step)))


def _start_local(step: str, dashboard: bool) -> Any:
    import ray

    # Ray warns of four processes a core, which one training lane and its helpers are on a machine of two.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(4, os.cpu_count() or 1)))

    for attempt in range(1, STARTS + 1):
        try:
            return ray.init(
                address="local",  # else it joins what a cluster that was killed has left an address of
                # Without a dashboard Ray Train's watcher warns every second that it cannot ask it who is alive.
                logging_config=None if dashboard else ray.LoggingConfig(encoding="TEXT", log_level="ERROR"),
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                logging_level=logging.WARNING,
                log_to_driver=True,
            )
        except (
            Exception
        ) as error:  # Ray raises no narrower type here; everything but the one case goes on as it is
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            print(f"[{step}] Ray did not start within its 30 seconds ({attempt}/{STARTS})", file=sys.stderr)
    raise UserError(
        f"Ray did not start within the 30 seconds it gives itself, {STARTS} times over: the machine is too busy; run "
        "the job again, or set RAY_ADDRESS to a cluster that is up."
    )
