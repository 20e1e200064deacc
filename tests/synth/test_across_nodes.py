"""An engine whose devices lie on several nodes: reserved together under a name that says what for, and given back.

The devices are counted, not there: what vLLM does with them can only be seen on GPUs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from synth.ledger import open_synthetic
from tests.assets.ray_head import closed_by_a_token

REPOSITORY = Path(__file__).parents[2]

DRIVER = """
import json, sys, threading, time
import ray, ray.util
from synth.config import RephraseConfig
from synth.job import rephrase_corpus

seen, over = {}, threading.Event()

def look():
    while not over.wait(0.1):
        for group in ray.util.placement_group_table().values():
            nodes = set(group["bundles_to_node_id"].values())
            if group["state"] == "CREATED":
                seen[group["name"]] = (len(group["bundles"]), len(nodes))

ray.init(log_to_driver=False)
thread = threading.Thread(target=look)
thread.start()
rephrase_corpus(RephraseConfig.model_validate_json(sys.argv[1]))
over.set()
thread.join()
states = [group["state"] for group in ray.util.placement_group_table().values()]
print(json.dumps({"seen": seen, "states": states}))
"""


@pytest.fixture
def two_nodes(tmp_path):
    """Start a head without devices and two nodes of one each."""
    from ray.cluster_utils import Cluster

    with closed_by_a_token(tmp_path):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1)
        yield cluster
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_its_devices_are_reserved_together_by_name_and_given_back(two_nodes, fake_config):
    across = {"across_nodes": True, "tensor_parallel": 2, "gpus_per_engine": 2, "cpus_per_engine": 1}
    config = fake_config({"latency_seconds": 0.2}, placement=across)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, config.model_dump_json()], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=240, env=os.environ | {"RAY_ADDRESS": two_nodes.address, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["seen"] == {f"rephrase_corpus {config.name}: engine 0": [2, 2]}, "two devices on two nodes"
    assert set(told["states"]) == {"REMOVED"}
    parts, manifest = open_synthetic(config.root, config.name)
    assert parts
    assert manifest["kept"] > 0
