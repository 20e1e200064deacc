"""The best share from few noisy losses: right in easy cases, honest in hard ones, with intervals that cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.mixture_space import GRID_STEPS, MixtureSpace, share_grid
from tune.optimum import fit_curve
from tune.surface import MIN_POINTS, Losses, fit_surface, most_telling

SHARES = (0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 1.0)
FINE = np.linspace(0.0, 1.0, 2001)

CURVES = {
    "interior": lambda s: 3.5 + 0.3 * (s - 0.35) ** 2,
    "sharp": lambda s: 3.4 + 1.5 * (s - 0.6) ** 2,
    "flat": lambda s: 3.5 + 0.01 * (s - 0.5) ** 2,
    "at natural": lambda s: 3.5 + 0.4 * s**1.5,
    "at synthetic": lambda s: 3.3 + 0.2 * (s + 0.05) ** -0.3,
    "mixing law": lambda s: 3.1 + 0.3 * np.exp(-4.0 * s) + 0.4 * np.exp(-5.0 * (1.0 - s)),
    "steep ends": lambda s: 2.0 + 0.7 * (1.03 - s) ** -0.15 + 0.5 * (s + 0.03) ** -0.1,
}


def truth(curve):
    return float(FINE[curve(FINE).argmin()])


def observe(curve, shares, noise, seed):
    shares = np.asarray(shares)
    return (curve(shares) + noise * np.random.default_rng(seed).standard_normal(len(shares))).tolist()


@pytest.mark.parametrize("name", ["interior", "sharp", "mixing law", "steep ends"])
def test_finds_an_interior_optimum_through_little_noise(name):
    curve = fit_curve(SHARES, observe(CURVES[name], SHARES, 1e-4, 0))
    best = curve.best_share()
    assert best.low <= truth(CURVES[name]) <= best.high
    assert best.value == pytest.approx(truth(CURVES[name]), abs=0.06)
    assert best.high - best.low < 0.3
    assert curve.best_loss().value == pytest.approx(CURVES[name](FINE).min(), abs=2e-3)


@pytest.mark.parametrize(("name", "end"), [("at natural", 0.0), ("at synthetic", 1.0)])
def test_an_optimum_at_an_end_is_given_as_that_end(name, end):
    best = fit_curve(SHARES, observe(CURVES[name], SHARES, 1e-3, 1)).best_share()
    assert best.value == pytest.approx(end, abs=0.03)
    assert end in (best.low, best.high)
    assert best.high - best.low < 0.3


def test_a_flat_optimum_has_a_wide_interval():
    curve = fit_curve(SHARES, observe(CURVES["flat"], SHARES, 5e-3, 2))
    best = curve.best_share()
    assert best.high - best.low > 0.6
    low, high = curve.indistinguishable(within=curve.noise_nats())
    assert high - low > 0.6


def test_one_low_outlier_does_not_become_the_optimum():
    losses = observe(CURVES["interior"], SHARES, 1e-3, 3)
    losses[4] -= 0.05  # share 2/3 is now the lowest single loss, by luck
    assert min(losses) == losses[4]
    assert fit_curve(SHARES, losses).best_share().value < 0.62


def test_losses_that_jump_about_are_read_as_noise_and_not_as_a_narrow_valley():
    """Neither end of the dip at a quarter can be told from noise, and a curve through all of them has two valleys."""
    shares = (0.0, 0.25, 1 / 3, 0.625, 2 / 3, 1.0)
    losses = (4.504, 4.547, 4.484, 4.447, 4.491, 5.680)
    curve = fit_curve(shares, losses)
    assert 0.0 < curve.single_valley_fraction < 0.05
    rises = np.diff(curve.draws, axis=1) > 0
    assert (np.diff(rises.astype(int), axis=1) == -1).sum() == 0  # no curve falls again once it has risen
    best = curve.best_share()
    assert best.low == 0.0
    assert 0.5 < best.high < 0.625
    assert curve.noise_nats() > 0.02


def test_repeats_that_rule_out_a_level_of_noise_do_not_stop_a_fit_without_a_valley():
    """Two runs of one mixture are 0.3 nats apart, which the least noise explains with a chance of exactly nothing."""
    points = MixtureSpace().points
    shares = np.array([0.0, 0.25, 1 / 3, 0.625, 2 / 3, 1.0] * 2)
    at = np.array([np.abs(points[:, 0] - share).argmin() for share in shares])
    values = np.array([4.0, 5.0, 4.0, 5.0, 4.0, 5.0, 4.3, 5.0, 4.0, 5.0, 4.0, 5.0])
    surface = fit_surface(points, Losses(at, values, np.zeros(12, dtype=int), np.zeros(12)))
    assert not surface.looks_like_one_valley
    assert np.isfinite(surface.draws).all()
    assert surface.noise_nats() > 0.05


def test_the_noise_it_reports_is_the_noise_there_was():
    shares = np.linspace(0.0, 1.0, 12)
    estimates = [
        fit_curve(shares, observe(CURVES["interior"], shares, 0.01, seed)).noise_nats() for seed in range(8)
    ]
    assert np.median(estimates) == pytest.approx(0.01, rel=0.5)


def coverage(num_cells, noises, num_points):
    """Return the part of simulated cells whose 95 % interval holds the true optimum, to half a grid step."""
    rng = np.random.default_rng(7)
    hits = []
    for number in range(num_cells):
        curve = list(CURVES.values())[number % len(CURVES)]
        shares = np.linspace(0.0, 1.0, num_points)
        losses = observe(curve, shares, rng.choice(noises), number)
        best = fit_curve(shares, losses).best_share()
        slack = 0.5 / GRID_STEPS
        hits.append(best.low - slack <= truth(curve) <= best.high + slack)
    return np.mean(hits)


def test_intervals_cover_the_true_optimum():
    assert coverage(49, (5e-4, 3e-3, 1e-2), 6) >= 0.88


@pytest.mark.drill
@pytest.mark.parametrize("num_points", [5, 6, 8, 10])
@pytest.mark.parametrize("noise", [2e-4, 2e-3, 1e-2, 4e-2])
def test_intervals_cover_the_true_optimum_at_every_noise(noise, num_points):
    assert 0.87 <= coverage(140, (noise,), num_points) <= 1.0


def test_equal_losses_give_equal_curves_and_a_hair_of_difference_moves_nothing():
    losses = observe(CURVES["interior"], SHARES, 3e-3, 4)
    first, second = fit_curve(SHARES, losses), fit_curve(SHARES, losses)
    assert first.band() == second.band()
    nudged = fit_curve(SHARES, [np.nextafter(loss, 9.0) for loss in losses])
    assert nudged.best_share().value == first.best_share().value
    assert nudged.best_share().low == pytest.approx(first.best_share().low, abs=1.5 / GRID_STEPS)
    assert np.allclose(nudged.mean, first.mean, atol=1e-6)


def test_known_errors_widen_the_interval():
    losses = observe(CURVES["interior"], SHARES, 1e-4, 5)
    exact, vague = fit_curve(SHARES, losses), fit_curve(SHARES, losses, standard_errors=[0.05] * len(SHARES))
    width = [each.best_share().high - each.best_share().low for each in (exact, vague)]
    assert width[1] > 2.0 * width[0]


def test_the_range_is_kept():
    shares = (0.1, 0.2, 0.3, 0.4)
    curve = fit_curve(shares, [CURVES["sharp"](share) for share in shares], (0.1, 0.4))
    assert (curve.shares[0], curve.shares[-1]) == (0.1, 0.4)
    assert curve.best_share().value == 0.4


def test_two_losses_are_too_few():
    with pytest.raises(ValueError, match=f"at least {MIN_POINTS}"):
        fit_curve([0.0, 1.0], [3.0, 3.1])


def test_the_grid_holds_the_shares_of_the_papers_grid():
    assert {0.0, 1 / 3, 1 / 2, 2 / 3, 1.0} <= set(share_grid((0.0, 1.0)))
    assert share_grid((0.25, 0.26)) == (0.25, 0.26)


@settings(max_examples=15, deadline=None)
@given(
    losses=st.lists(st.floats(1.0, 8.0), min_size=4, max_size=4),
    share_range=st.sampled_from([(0.0, 1.0), (0.2, 0.7)]),
)
def test_any_losses_give_ordered_intervals_inside_the_range(losses, share_range):
    low, high = share_range
    shares = [low + (high - low) * step / 3 for step in range(4)]
    best = fit_curve(shares, losses, share_range).best_share()
    assert low <= best.low <= best.value <= best.high <= high


def told(losses):
    """The surface of these losses by share, and the places of all other shares."""
    space = MixtureSpace()
    at = np.array([space.index((share,)) for share in losses], dtype=np.intp)
    nothing = np.zeros(len(losses))
    surface = fit_surface(
        space.points, Losses(at, np.array(list(losses.values())), nothing.astype(int), nothing)
    )
    return surface, np.setdiff1d(np.arange(len(space.points)), at)


def test_the_next_share_narrows_the_interval_more_than_a_share_far_from_the_question():
    shares = (0.0, 1 / 3, 2 / 3, 1.0)
    surface, candidates = told({share: CURVES["interior"](share) for share in shares})
    chosen = float(surface.points[most_telling(surface, candidates, [])][0])

    def width_with(share):
        widths = []
        for seed in range(6):
            losses = observe(CURVES["interior"], (*shares, share), 2e-3, seed)
            best = fit_curve((*shares, share), losses).best_share()
            widths.append(best.high - best.low)
        return np.mean(widths)

    assert width_with(chosen) < width_with(0.95)


def test_runs_of_one_batch_do_not_ask_the_same():
    shares = (0.0, 1 / 3, 2 / 3, 1.0)
    losses = observe(CURVES["interior"], shares, 2e-3, 6)
    surface, candidates = told(dict(zip(shares, losses, strict=True)))
    first = most_telling(surface, candidates, [])
    second = most_telling(surface, np.setdiff1d(candidates, first), [first])
    assert abs(surface.points[first, 0] - surface.points[second, 0]) > 2 / GRID_STEPS
