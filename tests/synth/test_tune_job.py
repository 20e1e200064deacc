"""`python -m rayjobs.tune_engine` on a real Ray with real vLLM, and `rephrase_corpus` finding what it found."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from synth.config import RephraseConfig
from synth.engines.tunings import Tuning
from synth.estimate import plan_rephrase
from synth.rephrase import open_work
from synth.worker import tuned_for
from tests.synth.conftest import LAX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
CONFIG = """
root = "{root}"
corpus = "natural"
recipes = ["hq"]
engine = {{ model = "{model}", max_model_len = 1024, dtype = "float32" }}
placement = {{ kv_cache_gib = 0.25 }}

[recipe_overrides.sampling]
max_output_tokens = 32

[recipe_overrides.thresholds]
{thresholds}
reject_truncated = false
"""
SEARCH = """
[search]
trials = 2
sample_documents = 12
max_num_seqs = [4, 16]
max_num_batched_tokens = [2048]
"""


def toml(value):
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def job(name, config, tmp_path):
    file = tmp_path / f"{name}.toml"
    file.write_text(config)
    return subprocess.run(
        [sys.executable, "-m", f"rayjobs.{name}", "--config", str(file)], cwd=REPOSITORY, capture_output=True, text=True,
        env=os.environ | {"RAY_agent_register_timeout_ms": "300000"},
    )  # fmt: skip


def test_settings_are_tried_on_real_engines_and_the_next_job_takes_the_best(natural, tiny_model, tmp_path):
    thresholds = "\n".join(f"{name} = {toml(value)}" for name, value in LAX.items())
    shared = CONFIG.format(root=natural, model=tiny_model, thresholds=thresholds)
    done = job("tune_engine", shared + SEARCH, tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    (file,) = (Path(natural) / "tunings").glob("*.json")
    tuning = Tuning.model_validate_json(file.read_text())
    assert [trial.status for trial in tuning.trials] == ["measured", "measured"], tuning.trials
    assert {trial.settings.max_num_seqs for trial in tuning.trials} == {4, 16}
    assert all(
        trial.engine_start_seconds > 0 and trial.accepted_tokens_per_device_second > 0
        for trial in tuning.trials
    )

    config = RephraseConfig.model_validate(tomllib.loads(shared))
    placement, name = tuned_for(open_work(config))
    assert name == file.name, "the same machine, model, recipes and documents"
    assert placement.max_num_seqs == tuning.settings.max_num_seqs
    facts = plan_rephrase(config).facts
    assert file.name in facts["device-hours rest on"]
