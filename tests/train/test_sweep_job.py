"""`sweep_learning_rates` as a person runs it, and a plan that takes its rates by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.assets.packed_set import write_packed_set
from train.rates import read_rates
from train.record import read_record

REPOSITORY = Path(__file__).parents[2]
STEP = 8 * 32

SWEEP = f"""
packed = "tiny"
models = ["12k"]
train_tokens = {40 * STEP}
rates_per_size = 3
rate_ratio = 4.0
run = {{ precision = "fp32", max_epochs = 10.0, optimizer = {{ peak_learning_rate = 4e-2 }} }}
"""
PLAN = f"""
packed = "tiny"
shares = [0.0]
axes = [{{ models = ["12k"], train_tokens = [{60 * STEP}] }}]
run = {{ precision = "fp32", max_epochs = 10.0, optimizer = {{ learning_rates = "rates" }} }}
"""


def job(name, root, text, *flags):
    config = root / f"{name}.toml"
    config.write_text(text + f'root = "{root}"\n')
    done = subprocess.run(
        [sys.executable, "-m", f"rayjobs.{name}", "--config", str(config), *flags],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_sweep_finds_a_rate_between_those_that_learn_too_slowly_and_too_fast_and_a_plan_takes_it(tmp_path):
    write_packed_set(tmp_path)
    said = job("sweep_learning_rates", tmp_path, SWEEP)
    rates = read_rates(str(tmp_path), "rates")
    (best,) = rates.sizes
    assert f"12k: best learning rate {best.learning_rate:.3g}" in said
    losses = {each.learning_rate: each.loss_nats_per_token for each in best.trials}
    assert set(losses) >= {1e-2, 4e-2, 0.16}
    for trial in best.trials:
        record = read_record(str(tmp_path), trial.run_id)
        assert record.peak_learning_rate == trial.learning_rate
        assert trial.loss_nats_per_token == (record.final.loss_nats_per_token if record.final else None)
    assert best.edge is None
    trained = [rate for rate, loss in losses.items() if loss is not None]
    assert min(trained) < best.learning_rate <= max(trained)

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/record.json")}
    assert "nothing to do" in job("sweep_learning_rates", tmp_path, SWEEP)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/record.json")}

    planned = job("pretrain_models", tmp_path, PLAN, "--dry-run")
    assert f"{best.learning_rate:.3g} [" in planned
    assert json.loads(planned[: planned.index("\n\n")])["run"]["optimizer"]["learning_rates"] == "rates"
