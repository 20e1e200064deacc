"""No test may see the person's own cluster, caches or credentials, and none reaches a network."""

import os

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", RAY_USAGE_STATS_ENABLED="0"
)
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_JOB_SUBMISSION_ID", "AWS_PROFILE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
