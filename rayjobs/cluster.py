"""Join the Ray cluster a job was submitted to, or start a local one for the job's lifetime."""

from __future__ import annotations

import logging
import os
import sys


def connect(job: str, *, dashboard: bool = False) -> None:
    """Connect to the cluster in RAY_ADDRESS (`ray job submit` sets it), or start one on this machine.

    Does nothing when already connected. A local cluster has the machine's CPUs and GPUs and listens on loopback
    only; `dashboard` serves its dashboard there and prints the address.
    """
    # Ray's accelerator probing and usage report are noise in a job's log; both are settings of the driver alone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=True)
        return
    context = ray.init(
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        _node_ip_address="127.0.0.1",
        logging_level=logging.WARNING,
        log_to_driver=True,
    )
    if dashboard:
        print(f"[{job}] Ray dashboard: http://{context.dashboard_url}", file=sys.stderr)
