"""Averages of the evaluation, exact on a small case, and when evaluations happen."""

import math

import numpy as np
import pytest

from train.evaluation import evaluation_steps, summarise
from train.tokens import EvaluationTokens


@pytest.mark.parametrize(
    ("num_steps", "evaluations", "after"),
    [(24, 1, {24}), (24, 2, {12, 24}), (10, 3, {3, 6, 10}), (3, 5, {1, 2, 3}), (1, 4, {1})],
)
def test_evaluations_are_evenly_spaced_and_end_with_the_run(num_steps, evaluations, after):
    assert evaluation_steps(num_steps, evaluations) == after


def test_averages():
    domains = {
        "code": EvaluationTokens(num_bytes=100, num_tokens=20, rows=np.zeros((2, 11), np.uint16)),
        "prose": EvaluationTokens(num_bytes=60, num_tokens=10, rows=np.zeros((1, 11), np.uint16)),
    }
    nats = {"code": np.array([10.0, 30.0]), "prose": np.array([50.0])}
    evaluation = summarise(nats, domains, train_tokens=7)
    assert evaluation.train_tokens == 7
    assert evaluation.domains["code"].loss_nats_per_token == 2.0
    assert evaluation.domains["prose"].loss_nats_per_token == 5.0
    assert evaluation.domains["code"].bits_per_byte == pytest.approx(40 / math.log(2) / 100)
    assert evaluation.loss_nats_per_token == 90 / 30
    assert evaluation.macro_loss_nats_per_token == 3.5
    assert evaluation.bits_per_byte == pytest.approx(90 / math.log(2) / 160)
    assert (evaluation.domains["prose"].tokens, evaluation.domains["prose"].bytes) == (10, 60)
