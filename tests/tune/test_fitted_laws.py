"""What a fitted law answers and what it says when the rows do not determine it; rows and tables of one's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from synth.errors import UserError
from tests.assets.law_rows import (
    MIXING,
    five_points,
    grid_rows,
)
from tune.laws import (
    LAW_NAMES,
    LAWS,
    Objective,
    explain,
    fit,
    load,
)
from tune.laws.estimate import Settings, Task, fit_all

# --- use -------------------------------------------------------------------------------------------------------


def test_tokens_to_reach_inverts_the_prediction():
    fitted = fit("chinchilla", grid_rows("chinchilla", noise=0.005), bootstrap_samples=100)
    target = fitted.predict(num_params=5e5, train_tokens=2e7)
    assert target.low < target.value < target.high
    tokens = fitted.tokens_to_reach(target.value, num_params=5e5)
    assert tokens.value == pytest.approx(2e7, rel=1e-9)
    assert tokens.low < 2e7 < tokens.high


@pytest.mark.parametrize("law", ["data", "over_training", "chinchilla"])
def test_a_law_read_from_a_file_has_its_parameters_in_the_order_of_its_resamples(tmp_path, law):
    fitted = fit(law, grid_rows("chinchilla", noise=0.005), bootstrap_samples=50)
    fitted.save(tmp_path / "law.json")
    loaded = load(tmp_path / "law.json")
    assert tuple(loaded.parameters) == loaded.law.names == fitted.law.names
    assert loaded.values == pytest.approx(fitted.values)
    assert loaded.parameters == fitted.parameters


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
        "95 % interval",
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
    cells = {(each.num_params, each.train_tokens): each.best_share for each in fitted.record.best_shares}
    assert cells[1e6, 1e7] == best
    assert f"best share at N = {max(cells)[0]:,.0f}" in str(fitted)
    with pytest.raises(UserError, match="no share to choose"):
        fit("data", five_points(0.0), bootstrap_samples=0).best_share(1e6, 1e7)


# --- honesty ---------------------------------------------------------------------------------------------------


def test_losses_without_a_trend_are_called_out():
    rows = five_points(0.0)
    rows["loss"] = np.array([3.0, 3.01, 2.99, 3.0, 3.005])
    warnings = " ".join(fit("data", rows, "mse_log", bootstrap_samples=200).record.warnings)
    assert any(words in warnings for words in ("weakly identified", "not identified", "at 0"))
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
