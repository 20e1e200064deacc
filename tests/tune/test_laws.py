"""How laws are fitted: gradients, objectives, optima, intervals, and what is predicted without having been seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.assets.law_rows import (
    ALL_LAWS,
    TRUTH,
    five_points,
    grid_rows,
    objective_named,
    random_thetas,
)
from tune.laws import (
    LAWS,
    OBJECTIVES,
    Objective,
    fit,
)
from tune.laws.bootstrap import Noise, resampled_weights, residual_noise
from tune.laws.estimate import Settings, Task, fit_all, optimise
from tune.laws.minimise import multi_start
from tune.laws.polish import gradient_norm
from tune.laws.problem import Problem

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
