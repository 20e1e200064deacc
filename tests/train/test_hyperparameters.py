"""Learning rate and batch from their sources: published numbers, exact exponents, and numbers alone in a run."""

import pydantic
import pytest

from tests.assets.packed_set import write_packed_set
from train.flops import count_parameters
from train.grid import run_of
from train.hyperparameters import rows_per_step_of, ruled_batch_tokens, ruled_learning_rate
from train.run import RunTemplate
from train.sizes import model_of


def test_step_law_gives_the_papers_numbers():
    # Li et al. 2025: 1.79 N^-0.713 D^0.307 and 0.58 D^0.571, at one of their own cells, N = 1 B and D = 100 B
    assert ruled_learning_rate("step_law", 10**9, 10**11) == pytest.approx(1.6325e-3, rel=1e-3)
    assert ruled_batch_tokens("step_law", 10**9, 10**11) == pytest.approx(1.1077e6, rel=1e-3)


def test_deepseek_gives_the_papers_numbers():
    # Bi et al. 2024, figure 3: their 7 B model with 2 T tokens, C = 8.4e22, was trained at 4.2e-4 with 9.4 M tokens a step
    assert ruled_learning_rate("deepseek", 7 * 10**9, 2 * 10**12) == pytest.approx(4.2e-4, rel=0.05)
    assert ruled_batch_tokens("deepseek", 7 * 10**9, 2 * 10**12) == pytest.approx(9.4e6, rel=0.1)


def test_the_batch_of_a_rule_is_a_power_of_two_of_rows():
    template = RunTemplate(batch_rule="step_law")
    assert rows_per_step_of(template, 10**6, 10**8, 256) == 64  # 21,600 tokens, 84 rows
    assert rows_per_step_of(template, 10**6, 1000, 256) == 1
    assert rows_per_step_of(RunTemplate(rows_per_step=12), 10**6, 10**8, 256) == 12


def test_a_run_holds_the_number_its_template_stands_for(tmp_path):
    packed = write_packed_set(tmp_path).info
    where = (packed, model_of("12k"), 4096, {"natural": 1.0}, 0)
    ruled = run_of(
        RunTemplate(optimizer={"learning_rate_rule": "step_law"}), "tiny", *where, root=str(tmp_path)
    )
    rate = ruled.optimizer.peak_learning_rate
    num_params = count_parameters(model_of("12k"), packed.vocab_size).non_embedding
    assert rate == pytest.approx(1.79 * num_params**-0.713 * 4096**0.307, rel=1e-3)
    written = run_of(RunTemplate(optimizer={"peak_learning_rate": rate}), "tiny", *where, root=str(tmp_path))
    assert written.run_id == ruled.run_id
    assert "learning_rate_rule" not in ruled.model_dump()["optimizer"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"optimizer": {"learning_rates": "a", "learning_rate_rule": "step_law"}}, ["learning_rates", "learning_rate_rule"]),
        ({"optimizer": {"learning_rates": "a", "peak_learning_rate": 1e-3}}, ["learning_rates", "peak_learning_rate"]),
        ({"optimizer": {"learning_rate_rule": "deepseek", "reference_num_params": 9}}, ["reference_num_params"]),
        ({"batch_rule": "step_law", "rows_per_step": 4}, ["batch_rule and rows_per_step"]),
        ({"branching": True, "batch_rule": "step_law", "optimizer": {"warmup_tokens": 9}}, ["branching = true", "batch_rule"]),
        (
            {"branching": True, "optimizer": {"warmup_tokens": 9, "learning_rate_rule": "step_law"}},
            ["branching = true", "learning_rate_rule"],
        ),
    ],
)  # fmt: skip
def test_two_sources_of_one_number_are_refused(template, words):
    with pytest.raises(pydantic.ValidationError) as refused:
        RunTemplate.model_validate(template)
    for word in words:
        assert word in str(refused.value)
