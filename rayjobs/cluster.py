"""Join the Ray cluster a job was submitted to, or start a local one for the job's lifetime."""

from __future__ import annotations

import logging
import os
import sys


def connect(job: str, *, dashboard: bool = False) -> None:
    """Connect to the cluster in RAY_ADDRESS (`ray job submit` sets it), or start one on this machine.

    Does nothing when already connected. A local cluster has the machine's CPUs and GPUs and asks every client
    for Ray's token; `dashboard` serves its dashboard on loopback and prints the address.
    """
    # Settings of the driver alone: no usage report, no accelerator warning, and patience on a small busy machine.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # before the import: Ray reads it once, on loading
    import ray

    if ray.is_initialized():
        return
    if address:
        ray.init(address=address, log_to_driver=True)
        return
    context = ray.init(
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
        log_to_driver=True,
    )
    if dashboard:
        print(f"[{job}] Ray dashboard: http://{context.dashboard_url}", file=sys.stderr)
