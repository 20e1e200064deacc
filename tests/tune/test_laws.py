"""Laws, objectives, optima, intervals and what is said when the data does not determine a law."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.errors import UserError
from tune.laws import (
    LAW_NAMES,
    LAWS,
    OBJECTIVES,
    Objective,
    compute_optimal,
    explain,
    fit,
    isoflop,
    law_named,
    load,
)
from tune.laws.bootstrap import Noise, resampled_weights, residual_noise
from tune.laws.estimate import Settings, Task, fit_all, optimise
from tune.laws.minimise import multi_start
from tune.laws.polish import gradient_norm
from tune.laws.problem import Problem

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


# --- arithmetic ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("law", ALL_LAWS)
def test_gradient_is_the_derivative(law, objective):
    problem = Problem.of(ALL_LAWS[law], grid_rows(law, noise=0.05), objective_named(objective))
    theta = random_thetas(problem)
    _, gradient = problem.value_and_gradient(theta)
    for i in range(theta.shape[1]):
        step = 1e-6 * np.eye(theta.shape[1])[i]
        above, below = (
            problem.value_and_gradient(theta + step)[0],
            problem.value_and_gradient(theta - step)[0],
        )
        np.testing.assert_allclose(gradient[:, i], (above - below) / 2e-6, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("law", ALL_LAWS)
def test_jacobian_is_the_derivative_of_the_prediction(law):
    law = ALL_LAWS[law]
    rows = grid_rows(law.name)
    x = law.columns(rows, law.centre(rows))
    theta = random_thetas(Problem.of(law, rows, Objective("mse_log")))
    jacobian = law.jacobian(theta, x)
    for i in range(theta.shape[1]):
        step = 1e-6 * np.eye(theta.shape[1])[i]
        numeric = (law.log_prediction(theta + step, x) - law.log_prediction(theta - step, x)) / 2e-6
        np.testing.assert_allclose(jacobian[:, :, i], numeric, rtol=1e-5, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.floats(-8, 8), st.floats(0, 2), st.floats(5, 30), st.floats(5, 30))
def test_centring_is_undone_exactly(log_a, alpha, centre_n, centre_d):
    law = LAWS["chinchilla"]
    theta = np.array([[log_a, 1.0, 0.5, alpha, 0.4]])
    centre = {"num_params": centre_n, "train_tokens": centre_d}
    parameters = law.to_parameters(theta, centre)
    np.testing.assert_allclose(law.to_theta(parameters, centre), theta, atol=1e-9)
    rows = {"num_params": [3e8], "train_tokens": [2e10]}
    centred = law.log_prediction(theta, law.columns(rows, centre))
    np.testing.assert_allclose(
        law.log_prediction(law.to_theta(parameters), law.columns(rows)), centred, rtol=1e-9
    )


def test_a_weight_of_three_is_the_row_three_times():
    rows = grid_rows("chinchilla", noise=0.02)
    weights = np.ones(len(rows["loss"]))
    weights[4] = 3.0
    tripled = {name: np.concatenate([values, values[[4, 4]]]) for name, values in rows.items()}
    problem = Problem.of(LAWS["chinchilla"], rows, objective_named("huber_log"), weights)
    thrice = Problem.of(LAWS["chinchilla"], tripled, objective_named("huber_log"))
    theta = random_thetas(problem)
    shift = np.array([problem.centre[name] - thrice.centre[name] for name in ("num_params", "train_tokens")])
    moved = theta.copy()
    moved[:, :2] += theta[:, 3:] * shift
    np.testing.assert_allclose(
        problem.value_and_gradient(theta)[0], thrice.value_and_gradient(moved)[0], rtol=1e-12
    )


# --- optima ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("law", ALL_LAWS)
def test_exact_losses_give_back_the_parameters(law, objective):
    fitted = fit(ALL_LAWS[law], grid_rows(law), objective, bootstrap_samples=0, hold_out_largest=False)
    assert fitted.record.converged
    for name, value in TRUTH[law].items():
        assert fitted.parameters[name] == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_point_nearby_is_better(objective):
    optimum = optimise(LAWS["chinchilla"], grid_rows("chinchilla", noise=0.03), objective_named(objective))
    assert optimum.converged
    rng = np.random.default_rng(1)
    for size in (1e-2, 1e-4, 1e-6):
        around = optimum.theta + size * rng.normal(size=(500, 5))
        assert optimum.problem.value_and_gradient(around)[0].min() >= optimum.value * (1 - 1e-12)


def test_least_absolute_deviations_fits_as_many_rows_exactly_as_it_has_parameters():
    optimum = optimise(LAWS["data"], five_points(0.02), Objective("l1_log"))
    assert np.sum(np.abs(optimum.residual) < 1e-9) == 3
    assert gradient_norm(optimum.problem, optimum.theta) < 1e-9


def test_many_starts_end_at_one_optimum():
    problem = Problem.of(
        LAWS["chinchilla"], grid_rows("chinchilla", noise=0.01), Objective("huber_log", 1e-3)
    )
    found = multi_start(problem, LAWS["chinchilla"].starts(problem.log_level))
    assert np.mean(found.value < found.value.min() * (1 + 1e-6)) > 0.9


def test_units_of_tokens_change_only_the_coefficient():
    rows = grid_rows("chinchilla", noise=0.01)
    billions = {**rows, "train_tokens": rows["train_tokens"] / 1e9}
    one, other = (fit("chinchilla", each, bootstrap_samples=0).parameters for each in (rows, billions))
    for name in ("A", "E", "alpha", "beta"):
        assert other[name] == pytest.approx(one[name], rel=1e-6)
    assert other["B"] == pytest.approx(one["B"] * 1e9 ** -one["beta"], rel=1e-6)


# --- intervals -------------------------------------------------------------------------------------------------


def test_the_bootstrap_keeps_the_rows_of_a_run_together():
    run = np.array([0, 0, 1, 2, 2, 2, 3])
    weights = resampled_weights(run, 50, seed=1)
    for rows in ([0, 1], [3, 4, 5]):
        assert (weights[:, rows] == weights[:, rows[:1]]).all()
    assert (weights[:, [0, 2, 3, 6]].sum(axis=1) == 4).all()


def test_checkpoints_of_one_run_do_not_count_as_runs():
    rows = grid_rows("data", noise=0.01, num_params=(1e5,) * 4, train_tokens=np.geomspace(1e6, 1e8, 12))
    thrice = {name: np.repeat(values, 3) for name, values in rows.items()}
    thrice["loss"] = thrice["loss"] * (1 + 1e-9 * np.tile([0, 1, 2], 48))  # identical rows are refused
    names = np.repeat([f"run-{i}" for i in range(48)], 3)
    together = fit("data", {**thrice, "run_id": names}, "mse_log", bootstrap_samples=300)
    apart = fit("data", thrice, "mse_log", bootstrap_samples=300)
    assert together.record.interval_method == apart.record.interval_method == "pairs"
    errors = [each.record.parameters["beta"].standard_error for each in (together, apart)]
    assert errors[0] == pytest.approx(errors[1] * np.sqrt(3), rel=0.25)


def test_few_runs_get_wider_intervals_from_fewer_degrees_of_freedom():
    tasks = [Task(LAWS["data"], five_points(0.002, seed), f"group {seed}") for seed in range(6)]
    pooled = fit_all(tasks, Settings(Objective("mse_log"), bootstrap_samples=400))
    alone = fit_all(tasks[:1], Settings(Objective("mse_log"), bootstrap_samples=400))[0]
    assert pooled[0].record.interval_method == alone.record.interval_method == "parametric"
    assert (pooled[0].record.noise_degrees_of_freedom, alone.record.noise_degrees_of_freedom) == (12, 2)

    def relative_width(fitted):
        interval = fitted.predict(train_tokens=3.2e7)
        return (interval.high - interval.low) / fitted.record.noise_log

    assert relative_width(alone) > 1.5 * relative_width(pooled[0])


def test_as_many_runs_as_parameters_have_no_interval_and_say_so():
    rows = {name: values[:3] for name, values in five_points(0.0).items()}
    record = fit("data", rows).record
    assert record.interval_method == "none"
    assert all(interval.low is None and interval.high is None for interval in record.parameters.values())
    assert any("passes through its points" in warning for warning in record.warnings)
    assert record.hold_out is None
    assert any("extrapolates is not known" in warning for warning in record.warnings)


def test_noise_is_pooled_by_degrees_of_freedom():
    assert Noise.pooled([Noise(0.01, 2), Noise(0.03, 6)]) == Noise(pytest.approx(np.sqrt(0.0007)), 8)
    assert Noise.pooled([Noise(0.0, 0)]) is None
    residual = np.array([0.01, 0.03, -0.02, 0.01])
    assert residual_noise(residual, np.array([0, 0, 1, 2]), 1).degrees_of_freedom == 2
    assert residual_noise(residual, np.array([0, 0, 1, 2]), 1).standard_deviation == pytest.approx(
        np.sqrt(0.0009 / 2)
    )


def test_resamples_repeat_and_differ_between_groups():
    tasks = [Task(LAWS["data"], five_points(0.002), group) for group in ("natural", "hq 33 %")]
    first, second = (fit_all(tasks, Settings(Objective("mse_log"), bootstrap_samples=50)) for _ in range(2))
    np.testing.assert_array_equal(first[0].samples, second[0].samples)
    assert not np.array_equal(first[0].samples, first[1].samples)


@pytest.mark.slow
def test_intervals_of_five_points_cover_the_truth():
    hits = []
    for seed in range(0, 240, 6):
        tasks = [Task(LAWS["data"], five_points(0.002, seed + i), f"group {seed + i}") for i in range(6)]
        fitted = fit_all(
            tasks,
            Settings(Objective("mse_log"), bootstrap_samples=300, hold_out_largest=False, profiles=False),
        )
        truth = 300.0 * 3.2e7**-0.3 + 2.2
        hits += [
            each.predict(train_tokens=3.2e7).low < truth < each.predict(train_tokens=3.2e7).high
            for each in fitted
        ]
    assert 0.88 < np.mean(hits) <= 1.0


# --- hold-out --------------------------------------------------------------------------------------------------


def test_hold_out_predicts_the_largest_scale_without_seeing_it():
    rows = five_points(0.0)
    rows["loss"][-1] *= 1.01
    held = fit("data", rows, "mse_log", bootstrap_samples=0).record.hold_out
    assert [point.train_tokens for point in held.points] == [16e6]
    assert held.points[0].relative_error == pytest.approx(1 / 1.01 - 1, rel=1e-3)
    assert held.mean_absolute_relative_error == pytest.approx(abs(1 / 1.01 - 1), rel=1e-3)


def test_hold_out_of_a_joint_law_leaves_out_both_largest_sizes_and_budgets():
    rows = grid_rows("chinchilla")
    points = fit("chinchilla", rows, bootstrap_samples=0).record.hold_out.points
    assert len(points) == 4 + 5 - 1
    assert {(p.num_params == 3e6) or (p.train_tokens == 1e8) for p in points} == {True}
    assert max(abs(p.relative_error) for p in points) < 1e-4


# --- use -------------------------------------------------------------------------------------------------------


def test_tokens_to_reach_inverts_the_prediction():
    fitted = fit("chinchilla", grid_rows("chinchilla", noise=0.005), bootstrap_samples=100)
    target = fitted.predict(num_params=5e5, train_tokens=2e7)
    assert target.low < target.value < target.high
    tokens = fitted.tokens_to_reach(target.value, num_params=5e5)
    assert tokens.value == pytest.approx(2e7, rel=1e-9)
    assert tokens.low < 2e7 < tokens.high


def test_a_loss_below_the_floor_is_never_reached():
    fitted = fit("data", five_points(0.0), bootstrap_samples=0)
    assert fitted.tokens_to_reach(2.1) is None
    assert fitted.tokens_to_reach(2.3).value == pytest.approx((300 / 0.1) ** (1 / 0.3), rel=1e-3)


def test_tokens_have_no_upper_limit_where_many_resamples_never_arrive():
    fitted = fit("data", five_points(0.003), "mse_log", bootstrap_samples=300)
    tokens = fitted.tokens_to_reach(fitted.parameters["E"] + 0.02)
    assert tokens.high is None
    assert tokens.low < tokens.value


def test_prediction_far_from_the_data_is_measured_as_such():
    fitted = fit("data", five_points(0.0), bootstrap_samples=0)
    assert fitted.extrapolation(train_tokens=4e6) == 1.0
    assert fitted.extrapolation(train_tokens=160e6) == pytest.approx(10.0)
    assert fitted.extrapolation(train_tokens=0.25e6) == pytest.approx(4.0)


def test_a_one_axis_law_refuses_another_size():
    task = Task(LAWS["data"], five_points(0.0), fixed={"num_params": 1e5})
    fitted = fit_all([task], Settings(Objective("mse_log"), bootstrap_samples=0))[0]
    assert fitted.predict(num_params=1e5, train_tokens=1e7).value == fitted.predict(train_tokens=1e7).value
    with pytest.raises(UserError, match="fitted at num_params = 100000 and says nothing about 1e\\+06"):
        fitted.predict(num_params=1e6, train_tokens=1e7)
    with pytest.raises(UserError, match="needs train_tokens"):
        fitted.predict()


def test_a_derived_quantity_gets_an_interval():
    fitted = fit("chinchilla", grid_rows("chinchilla", noise=0.005), bootstrap_samples=100)
    share = fitted.interval_of(lambda p: p["beta"] / (p["alpha"] + p["beta"]))
    assert share.low < share.value < share.high
    assert share.value == pytest.approx(0.3 / 0.55, abs=0.1)


def test_a_fit_prints_what_matters():
    text = str(fit("data", five_points(0.02), bootstrap_samples=50))
    for part in (
        "data law, all",
        "huber_log (delta 0.001)",
        "beta",
        "95% interval",
        "held-out largest scale",
        "  ! ",
    ):
        assert part in text


def test_the_best_share_is_found_with_an_interval():
    fitted = fit("ratio_data", grid_rows("ratio_data", noise=0.002), "mse_log", bootstrap_samples=100)
    best = fitted.best_share(num_params=1e6, train_tokens=1e7)
    shares = np.linspace(0, 1, 2001)
    truth = shares[
        np.argmin(
            300 * np.exp(-0.4 * shares + 0.5 * shares**2) * 1e7**-0.3
            + 1.8 * np.exp(-0.1 * shares + 0.12 * shares**2)
        )
    ]
    assert best.low <= truth <= best.high
    assert best.high - best.low < 0.2
    with pytest.raises(UserError, match="no share to choose"):
        fit("data", five_points(0.0), bootstrap_samples=0).best_share(1e6, 1e7)


# --- honesty ---------------------------------------------------------------------------------------------------


def test_losses_without_a_trend_are_called_out():
    rows = five_points(0.0)
    rows["loss"] = np.array([3.0, 3.01, 2.99, 3.0, 3.005])
    warnings = " ".join(fit("data", rows, "mse_log", bootstrap_samples=200).record.warnings)
    assert "weakly identified" in warnings or "at 0" in warnings
    assert "hardly" in warnings


def test_a_straight_line_in_logarithms_has_no_floor():
    d = np.geomspace(1e6, 1e8, 8)
    record = fit("data", {"train_tokens": d, "loss": 30.0 * d**-0.15}, bootstrap_samples=0).record
    assert any(warning.startswith("E is at 0") for warning in record.warnings)
    assert record.parameters["beta"].value == pytest.approx(0.15, rel=1e-3)


@pytest.mark.parametrize(
    ("law", "change", "message"),
    [
        (
            "data",
            {"loss": np.array([1.0, np.nan, 1.0, 1.0, 1.0])},
            "loss of row 2 is nan; it must be a positive number",
        ),
        ("data", {"train_tokens": np.array([1.0, 2.0, -3.0, 4.0, 5.0])}, "train_tokens of row 3 is -3"),
        (
            "data",
            {"train_tokens": np.array([1.0, 1.0, 2.0, 2.0, 2.0])},
            "train_tokens takes 2 different values",
        ),
        (
            "chinchilla",
            {
                "num_params": np.array([1.0, 2.0, 2.0, 2.0, 2.0]),
                "train_tokens": np.array([1.0, 1.0, 2.0, 3.0, 3.0]),
            },
            "there are 4 different points and its 5 parameters need at least 5",
        ),
        (
            "ratio_floor",
            {"share": np.array([0.0, 0.5, 1.5, 1.0, 1.0])},
            "share of row 3 is 1.5; it must be a share between 0 and 1",
        ),
        ("chinchilla", {}, "num_params takes 1 different value and must take at least 2"),
        (
            "data",
            {"loss": np.array(["a", "b", "c", "d", "e"])},
            "'loss' holds something that is not a number",
        ),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused_in_a_sentence(law, change, message):
    with pytest.raises(UserError, match=message):
        fit(law, {**five_points(0.01), **change})


def test_missing_columns_laws_and_objectives_are_named():
    with pytest.raises(UserError, match="no column 'loss'; they have train_tokens"):
        fit("data", {"train_tokens": [1.0, 2.0, 3.0]})
    with pytest.raises(UserError, match="no law 'datta'; known laws: data"):
        fit("datta", five_points(0.0))
    with pytest.raises(UserError, match="no objective 'rmse'"):
        fit("data", five_points(0.0), "rmse")


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


# --- tables of one's own -----------------------------------------------------------------------------------------


def test_a_saved_fit_predicts_and_plots_as_before(tmp_path):
    fitted = fit("chinchilla", grid_rows("chinchilla", noise=0.003), bootstrap_samples=40)
    fitted.save(tmp_path / "fit.json")
    again = load(tmp_path / "fit.json")
    assert again.record == fitted.record
    assert again.predict(1e7, 1e9) == fitted.predict(1e7, 1e9)
    again.plot().savefig(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").stat().st_size > 5_000
    with pytest.raises(UserError, match="no saved fit"):
        load(tmp_path / "other.json")


def test_columns_outliers_and_duplicates_of_a_data_frame():
    rows = grid_rows("chinchilla", noise=0.003)
    frame = pd.DataFrame({"N": rows["num_params"], "D": rows["train_tokens"], "L": rows["loss"]})
    names = {"num_params": "N", "train_tokens": "D", "loss": "L"}
    fitted = fit("chinchilla", frame, columns=names, drop_highest_losses=2, bootstrap_samples=0)
    assert len(fitted.record.rows_used) == 18
    worst = frame["L"].to_numpy().argsort()[-2:]
    assert {row.run_id for row in fitted.record.rows_excluded} == {f"row {i + 1}" for i in worst}
    with pytest.raises(UserError, match="row 4 and row 21 are identical in every column"):
        fit("chinchilla", pd.concat([frame, frame.iloc[[3]]]), columns=names)
    with pytest.raises(UserError, match="no column 'tokens'; they have N, D, L"):
        fit("chinchilla", frame, columns={**names, "train_tokens": "tokens"})


def test_shares_that_add_up_to_one_are_pinned_by_leaving_one_out():
    random = np.random.default_rng(0)
    web, code, books = random.dirichlet((3, 2, 1), size=40).T
    rows = {"web": web, "code": code, "books": books, "loss": 1.8 + 1.5 * np.exp(-0.8 * code + 0.6 * books)}
    fitted = fit("exponential_mixing", rows, "mse_log", shares=("web", "code", "books"), bootstrap_samples=0)
    assert fitted.law.shares == ("code", "books")  # web is the most common
    assert fitted.parameters == pytest.approx({"c": 1.8, "k": 1.5, "t_code": -0.8, "t_books": 0.6}, rel=1e-3)


@pytest.mark.parametrize("name", LAW_NAMES)
def test_every_law_explains_itself(name):
    text = explain(name)
    assert "arXiv" in text or "chinchilla with alpha = beta" in text
    law = MIXING if name == "exponential_mixing" else LAWS[name]
    assert all(parameter.meaning and parameter.unit for parameter in law.parameters)
