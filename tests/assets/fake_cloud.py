"""cluster.yaml on one machine: its node types, its autoscaler, but every node is a raylet here (Ray's fake provider)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import yaml

from tests.assets.ray_head import ROOT, Head, free_port, ray_head

HEAD_ID = "f" * 51 + "00000"
HEAD_TYPE = "ray.head.default"
"""The fake provider calls every head's type so."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


def fake_config(
    gcs_port: int, *, cpus: int, idle_seconds: float, path: str = "cluster.yaml"
) -> dict[str, Any]:
    """Return a cluster file with its node types, labels, priorities and limits, on machines of `cpus` CPUs made of nothing.

    A node starts a process for each of its CPUs, so the real counts would drown two cores; GPUs are mere counts.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    for node in config["available_node_types"].values():
        node["node_config"] = {}
        node["resources"] = {name: min(count, cpus) for name, count in node["resources"].items()}
    head = config["available_node_types"].pop(config["head_node_type"])
    config["available_node_types"][HEAD_TYPE] = {**head, "max_workers": 0}
    return {
        **copy.deepcopy(config),
        "head_node_type": HEAD_TYPE,
        "idle_timeout_minutes": idle_seconds / 60,
        # `external` and not `fake_multinode`: for the latter autoscaler v2 looks for a file that is not in the wheel.
        "provider": {
            "type": "external", "module": PROVIDER, "launch_multiple": True, "head_node_id": HEAD_ID,
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{gcs_port}",
        },
        "auth": {}, "file_mounts": {}, "cluster_synced_files": [], "rsync_exclude": [], "rsync_filter": [],
        **{name: [] for name in COMMANDS},
    }  # fmt: skip


@contextlib.contextmanager
def fake_cloud(directory: Any, *, cpus: int = 2, idle_seconds: float = 6.0) -> Iterator[Head]:
    """Start the head of cluster.yaml with its autoscaler; workers come as they are asked for."""
    port = free_port()
    file = directory / "fake.yaml"
    file.write_text(yaml.safe_dump(fake_config(port, cpus=cpus, idle_seconds=idle_seconds)))
    autoscaler = {
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }  # fmt: skip
    options = ("--num-cpus=0", "--labels=synthscale.io/pool=head", f"--autoscaling-config={file}")
    with ray_head(*options, port=port, **autoscaler) as head:
        yield head
