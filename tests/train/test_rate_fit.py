"""The best rate from a few losses: recovered where it lies between them, with an interval that holds it, and said where
it cannot be known."""

import math

import numpy as np
import pytest

from train.rate_fit import edge_of, fit_best_rate
from train.rates import RateTrial

BEST, BEND = 3e-3, 0.05


def trial(rate, loss, seed=0, status=None):
    status = status or ("complete" if loss is not None else "diverged")
    return RateTrial(
        learning_rate=rate, seed=seed, run_id="0", status=status, loss_nats_per_token=loss, reason=None
    )


def curve(rate, best=BEST, bend=BEND):
    return 3.0 + bend * math.log(rate / best) ** 2


def grid(middle=2e-3, ratio=2.0, count=5):
    return [middle * ratio**k for k in range(-(count // 2), count // 2 + 1)]


def test_the_minimum_of_a_parabola_is_found_between_the_rates_tried():
    fit = fit_best_rate([trial(rate, curve(rate)) for rate in grid()])
    assert fit.learning_rate == pytest.approx(BEST, rel=1e-6)
    assert fit.loss_nats_per_token == pytest.approx(3.0, abs=1e-9)
    assert fit.edge is None
    assert fit.low == pytest.approx(BEST, rel=1e-4)
    assert fit.high == pytest.approx(BEST, rel=1e-4)
    # 4e-3 and 2e-3 lose 0.0041 and 0.0082 nats, less than half a per cent of 3; 8e-3 loses 0.048
    assert (fit.close_low, fit.close_high) == pytest.approx((2e-3, 4e-3))


def test_seeds_may_have_levels_of_their_own():
    trials = [
        trial(rate, curve(rate) + level, seed)
        for rate in grid()
        for seed, level in enumerate((0.0, 0.3, -0.2))
    ]
    fit = fit_best_rate(trials)
    assert fit.learning_rate == pytest.approx(BEST, rel=1e-6)
    assert fit.loss_nats_per_token == pytest.approx(3.0 + 0.1 / 3, abs=1e-6)


def test_the_interval_holds_the_best_rate_as_often_as_it_says():
    random = np.random.default_rng(5)
    inside = bounded = 0
    for _ in range(400):
        noisy = [trial(rate, curve(rate) + random.normal(0, 0.004)) for rate in grid(middle=BEST)]
        fit = fit_best_rate(noisy)
        if fit.low is not None:
            bounded += 1
            inside += fit.low <= BEST <= fit.high
    assert bounded > 350
    assert inside / bounded > 0.92


def test_a_lowest_loss_at_an_end_is_an_edge_and_has_no_interval():
    low = fit_best_rate([trial(rate, curve(rate)) for rate in grid(middle=5e-2)])
    high = fit_best_rate([trial(rate, curve(rate)) for rate in grid(middle=2e-4)])
    assert (low.edge, low.learning_rate) == ("lowest", pytest.approx(5e-2 / 4))
    assert (high.edge, high.learning_rate) == ("highest", pytest.approx(2e-4 * 4))
    assert low.low is low.high is high.low is high.high is None
    assert "lowest one tried" in low.method


def test_a_rate_that_diverged_encloses_the_best_from_above_and_is_never_recommended():
    trials = [trial(rate, curve(rate, best=9e-3)) for rate in grid()[:4]] + [trial(grid()[4], None)]
    assert edge_of(trials) is None
    fit = fit_best_rate(trials)
    assert fit.edge is None
    assert fit.learning_rate == grid()[3]


def test_a_run_that_failed_says_nothing_of_its_rate():
    trials = [trial(rate, curve(rate, best=9e-3)) for rate in grid()[:4]]
    assert edge_of([*trials, trial(grid()[4], None, status="failed")]) == "highest"
    assert edge_of([*trials, trial(grid()[4], None)]) is None


def test_a_rate_counts_only_when_every_seed_came_to_its_end():
    trials = [trial(rate, curve(rate), seed) for rate in grid() for seed in (0, 1)]
    assert fit_best_rate(trials).learning_rate == pytest.approx(BEST, rel=1e-6)
    spoilt = [trial(3e-3 * 1.01, None, 0), trial(3e-3 * 1.01, 0.1, 1)]
    assert fit_best_rate([*trials, *spoilt]).learning_rate == pytest.approx(BEST, rel=1e-6)
    assert fit_best_rate([trial(1e-3, None), trial(2e-3, None)]) is None


def test_three_rates_give_a_minimum_and_no_interval():
    fit = fit_best_rate([trial(rate, curve(rate)) for rate in grid(middle=2.5e-3, count=3)])
    assert fit.learning_rate == pytest.approx(BEST, rel=1e-6)
    assert fit.low is fit.high is None
    assert "exactly" in fit.method


def test_a_curve_that_is_no_parabola_keeps_its_minimum_near_the_lowest_loss():
    # flat below, a cliff above: a parabola through all five would put the minimum a factor of ten too low
    losses = [3.02, 3.01, 3.0, 3.05, 5.0]
    fit = fit_best_rate([trial(rate, loss) for rate, loss in zip(grid(), losses, strict=True)])
    assert grid()[1] <= fit.learning_rate <= grid()[3]
