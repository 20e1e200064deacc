"""Profiles, the compute-optimal frontier, isoFLOP exponents, and which law is chosen for rows of several mixtures."""

from __future__ import annotations

import numpy as np
import pytest

from synth.errors import UserError
from tests.assets.law_rows import (
    five_points,
    grid_rows,
)
from tune.laws import (
    OBJECTIVES,
    compute_optimal,
    fit,
    isoflop,
)

# --- profiles, frontier, choice of a law -------------------------------------------------------------------------


def test_a_profile_of_squared_errors_is_the_likelihood_ratio_interval():
    rows = grid_rows("data", noise=0.004, num_params=(1e5,) * 12, train_tokens=np.geomspace(1e6, 1e9, 12))
    record = fit("data", rows, "mse_log", bootstrap_samples=400).record
    for name in ("beta", "E"):
        profile, interval = record.profiles[name], record.parameters[name]
        assert profile.low < interval.value < profile.high
        assert profile.high - profile.low == pytest.approx(interval.high - interval.low, rel=0.25)
        assert min(profile.deviance) == 0.0
        assert (
            profile.verdict
            == f"{name} is identified: {profile.low:.3g} to {profile.high:.3g} fit about equally well"
        )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_holding_a_parameter_at_an_end_of_its_profile_costs_what_the_level_says(objective):
    rows = grid_rows(
        "chinchilla", noise=0.01, num_params=np.geomspace(1e5, 1e7, 6), train_tokens=np.geomspace(1e6, 1e8, 8)
    )
    record = fit(
        "chinchilla", rows, objective, huber_delta=1e-2, bootstrap_samples=0, hold_out_largest=False
    ).record
    for name in ("alpha", "beta", "E"):
        profile = record.profiles[name]
        crossing = np.interp(profile.high, profile.values, profile.deviance)
        assert crossing == pytest.approx(profile.level, rel=0.1)
        assert np.all(np.diff(profile.deviance[np.argmin(profile.deviance) :]) >= 0)


def test_a_scale_the_rows_cannot_limit_is_called_so():
    rows = grid_rows("data_constrained", noise=0.01)
    rows["unique_tokens"] = rows["train_tokens"] * 0.9  # hardly any repetition: any R does
    rows["loss"] = (
        rows["loss"] * 0 + 60 * rows["num_params"] ** -0.25 + 300 * rows["train_tokens"] ** -0.3 + 1.8
    )
    rows["loss"] *= np.exp(0.01 * np.random.default_rng(0).normal(size=len(rows["loss"])))
    record = fit("data_constrained", rows, "mse_log", bootstrap_samples=0, hold_out_largest=False).record
    assert record.profiles["R"].weak
    assert any(
        warning.startswith(("R is weakly identified", "R is not identified", "R ended at its bound"))
        for warning in record.warnings
    )


def test_the_frontier_has_the_exponents_of_the_closed_form():
    fitted = fit("chinchilla", grid_rows("chinchilla", noise=0.003), bootstrap_samples=60)
    frontier = compute_optimal(fitted, [1e14, 1e16, 1e18])
    exponent = fitted.interval_of(lambda p: p["beta"] / (p["alpha"] + p["beta"]))
    assert frontier.num_params_exponent.value == pytest.approx(exponent.value, abs=1e-4)
    assert frontier.num_params_exponent.low == pytest.approx(exponent.low, abs=1e-3)
    assert frontier.train_tokens_exponent.high == pytest.approx(1 - exponent.low, abs=1e-3)
    p = fitted.parameters
    scale = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    point = frontier.points[1]
    assert point.num_params.value == pytest.approx(scale * (1e16 / 6) ** exponent.value, rel=1e-3)
    assert 6 * point.num_params.value * point.train_tokens.value == pytest.approx(1e16)
    around = [
        fitted.predict(point.num_params.value * f, point.train_tokens.value / f).value
        for f in (0.9, 1.0, 1.1)
    ]
    assert min(around) == around[1] == pytest.approx(point.loss.value, rel=1e-6)
    assert fitted.record.frontier.points[0].compute_flops == pytest.approx(6 * 3e6 * 1e8)
    with pytest.raises(UserError, match="the data law does not know both N and D"):
        compute_optimal(fit("data", five_points(0.0), bootstrap_samples=0), [1e15])


def test_auto_chooses_by_what_was_not_seen_and_shows_the_comparison():
    rows = grid_rows(
        "chinchilla_tied",
        noise=0.004,
        num_params=np.geomspace(1e5, 1e7, 6),
        train_tokens=np.geomspace(1e6, 1e8, 6),
    )
    fitted = fit("auto", rows, "mse_log", bootstrap_samples=0)
    selection = fitted.record.selection
    assert selection.law == fitted.law.name == selection.scores[0].law
    scores = {score.law: score for score in selection.scores}
    assert scores["chinchilla"].in_sample < scores["chinchilla_tied"].in_sample
    assert all(0 < error < 0.05 for score in selection.scores for error in score.held_out.values())
    assert "law chosen" in str(fitted)
    assert fit("auto", five_points(0.001), "mse_log", bootstrap_samples=0).law.name in ("data", "rectified")
    with pytest.raises(UserError, match="too few runs for any law"):
        fit("auto", {name: values[:2] for name, values in five_points(0.0).items()})


@pytest.mark.parametrize("name", ["num_params", "train_tokens"])
def test_a_law_without_the_share_is_not_chosen_for_rows_of_several(name):
    scale = np.geomspace(1e6, 1e9, 5)
    rows = {name: np.tile(scale, 2), "share": np.repeat([0.0, 0.5], 5), "loss": np.tile(2 + scale**-0.1, 2)}
    with pytest.raises(UserError, match="fit each share apart, or name a law"):
        fit("auto", rows)
    alone = {column: values[:5] for column, values in rows.items()}
    assert fit("auto", alone, bootstrap_samples=0).law.name in ("data", "model", "rectified")


def test_isoflop_finds_the_exponent_of_the_law_behind_the_runs():
    budgets = np.geomspace(1e14, 1e17, 6)
    best = 0.1 * budgets**0.45
    n = best[:, None] * np.geomspace(0.4, 2.5, 7)
    loss = 3.0 + 0.2 * np.log(n / best[:, None]) ** 2 - 0.1 * np.log10(budgets / 1e14)[:, None]
    loss += 0.004 * np.random.default_rng(0).normal(size=loss.shape)
    c = np.broadcast_to(budgets[:, None], n.shape)
    found = isoflop(n.ravel(), c.ravel(), loss.ravel())
    assert found.exponent.low < 0.45 < found.exponent.high
    assert found.exponent.high - found.exponent.low < 0.03
    assert found.noise_nats == pytest.approx(0.004, rel=0.3)
    assert isoflop(
        n.ravel(), c.ravel(), loss.ravel(), method="akima", noise_nats=0.004
    ).exponent.value == pytest.approx(0.45, abs=0.03)
    one_sided = loss[:, ::-1] + np.log(n) * 3
    with pytest.raises(UserError, match="lowest at the smallest size"):
        isoflop(n.ravel(), c.ravel(), one_sided.ravel())
