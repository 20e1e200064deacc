"""cluster.yaml and its variants are accepted by Ray's own loaders and validators, and keep what their comments promise."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from synth.plan import GPU_POOLS, OFF_THE_GPU_POOLS, POOL_LABEL

ROOT = Path(__file__).parent.parent
CLOUDS = ["cluster.yaml", "deploy/gcp.yaml"]
MARKET = {
    "cluster.yaml": lambda node: node.get("InstanceMarketOptions", {}).get("MarketType"),
    "deploy/gcp.yaml": lambda node: "spot" if node.get("scheduling", {}).get("provisioningModel") == "SPOT" else None,
}  # fmt: skip


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


@pytest.fixture(params=CLOUDS)
def cloud(request):
    """Return (path, contents) of a cluster file for `ray up`."""
    return request.param, read(request.param)


@pytest.fixture
def kube_cluster():
    """Return the RayCluster manifest."""
    (cluster,) = [each for each in yaml.safe_load_all((ROOT / "deploy/kuberay/raycluster.yaml").read_text()) if each["kind"] == "RayCluster"]  # fmt: skip
    return cluster


@pytest.fixture
def kube_types(kube_cluster):
    """Return the node types Ray's autoscaler makes of the manifest; it validates them on the way."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    return _derive_autoscaling_config_from_ray_cr(kube_cluster)


def workers(config):
    return {name: node for name, node in config["available_node_types"].items() if name != config["head_node_type"]}  # fmt: skip


def test_ray_fills_in_and_validates_it(cloud):
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(cloud[1])
    validate_config(filled)
    assert set(filled["available_node_types"]) >= {"head", "data-spot", "generate-spot", "train-spot"}


def test_ray_refuses_it_when_a_key_is_misspelt(cloud):
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config({**cloud[1], "max_worker": 3}))


def test_workers_come_from_nothing_and_the_head_takes_no_work(cloud):
    _, config = cloud
    assert config["available_node_types"][config["head_node_type"]]["resources"]["CPU"] == 0
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers(config).values())
    assert sum(node["max_workers"] for node in workers(config).values()) <= config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 10


def test_every_pool_has_spot_machines_first_and_the_same_on_demand(cloud):
    path, config = cloud
    for name, node in workers(config).items():
        spot, on_demand = (
            config["available_node_types"][f"{name.removesuffix('-spot')}{end}"] for end in ("-spot", "")
        )
        assert spot["priority"] > on_demand.get("priority", 0)
        assert (spot["resources"], spot["labels"]) == (on_demand["resources"], on_demand["labels"])
        assert MARKET[path](node["node_config"]) == ("spot" if name.endswith("-spot") else None)


@pytest.mark.parametrize(
    ("demand", "spot_works", "chosen"),
    [
        ({"CPU": 1}, 1.0, "data-spot"),
        ({"CPU": 1}, 0.0, "data"),
        ({"CPU": 8, "GPU": 1}, 1.0, "generate-spot"),
        ({"CPU": 8, "GPU": 8}, 1.0, "train-spot"),
        ({"CPU": 8, "GPU": 8}, 0.0, "train"),
        ({"CPU": 8, "GPU": 8}, 0.5, "train"),  # has failed and not recovered yet
    ],
)
def test_rays_scheduler_picks_the_pool_spot_first_and_falls_back(cloud, demand, spot_works, chosen):
    """`spot_works` is the scheduler's score of a type after its last launch: 0 has just failed, 1 has not."""
    health = {name: spot_works for name in workers(cloud[1]) if name.endswith("-spot")}
    assert best_pool(cloud[1], demand, health) == chosen


def best_pool(config, demand, health, *, without=()):
    """Return the node type Ray's autoscaler would add next for a task; one without GPUs keeps off the GPU pools."""
    from ray._private.label_utils import validate_label_selector
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, ResourceRequestSource, SchedulingNode
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    assert validate_label_selector(OFF_THE_GPU_POOLS) is None
    selector = (POOL_LABEL, LabelSelectorOperator.LABEL_OPERATOR_NOT_IN, list(GPU_POOLS))
    request = ResourceRequestUtil.make(demand, label_selectors=None if "GPU" in demand else [[selector]])
    types = AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs()
    names = [name for name in workers(config) if name not in without]
    nodes = [SchedulingNode.from_node_config(types[name], "QUEUED", "WORKER") for name in names]
    best, _, _ = ResourceDemandScheduler._sched_best_node(
        [request], nodes, ResourceRequestSource.PENDING_DEMAND, health, health
    )
    return best and best.node_type


