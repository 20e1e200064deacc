"""Trackers beside metrics.jsonl: refused early where they cannot be used, the same numbers where they can."""

import importlib.util

import pytest
from upath import UPath

from synth.errors import UserError
from tests.assets.packed_set import run_on, write_packed_set
from train.metrics import StepMetrics
from train.placement import TrainPlacement
from train.record import DomainLoss, Evaluation
from train.trackers import Trackers, check_trackers, parameters_of


def line(step, loss):
    return StepMetrics(
        step=step, train_tokens=step * 256, loss_nats_per_token=loss, learning_rate=0.5, gradient_norm=1.5,
        tokens_per_second=100.0, loss_by_source={"natural": 3.75}, mfu_fraction=None, memory_bytes=1024, wall_seconds=2.0,
    )  # fmt: skip


EVALUATION = Evaluation(
    train_tokens=512,
    domains={"web": DomainLoss(loss_nats_per_token=3.5, bits_per_byte=1.25, tokens=10, bytes=40)},
    loss_nats_per_token=3.25,
    macro_loss_nats_per_token=3.5,
    bits_per_byte=1.125,
)


def follow(run, tracker, directory):
    """Two attempts at a run, as the loop tells a tracker of them."""
    first = Trackers(run, TrainPlacement(trackers=(tracker,)), UPath(directory), 0)
    first.add(line(1, 4.0))
    first.close("interrupted")
    second = Trackers(run, TrainPlacement(trackers=(tracker,)), UPath(directory), 1)
    second.add(line(2, None))
    second.add_evaluation(EVALUATION, 2)
    second.close("complete")


@pytest.fixture
def run(tmp_path):
    return run_on(write_packed_set(tmp_path))


def test_what_cannot_be_used_is_refused_before_anything_starts(monkeypatch):
    check_trackers("memory://study", TrainPlacement())
    check_trackers("study", TrainPlacement(trackers=("tensorboard",)))
    with pytest.raises(UserError, match=r"names 'tensorboard' with root = 'memory://study'"):
        check_trackers("memory://study", TrainPlacement(trackers=("tensorboard",)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for tracker in ("tensorboard", "mlflow", "wandb"):
        with pytest.raises(UserError, match=f"names '{tracker}', which needs the package .*pip install"):
            check_trackers("study", TrainPlacement(trackers=(tracker,)))


def test_what_decides_a_run_is_flat_and_plain(run):
    values = dict(parameters_of(run))
    assert values["model.hidden_size"] == 16
    assert values["optimizer.beta2"] == 0.95
    assert values["mixture.natural"] == 0.75
    assert not any(isinstance(value, dict) for value in values.values())


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(run, tmp_path, caplog):
    (tmp_path / "events").write_text("a file where a directory should be")
    trackers = Trackers(run, TrainPlacement(trackers=("tensorboard",)), UPath(tmp_path), 0)
    trackers.add(line(1, 4.0))
    trackers.close("complete")
    (warning,) = caplog.records
    assert "tracker tensorboard failed and is left out from here on" in warning.getMessage()


def test_mlflow_has_one_run_for_all_attempts(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is optional")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    follow(run, "mlflow", tmp_path)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("synthscale")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run.run_id
    assert found.info.status == "FINISHED"
    assert found.data.params["model.hidden_size"] == "16"
    assert found.data.metrics["held_out/web"] == 3.5
    losses = client.get_metric_history(found.info.run_id, "train/loss_nats_per_token")
    assert [(each.step, each.value) for each in losses] == [(1, 4.0)]


def test_wandb_works_without_a_server(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is optional")
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow(run, "wandb", tmp_path)
    logs = list((tmp_path / "wandb").glob(f"offline-run-*-{run.run_id}/run-{run.run_id}.wandb"))
    assert len(logs) == 2
