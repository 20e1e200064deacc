"""What steps need of a cluster at once, and whether given nodes can hold it."""

import math

import pytest

from rayjobs.capacity import idle_gpus, most_that_fit, need_of
from rayjobs.study import StudyConfig, steps_of
from synth.config import CorpusConfig, RephraseConfig
from tests.cluster.studies import whole_study
from train.placement import TrainPlacement
from tune.config import LawsConfig


def rephrase(**placement):
    return RephraseConfig.model_validate(
        {"corpus": "natural", "recipes": ["hq"], "engine": {"model": "m"}, "placement": placement}
    )


def test_a_rephrasing_needs_one_engine_however_many_are_asked_for():
    need = need_of(rephrase(engines=64, cpus_per_engine=8, gpus_per_engine=1))
    assert (need.count, dict(need.bundle)) == (1, {"CPU": 8, "GPU": 1})


def test_an_engine_across_nodes_needs_its_devices_together_but_not_on_one_node():
    placement = {"tensor_parallel": 8, "pipeline_parallel": 2, "gpus_per_engine": 16, "cpus_per_engine": 32}
    nodes = [{"CPU": 192, "GPU": 8}] * 2
    on_one_node, across = (need_of(rephrase(**placement, across_nodes=choice)) for choice in (False, True))
    assert most_that_fit(on_one_node.bundle, nodes) < on_one_node.count == 1
    assert most_that_fit(across.bundle, nodes) == across.count == 16
    assert most_that_fit(across.bundle, nodes[:1]) < across.count
    assert str(across).startswith("an engine across nodes takes 16 x 2 CPU + 1 GPU at once")


def test_an_engine_that_no_node_holds_is_told_how_to_lie_on_several():
    need = need_of(rephrase(tensor_parallel=16, gpus_per_engine=16))
    assert need.remedy == "or set placement.across_nodes = true, if two nodes together have them"
    assert need_of(rephrase(gpus_per_engine=1)).remedy == ""


def test_training_needs_all_workers_of_one_lane_together():
    study = StudyConfig.model_validate(whole_study("root", lanes=8, workers=3))
    needs = {step.job.name: need_of(step.config) for step in steps_of(study)}
    for job in ("pretrain_models", "search_mixture"):
        assert (needs[job].count, dict(needs[job].bundle)) == (3, {"CPU": 1})
    assert needs["fit_laws"] is None
    assert needs["write_report"] is None


def test_a_task_needs_a_cpu_and_a_fit_nothing():
    corpus = CorpusConfig.model_validate({"sources": [{"kind": "docstrings", "packages": ["json"]}]})
    assert dict(need_of(corpus).bundle) == {"CPU": 1}
    assert need_of(LawsConfig(plan="grid")) is None


def test_gpus_that_a_step_leaves_idle_are_told():
    assert idle_gpus(rephrase(), 8.0) == (
        "placement.gpus_per_engine = 0, so it computes on CPUs, and the cluster has 8 GPUs"
    )
    assert idle_gpus(rephrase(), 0.0) is None
    assert idle_gpus(rephrase(gpus_per_engine=1), 8.0) is None
    assert idle_gpus(LawsConfig(plan="grid"), 8.0) is None


@pytest.mark.parametrize(
    ("bundle", "nodes", "fit"),
    [
        ({"CPU": 1}, [{"CPU": 0}], 0),
        ({"CPU": 1}, [{"CPU": 2}, {"CPU": 3.0, "GPU": 1}], 5),
        ({"CPU": 2}, [{"CPU": 3}, {"CPU": 3}], 2),  # six CPUs, but a worker is on one node
        ({"CPU": 1, "GPU": 0.25}, [{"CPU": 8, "GPU": 1}], 4),
        ({"CPU": 1, "GPU": 0.1}, [{"CPU": 99, "GPU": 0.3}], 3),  # 0.3 / 0.1 < 3 in floating point
        ({"GPU": 16}, [{"CPU": 192, "GPU": 8}] * 4, 0),
        ({}, [], math.inf),
    ],
)
def test_bundles_that_fit(bundle, nodes, fit):
    assert most_that_fit(bundle, nodes) == fit


def test_placements_of_training_are_all_understood():
    assert {"workers_per_lane", "cpus_per_worker", "gpus_per_worker"} <= TrainPlacement.model_fields.keys()