def test_it_is_closed_to_strangers(cloud):
    _, config = cloud
    starts = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 1
    assert "RAY_AUTH_MODE=token" in starts[0]
    assert "--dashboard-host=127.0.0.1" in starts[0]
    joins = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert joins
    assert all("RAY_AUTH_MODE=token" in command for command in joins)


def test_no_secret_stands_in_any_of_them():
    for path in [*CLOUDS, *(p.relative_to(ROOT) for p in (ROOT / "deploy").rglob("*.yaml"))]:
        text = (ROOT / path).read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret|BEGIN [A-Z ]*PRIVATE KEY|AIza[\w-]{30}", text), (
            path
        )


def test_the_clouds_and_kubernetes_offer_the_same_pools(kube_types):
    described = {
        path: {
            name: (node["labels"], node["resources"]["CPU"], node["resources"].get("GPU", 0), node["max_workers"], node.get("priority", 0))
            for name, node in workers(config).items()
        }
        for path, config in [(path, read(path)) for path in CLOUDS] + [("kuberay", kube_types)]
    }  # fmt: skip
    assert described["cluster.yaml"] == described["deploy/gcp.yaml"] == described["kuberay"]


def test_kubernetes_takes_the_same_version_and_a_head_without_work(kube_cluster, kube_types):
    spec = kube_cluster["spec"]
    pinned = re.search(r"ray\[.*\]==([\d.]+)", (ROOT / "pyproject.toml").read_text())[1]
    assert spec["rayVersion"] == pinned
    assert spec["authOptions"] == {"mode": "token"}
    assert (spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]["version"]) == (True, "v2")
    assert kube_types["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    assert kube_types["idle_timeout_minutes"] == read("cluster.yaml")["idle_timeout_minutes"]


def test_kubernetes_pods_are_complete(kube_cluster):
    """What the operator's CRD requires, and what a pod cannot run without."""
    spec = kube_cluster["spec"]
    assert (kube_cluster["apiVersion"], bool(kube_cluster["metadata"]["name"])) == ("ray.io/v1", True)
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert group["rayStartParams"].keys() <= {"num-cpus", "dashboard-host", "metrics-export-port"}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys() & container["resources"][
            "limits"
        ].keys()
        mounted = {each["name"] for each in container.get("volumeMounts", [])}
        assert mounted == {each["name"] for each in pod.get("volumes", [])}
    for group in spec["workerGroupSpecs"]:
        gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        assert (gpus is not None) == (group["labels"]["synthscale.io/pool"] != "data")
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        tolerated = {each["key"] for each in group["template"]["spec"].get("tolerations", [])}
        assert ("synthscale.io/spot" in tolerated) == group["groupName"].endswith("-spot")


def test_the_ray_job_names_the_cluster_and_a_job_that_exists(kube_cluster):
    job = read("deploy/kuberay/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["clusterSelector"] == {"ray.io/cluster": kube_cluster["metadata"]["name"]}
    assert spec["shutdownAfterJobFinishes"] is False, "KubeRay refuses true together with clusterSelector"
    module = re.match(r"python -m (rayjobs\.\w+) ", spec["entrypoint"])[1]
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
    (submitter,) = spec["submitterPodTemplate"]["spec"]["containers"]
    assert (
        submitter["image"]
        == kube_cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    )


def test_the_network_policy_lets_in_the_pod_that_submits():
    (policy,) = [each for each in yaml.safe_load_all((ROOT / "deploy/kuberay/raycluster.yaml").read_text()) if each["kind"] == "NetworkPolicy"]  # fmt: skip
    labels = read("deploy/kuberay/rayjob.yaml")["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    (rule,) = policy["spec"]["ingress"]
    admitted = [peer["podSelector"]["matchLabels"] for peer in rule["from"] if "podSelector" in peer]
    assert any(peer.items() <= labels.items() for peer in admitted)
    assert "ray.io/cluster" not in labels, "the operator would take it for a pod of the cluster"


def test_the_pools_that_tasks_without_a_gpu_keep_off_are_the_gpu_pools():
    pools = {node["labels"][POOL_LABEL]: node for node in workers(read("cluster.yaml")).values()}
    assert set(GPU_POOLS) == {name for name, node in pools.items() if "GPU" in node["resources"]}
    assert set(pools) - set(GPU_POOLS), "they need somewhere to run"


def test_rays_scheduler_keeps_such_tasks_off_the_gpu_pools_when_the_data_pool_is_full(cloud):
    assert best_pool(cloud[1], {"CPU": 1}, {}, without=("data-spot", "data")) is None


# --- a node's own disks ----------------------------------------------------------------------------------------

ROOT_DISK = "/dev/nvme0n1 Amazon Elastic Block Store"
OWN_DISK = "/dev/nvme{}n1 Amazon EC2 NVMe Instance Storage"
TOOLS = {
    "mountpoint": 'grep -qx "$2" "$HERE/mounted" 2>/dev/null',
    "lsblk": 'if [ "$1" = -dnpo ]; then cat "$HERE/disks"; else cat "$HERE/by_the_image"; fi',
    "sudo": 'echo "$@" >> "$HERE/did"; [ "$1" != mount ] || echo "${@: -1}" >> "$HERE/mounted"',
    "mdadm": "true",
}  # fmt: skip


@pytest.fixture
def machine(tmp_path):
    """Return a function that sets a node up as the script sees it and tells what the script did as root."""
    for name, text in TOOLS.items():
        tool = tmp_path / name
        tool.write_text(f"#!/usr/bin/env bash\n{text}\n")
        tool.chmod(0o755)

    def run(disks, by_the_image=""):
        (tmp_path / "disks").write_text("\n".join(disks) + "\n")
        (tmp_path / "by_the_image").write_text(by_the_image)
        (tmp_path / "did").write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run([ROOT / "deploy/local_disk.sh"], check=True, env={"PATH": path, "HERE": str(tmp_path)})
        return (tmp_path / "did").read_text().splitlines()

    return run


def test_a_node_without_disks_of_its_own_is_left_as_it_is(machine):
    assert machine([ROOT_DISK]) == []
    assert machine(["/dev/nvme0n1 nvme_card-pd"]) == []


@pytest.mark.parametrize("one", [OWN_DISK.format(1), "/dev/nvme1n1 nvme_card "])
def test_one_disk_is_formatted_and_mounted_once(machine, one):
    did = machine([ROOT_DISK, one])
    assert did[1:] == [
        "mkfs.ext4 -q -F -m 0 -E nodiscard /dev/nvme1n1", "mount -o noatime /dev/nvme1n1 /mnt/local", "chmod 1777 /mnt/local",
    ]  # fmt: skip
    assert machine([ROOT_DISK, one]) == [], "what is mounted is never formatted again"


def test_several_disks_become_one_file_system(machine):
    did = machine([ROOT_DISK, *(OWN_DISK.format(number) for number in range(1, 9))])
    assert did[1].startswith(
        "mdadm --create /dev/md/local --run --force --level=0 --raid-devices=8 /dev/nvme1n1 "
    )
    assert "/dev/nvme0n1" not in " ".join(did)
    assert "mount -o noatime /dev/md/local /mnt/local" in did


def test_disks_the_image_has_mounted_are_not_formatted(machine):
    did = machine([ROOT_DISK, OWN_DISK.format(1)], by_the_image="\n/opt/dlami/nvme\n")
    assert "mount --bind /opt/dlami/nvme /mnt/local" in did
    assert not any("mkfs" in each for each in did)


def test_workers_cache_on_their_own_disks_where_they_have_some(cloud, tmp_path):
    """Runs the very words that start a worker, with a `ray` that tells where its processes would cache."""
    assert cloud[1]["worker_setup_commands"] == ["~/synthscale/deploy/local_disk.sh"]
    (start,) = [command for command in cloud[1]["worker_start_ray_commands"] if "ray start" in command]
    for name, text in {"ray": 'echo "$TMPDIR $HF_HOME"', "mountpoint": "exit ${NONE:-0}"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    told = {}
    for none in ("0", "1"):
        env = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "RAY_HEAD_IP": "head",
            "NONE": none,
        }
        told[none] = subprocess.run(["bash", "-c", start], env=env, capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    assert told == {"0": "/mnt/local /mnt/local/huggingface", "1": ""}
