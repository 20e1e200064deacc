"""Ranking mixtures of many sources: a law is recovered, sources without effect drop out, bad tables are refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from synth.errors import UserError
from tune.mixture_regression import MixtureRegressor, _Evidence

SOURCES = ("web", "code", "books", "mail")


def losses_of(shares):
    """The loss on one domain: web helps, code helps at first, books hurt a little, mail does nothing."""
    return 2.0 + 0.8 * np.exp(-3.0 * shares[:, 0]) + 0.3 * np.exp(-20.0 * shares[:, 1]) + 0.1 * shares[:, 2]


@pytest.fixture(scope="module")
def mixtures():
    return np.random.default_rng(0).dirichlet(np.full(len(SOURCES), 0.7), size=180)


def test_unseen_mixtures_are_ranked(mixtures):
    noise = np.exp(0.002 * np.random.default_rng(1).standard_normal(100))
    regressor = MixtureRegressor.fit(SOURCES, mixtures[:100], losses_of(mixtures[:100]) * noise)
    predicted, true = regressor.predict(mixtures[100:]), losses_of(mixtures[100:])
    assert spearmanr(predicted, true)[0] > 0.995
    assert np.abs(predicted / true - 1.0).max() < 0.02
    assert regressor.noise == pytest.approx(0.002, rel=0.4)


def test_a_source_without_effect_drops_out(mixtures):
    regressor = MixtureRegressor.fit(SOURCES, mixtures[:100], losses_of(mixtures[:100]))
    rates = dict(zip(SOURCES, regressor.rates, strict=True))
    assert rates["mail"] < 0.3 * min(rates["web"], rates["code"])


def test_the_gradient_of_the_evidence_is_its_derivative(mixtures):
    evidence = _Evidence.of(np.sqrt(mixtures[:25]), np.log(losses_of(mixtures[:25])))
    at = np.array([0.1, -0.4, 0.3, -1.0, 0.5, -2.0])
    _, gradient = evidence(at)
    numeric = [(evidence(at + step)[0] - evidence(at - step)[0]) / 2e-5 for step in 1e-5 * np.eye(6)]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:6], y[:6]), "6 runs are too few to learn a ranking of mixtures of 4 sources from: train at least 7"),
        (lambda x, y: (x, np.where(np.arange(len(y)) == 3, np.nan, y)), "row 4 holds a loss that cannot be one: nan"),
        (lambda x, y: (x - 0.01, y), "holds a share that cannot be one: -0.0"),
        (lambda x, y: (x[:, :3], y), r"shares of shape \(180, 3\) for 180 losses and 4 sources"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_learnt_from_are_refused_in_a_sentence(mixtures, change, message):
    with pytest.raises(UserError, match=message):
        MixtureRegressor.fit(SOURCES, *change(mixtures, losses_of(mixtures)))
