"""A study on a cluster whose nodes are killed at random moments ends with the artefacts of an undisturbed one."""

import os
import random
import subprocess
import sys
import time

import pytest

from tests.assets.ray_head import ROOT, closed_by_a_token
from tests.assets.study_results import results_of
from tests.cluster.studies import argv_of, whole_study

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("SYNTHSCALE_TEST_KILLS", "4"))
NODES = 3


@pytest.fixture
def cluster(tmp_path):
    """Start a head without CPUs and three nodes of two, closed by a token; every node is a raylet of this machine."""
    from ray.cluster_utils import Cluster

    with closed_by_a_token(tmp_path), pytest.MonkeyPatch.context() as patch:
        # A driver that runs while raylets die writes their fate to its log; the study's own lines are what matters.
        patch.setenv("RAY_health_check_period_ms", "1000")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(NODES):
            cluster.add_node(num_cpus=2)
        yield cluster
        cluster.shutdown()


def study(root):
    made = whole_study(root, latency_seconds=0.1)
    made["pretrain"]["grid"]["placement"] |= {"checkpoint_every_seconds": 2.0, "max_restarts": 20}
    made["search"]["share"]["placement"] |= {"checkpoint_every_seconds": 2.0, "max_restarts": 20}
    return argv_of(made)


def run(root, log, **env):
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "rayjobs.run_study", *study(root)], cwd=ROOT, env=os.environ | env,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def test_killed_nodes_change_nothing_in_the_result(cluster, tmp_path):
    moments, killed = random.Random(0), []
    root, log = tmp_path / "study", tmp_path / "log"
    began, done = (
        time.monotonic(),
        ("synthetic/*/ledger/*.json", "runs/*/record.json", "searches/*/*/trials.jsonl"),
    )
    job = run(root, log, RAY_ADDRESS=cluster.address)
    try:
        while job.poll() is None:
            finished = sum(len(list(root.glob(pattern))) for pattern in done)
            # One node at a time, and only after something new was finished, so that the study gets anywhere.
            if len(killed) < KILLS and finished > (killed[-1] if killed else 0) + moments.randint(1, 6):
                cluster.remove_node(
                    moments.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False
                )
                killed.append(finished)
                time.sleep(moments.uniform(0, 5))
                cluster.add_node(num_cpus=2)
            time.sleep(0.1)
            assert time.monotonic() - began < 1500, log.read_text()[-4000:]
        assert job.returncode == 0, log.read_text()[-6000:]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, 9)
    assert len(killed) == KILLS, f"killed only at {killed}"
    undisturbed = tmp_path / "undisturbed"
    quiet = run(undisturbed, tmp_path / "quiet")
    assert quiet.wait(900) == 0, (tmp_path / "quiet").read_text()[-4000:]
    assert results_of(root) == results_of(undisturbed)
