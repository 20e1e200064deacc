"""Runs simulated from known laws, with and without noise, for the tests of fitting."""

from __future__ import annotations

import numpy as np

from tune.laws import (
    LAWS,
    Objective,
    law_named,
)

MIXING = law_named("exponential_mixing", ("web", "code"))
ALL_LAWS = {**LAWS, "exponential_mixing": MIXING}
JOINT = {"A": 60.0, "B": 300.0, "E": 1.8, "alpha": 0.25, "beta": 0.3}
TRUTH = {
    "data": {"B": 300.0, "beta": 0.3, "E": 2.2},
    "model": {"A": 60.0, "alpha": 0.25, "E": 2.0},
    "chinchilla": JOINT,
    "chinchilla_tied": {"A": 90.0, "B": 300.0, "E": 1.8, "gamma": 0.3},
    "over_training": {"a": 100.0, "b": 500.0, "E": 1.8, "eta": 0.15},
    "rectified": {"B": 300.0, "D_l": 60.0, "beta": 0.3, "E": 1.8},
    "data_constrained": {**JOINT, "R": 8.0},
    "ratio_floor": {**JOINT, "e1": -0.1, "e2": 0.12},
    "ratio_data": {**JOINT, "e1": -0.1, "e2": 0.12, "b1": -0.4, "b2": 0.5},
    "ratio_full": {**JOINT, "e1": -0.1, "e2": 0.12, "b1": -0.4, "b2": 0.5, "a1": 0.1, "beta1": 0.02},
    "bivariate_mixing": {"B": 200.0, "C": 1.8, "alpha": 0.1, "beta": 0.3},
    "exponential_mixing": {"c": 1.8, "k": 1.5, "t_web": -0.8, "t_code": 0.6},
}


def grid_rows(
    law, noise=0.0, seed=0, num_params=(1e5, 3e5, 1e6, 3e6), train_tokens=(1e6, 3e6, 1e7, 3e7, 1e8)
):
    """Rows of a full grid of whatever the law needs, with losses from its TRUTH and log-normal noise."""
    law = ALL_LAWS[law]
    axes = {"num_params": num_params, "train_tokens": train_tokens, "unique_tokens": (4e6, 5e7), "share": (0.05, 1 / 3, 2 / 3, 1.0),
            "web": (0.0, 0.2, 0.5), "code": (0.1, 0.3, 0.5)}  # fmt: skip
    used = [name for name in axes if name in law.columns_needed or name in ("num_params", "train_tokens")]
    rows = dict(
        zip(used, (axis.ravel() for axis in np.meshgrid(*(axes[name] for name in used))), strict=True)
    )
    theta = law.to_theta(np.array([list(TRUTH[law.name].values())]))
    log_loss = law.log_prediction(theta, law.columns(rows))[0]
    return {**rows, "loss": np.exp(log_loss + noise * np.random.default_rng(seed).normal(size=len(log_loss)))}


def five_points(noise, seed=0):
    d = np.array([1e6, 2e6, 4e6, 8e6, 16e6])
    loss = (300.0 * d**-0.3 + 2.2) * np.exp(noise * np.random.default_rng(seed).normal(size=5))
    return {"train_tokens": d, "num_params": np.full(5, 1e5), "loss": loss}


def objective_named(name):
    return Objective(name, 1e-2 if name == "huber_log" else None)


def random_thetas(problem, count=6, seed=0):
    """Points around the truth, in solver coordinates."""
    truth = problem.law.to_theta(np.array([list(TRUTH[problem.law.name].values())]), problem.centre)
    return truth + 0.3 * np.random.default_rng(seed).normal(size=(count, truth.shape[1]))
