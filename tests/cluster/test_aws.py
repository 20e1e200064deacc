"""cluster.yaml through Ray's own AWS provider, against a stand-in for Amazon's servers: what it asks them for."""

import copy
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

pytestmark = pytest.mark.slow

CLUSTER = Path(__file__).parent.parent.parent / "cluster.yaml"


@pytest.fixture(scope="module")
def amazon(tmp_path_factory):
    """Serve EC2 and IAM with the two profiles the file asks for; keys go to a home of the tests' own.

    One server for all tests: Ray keeps its clients, and their address with them, for as long as the process lives.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-west-2", "HOME": str(home),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        iam = boto3.client("iam")
        for name in ("synthscale-head", "synthscale-worker"):
            iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
            iam.create_instance_profile(InstanceProfileName=name)
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        yield boto3.client("ec2")
    server.stop()


@pytest.fixture(scope="module")
def config(amazon):
    """Return cluster.yaml as Ray's AWS provider completes it: key pair, subnets, security groups."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    config = yaml.safe_load(CLUSTER.read_text())
    # The stand-in knows no image by its parameter's name.
    image = amazon.describe_images()["Images"][0]["ImageId"]
    for node in config["available_node_types"].values():
        assert node["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/")
        node["node_config"]["ImageId"] = image
    return bootstrap_aws(prepare_config(config))


def started(amazon, config, node_type):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    node_config = copy.deepcopy(config["available_node_types"][node_type]["node_config"])
    (made,) = provider.create_node(
        node_config, {"ray-node-name": node_type, "ray-user-node-type": node_type}, 1
    )
    (reservation,) = amazon.describe_instances(InstanceIds=[made])["Reservations"]
    return reservation["Instances"][0]


@pytest.mark.parametrize(
    ("node_type", "machine", "lifecycle", "profile"),
    [
        ("head", "m7i.2xlarge", None, "synthscale-head"),
        ("data-spot", "m7i.8xlarge", "spot", "synthscale-worker"),
        ("data", "m7i.8xlarge", None, "synthscale-worker"),
        ("generate-spot", "g6e.4xlarge", "spot", "synthscale-worker"),
        ("train-spot", "p5.48xlarge", "spot", "synthscale-worker"),
        ("train", "p5.48xlarge", None, "synthscale-worker"),
    ],
)
def test_a_pools_machines_are_asked_for_as_the_file_says(
    amazon, config, node_type, machine, lifecycle, profile
):
    found = started(amazon, config, node_type)
    assert (found["InstanceType"], found.get("InstanceLifecycle")) == (machine, lifecycle)
    assert found["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
    (group,) = amazon.describe_security_groups(GroupIds=[found["SecurityGroups"][0]["GroupId"]])[
        "SecurityGroups"
    ]
    open_to_all = [
        (rule["FromPort"], rule["ToPort"])
        for rule in group["IpPermissions"] if any(each["CidrIp"] == "0.0.0.0/0" for each in rule["IpRanges"])
    ]  # fmt: skip
    assert open_to_all == [(22, 22)], "nothing but SSH is reached from outside"
