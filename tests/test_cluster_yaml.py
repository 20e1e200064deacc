"""cluster.yaml is accepted by Ray's own loader and validators, and keeps the promises its comments make."""

from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture(scope="module")
def config():
    return yaml.safe_load(CLUSTER.read_text())


def test_ray_fills_in_and_validates_it(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(config)
    validate_config(filled)
    assert set(filled["available_node_types"]) >= {"head", "data", "generate", "train"}


def test_ray_refuses_it_when_a_key_is_misspelt(config):
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config({**config, "max_worker": 3}))


def test_workers_come_from_nothing_and_the_head_takes_no_work(config):
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    workers = {name: node for name, node in types.items() if name != config["head_node_type"]}
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers.values())
    assert sum(node["max_workers"] for node in workers.values()) <= config["max_workers"]


def test_training_has_a_spot_pool_and_an_on_demand_fallback(config):
    training = [
        n for n in config["available_node_types"].values() if n["labels"]["synthscale.io/pool"] == "train"
    ]
    markets = {
        node["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        for node in training
    }
    assert markets == {"spot", "on-demand"}


def test_it_is_closed_to_strangers(config):
    starts = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 1
    assert "RAY_AUTH_MODE=token" in starts[0]
    assert "--dashboard-host=127.0.0.1" in starts[0]
    workers = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert all("RAY_AUTH_MODE=token" in command for command in workers)
