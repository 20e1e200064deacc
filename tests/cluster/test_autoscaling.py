"""cluster.yaml's autoscaler, truly run: nodes come for a study's tasks, one dies and is replaced, all go when idle."""

import json
import re
import subprocess
import sys

import pytest

from tests.assets.fake_cloud import fake_cloud
from tests.assets.ray_head import ROOT, wait_until
from tests.assets.study_results import results_of
from tests.cluster.studies import data_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cloud(tmp_path):
    with fake_cloud(tmp_path) as head:
        yield head


@pytest.fixture
def undisturbed(tmp_path):
    """Return the root of the same study, run on this machine alone."""
    root = tmp_path / "undisturbed"
    command = [sys.executable, "-m", "rayjobs.run_study", *data_study(root, gpus=0, beside=True)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return root


def test_nodes_come_work_die_are_replaced_and_go_and_the_study_is_the_same(undisturbed, cloud, tmp_path):
    root = tmp_path / "study"
    seen, groups = set(), set()

    def pools():
        seen.update(cloud.raylets())
        groups.update(
            row["name"]
            for row in json.loads(cloud.get("/api/v0/placement_groups"))["data"]["result"]["result"]
        )
        return {name.split("/")[0] for name in cloud.raylets()}

    assert pools() == {"head"}
    job = cloud.submit_detached("rayjobs.run_study", *data_study(root, gpus=1, beside=True), upload=False)

    def working():
        pools()
        status = cloud.status(job)
        assert status in ("PENDING", "RUNNING", "SUCCEEDED"), cloud.logs(job)[-4000:]
        return status != "SUCCEEDED"

    def finished_parts():
        assert working(), "it was over before the node was killed"
        return len(list(root.glob("synthetic/*/ledger/*.json")))

    wait_until(lambda: finished_parts() >= 1, 150, lambda: cloud.logs(job)[-3000:])
    (victim,) = [name for name in cloud.raylets() if name.startswith("generate-spot/")]
    cloud.raylets()[victim].kill()
    wait_until(lambda: not working(), 150, lambda: cloud.logs(job)[-3000:])
    generators = {name for name in seen if name.startswith("generate")}
    assert len(generators) == 2, "the node that died was replaced by another one"
    assert {name.split("/")[0] for name in seen} == {"head", "data-spot", "generate-spot"}, (
        "no pool but those needed"
    )
    wait_until(lambda: pools() == {"head"}, 60)
    assert any(
        re.fullmatch(r"\d/\d (build|rephrase)_corpus \w+: can it be had\?", name) for name in groups
    ), groups
    assert re.search(r"rephrase_corpus (beside|rephrased): .* beside rephrase\.", cloud.logs(job)), (
        "on a cluster without a node both sets were begun at once"
    )
    assert results_of(root) == results_of(undisturbed)
    assert len(results_of(root)) > 10
