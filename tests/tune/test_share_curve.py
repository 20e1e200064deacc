"""The curve over the shares at a target: it invents no gain, finds one that is there, and its intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.assets.share_truths import OPTIMA, Case, cases
from tune.optimum import Curve, fit_curve
from tune.share_curve import fit_share_curve

THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)


def log_square(shares, best):
    """Steeper than any exponential at the end: what undid the Gaussian process."""
    return np.array([2.4 + 0.36 * 2.5 ** (0.3 * ((share - best) / 0.4) ** 2) for share in shares])


def test_a_steep_end_makes_no_gain_beside_natural_text():
    losses = log_square(THIRDS, best=0.0)
    curve = fit_share_curve(THIRDS, losses, [0.003] * 4)
    assert curve.least_best_share().value == 0.0
    assert curve.gain(0.06).value < 0.0
    process = fit_curve(THIRDS, losses, standard_errors=[0.003] * 4)
    assert process.gain(process.best_share().value).value > 0.01  # as it was: a gain that no run had measured


def test_finds_an_optimum_inside_and_its_gain():
    losses = log_square(THIRDS, best=0.4)
    curve = fit_share_curve(THIRDS, losses, [0.003] * 4)
    best = curve.least_best_share()
    assert best.low <= 0.4 <= best.high
    assert best.value == pytest.approx(0.4, abs=0.05)
    truth = log_square((0.0, best.value), best=0.4)
    gain = curve.gain(best.value)
    assert gain.low < truth[0] - truth[1] < gain.high
    assert gain.value == pytest.approx(truth[0] - truth[1], rel=0.2)


def test_an_optimum_at_full_share_is_that_end():
    best = fit_share_curve(THIRDS, [3.0, 2.8, 2.72, 2.7], [0.004] * 4).least_best_share()
    assert best.value > 0.9
    assert best.high == 1.0


def test_losses_of_another_shape_than_a_mixing_laws_are_followed():
    shares = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    losses = np.array([3.5, 3.49, 3.4, 3.0, 3.4, 3.49])  # a notch between two plateaus
    best = fit_share_curve(shares, losses, [0.002] * 6).least_best_share()
    assert best.value == pytest.approx(0.6, abs=0.05)


@settings(max_examples=10, deadline=None)
@given(losses=st.lists(st.floats(1.0, 8.0), min_size=4, max_size=4))
def test_any_losses_give_ordered_intervals_inside_the_range(losses):
    curve = fit_share_curve(THIRDS, losses, [0.01] * 4)
    best = curve.least_best_share()
    low, high = curve.not_worse_than(best.value)
    assert 0.0 <= low <= best.value <= high <= 1.0
    assert 0.0 <= best.low <= best.value <= best.high <= 1.0
    gain = curve.gain(best.value)
    assert gain.low <= gain.value <= gain.high
    assert gain.value == curve.at(0.0).value - curve.at(best.value).value


def test_the_shares_that_may_be_as_good_hold_the_best_and_grow_with_the_errors():
    losses = log_square(THIRDS, best=0.4)
    sure, unsure = (fit_share_curve(THIRDS, losses, [error] * 4) for error in (0.002, 0.05))
    ends = [curve.not_worse_than(curve.least_best_share().value) for curve in (sure, unsure)]
    assert ends[1][0] < ends[0][0] < 0.4 < ends[0][1] < ends[1][1]
    assert sure.gain(0.4).low > 0.0 > unsure.gain(0.4).low


def test_two_calls_agree_and_a_hair_of_difference_moves_nothing():
    losses = log_square(THIRDS, best=0.4)
    first, second = (fit_share_curve(THIRDS, losses, [0.003] * 4) for _ in range(2))
    assert np.array_equal(first.draws, second.draws)
    nudged = fit_share_curve(THIRDS, np.nextafter(losses, 9.0), [0.003] * 4)
    assert np.allclose(nudged.mean, first.mean, atol=1e-6)


def test_two_shares_are_too_few():
    with pytest.raises(ValueError, match="at least 3"):
        fit_share_curve([0.0, 1.0], [3.0, 3.1], [0.0, 0.0])


# --- many truths -----------------------------------------------------------------------------------------------


def outcomes(some: list[Case], fit) -> np.ndarray:
    """Return for each case: share covered, gain covered, error of the gain (in errors of the losses), regret (nats per
    token), whether a gain was shown that is none."""
    rows = []
    for case in some:
        curve: Curve = fit(case)
        best = curve.least_best_share()
        gain, truth = curve.gain(best.value), case.true_loss(0.0) - case.true_loss(best.value)
        rows.append((
            best.low - 0.0053 <= case.best_share <= best.high + 0.0053,  # half a step of the grid
            gain.low - 1e-9 <= truth <= gain.high + 1e-9,
            (gain.value - truth) / case.errors.mean(),
            case.true_loss(best.value) - case.true_loss(case.best_share),
            gain.low > 0.0 >= truth,
        ))  # fmt: skip
    return np.array(rows, dtype=np.float64)


def ours(case: Case) -> Curve:
    return fit_share_curve(case.shares, case.seen, case.errors)


def process(case: Case) -> Curve:
    ends = (min(case.shares), max(case.shares))
    return fit_curve(case.shares, case.seen, ends, standard_errors=case.errors)


def test_intervals_of_share_and_gain_hold_the_truth():
    share, gain, _, _, false_gains = outcomes(list(cases(18, seed=1)), ours).mean(axis=0)
    assert min(share, gain) >= 0.83
    assert false_gains == 0.0


@pytest.mark.drill
def test_over_many_truths_the_curve_is_better_than_a_gaussian_process():
    some = list(cases(240, seed=2))
    new, old = outcomes(some, ours), outcomes(some, process)
    (share, gain, bias, regret, false_gains), before = new.mean(axis=0), old.mean(axis=0)
    assert min(share, gain) >= 0.9
    assert abs(bias) <= abs(before[2])
    assert regret <= 1.1 * before[3]
    assert false_gains <= 0.01
    at_or_beside_natural = np.arange(len(some)) % len(OPTIMA) < 2
    assert new[at_or_beside_natural, 2].mean() <= 0.5 * old[at_or_beside_natural, 2].mean()
