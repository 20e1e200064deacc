"""The paper's claims: each on a study in which it holds, on one in which it does not, and without what it needs."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest

from tune.claim_data import ClaimData, ClaimRun
from tune.claim_roles import Roles
from tune.claims import CLAIMS, check_claim
from tune.laws import SavedLaws
from tune.laws.fitted import FittedLaw
from tune.laws.forms import DATA, MODEL
from tune.results import CellOptimum, FitFile, HoldOut, Interval, LawFit, Profile

BUDGETS = np.geomspace(1e8, 1e11, 6)
SIZES = (1e8, 3e8, 1e9, 3e9)
ROLES = Roles(
    rephrased="hq", question_answer="qa", textbook="textbook", generators=("small", "middle", "large")
)
THIRD, TWO_THIRDS = 1 / 3, 2 / 3
DOMAINS = ("web", "books", "code")


# --- studies of which everything is known ----------------------------------------------------------------------


def law(group, form=DATA, scale=410.0, exponent=0.28, floor=1.7, spread=1e-3, held_out=None, weak=()):
    """Return a fitted law with resamples that scatter by `spread`, relatively."""
    values = np.array([scale, exponent, floor])
    random = np.random.default_rng(zlib.crc32(f"{form.name}{group}".encode()))
    samples = values * (1.0 + spread * random.standard_normal((400, 3)))
    known = {
        name: Profile(values=(), deviance=(), level=4.0, low=0.0, high=1.0, weak=name in weak, verdict="")
        for name in form.names[1:]
    }
    record = LawFit(
        law=form.name, formula="", group=group, axis="tokens" if form is DATA else "params", objective="mse_log",
        huber_delta=None, objective_value=0.0, gradient_norm=0.0, converged=True, confidence=0.95,
        parameters={name: Interval(value=float(value)) for name, value in zip(form.names, values, strict=True)},
        interval_method="parametric", bootstrap_samples=len(samples), num_starts=1, starts_at_optimum_fraction=None,
        ranges={form.inputs[0]: (1e8, 1e11)}, rows_used=(), profiles=known,
        hold_out=None if held_out is None else HoldOut(points=(), mean_absolute_relative_error=held_out),
    )  # fmt: skip
    return FittedLaw(form, record, samples)


def runs(gap, mixtures, cells, noise=1e-4):
    """Return runs whose loss is natural text's times exp(gap(source, share, n, d)), a little noise and all."""
    random = np.random.default_rng(1)
    found = []
    for n, d in cells:
        for source, share in mixtures:
            each = {
                domain: (1.7 + 400 * n**-0.35 + 410 * d**-0.28)
                * math.exp(gap(source, share, n, d) + noise * random.standard_normal())
                for domain in DOMAINS
            }
            found.append(ClaimRun(source, share, n, d, float(np.mean(list(each.values()))), domains=each))
    return tuple(found)


def searched(source, shares, error=0.02):
    """Return searched cells of growing scale with their best shares."""
    return tuple(
        CellOptimum(
            search="s", natural="natural", synthetic=source, model="m", num_params=int(n), train_tokens=int(d), trials=(),
            best_share=Interval(value=share, low=share - 2 * error, high=share + 2 * error, standard_error=error),
            best_loss=Interval(value=3.0), natural_only_loss=None, curve=(), noise_nats=None, method="",
        )
        for share, n, d in zip(shares, (1e8, 3e8, 1e9, 2e9), (1e9, 4e9, 2e10, 9e10), strict=True)
    )  # fmt: skip


def claim(number, runs=(), laws=(), optima=(), roles=ROLES, divergences=None):
    file = FitFile(hash="0", recipe={}, fits=tuple(f.record for f in laws), rows=(), provenance={})
    data = ClaimData(tuple(runs), SavedLaws(file, tuple(laws)), tuple(optima), roles, divergences or {})
    found = check_claim(number, data)
    json.dumps(found.model_dump(mode="json"), allow_nan=False)
    return found


PAIR = [(None, 0.0), ("hq", THIRD)]
ALL_SHARES = [(None, 0.0), *((source, share) for source in ("hq", "qa", "textbook") for share in (THIRD, TWO_THIRDS, 1.0))]  # fmt: skip
D_AXIS = [(1e9, d) for d in BUDGETS]
BOTH_AXES = [*D_AXIS, *((n, BUDGETS[-2]) for n in SIZES if n != 1e9)]
NATURAL = law("natural")
TRAINED = runs(lambda *_: 0.0, ALL_SHARES, D_AXIS)
"""Runs of all mixtures, for claims that ask the laws and only look up here which shares there were."""


def textbook_gap(source, share, n, d):
    return 0.05 - 0.01 * math.log10(d / 1e8) if source == "textbook" else 0.0


def tied_gap(source, share, n, d):
    return {"textbook": 0.05 * share, "hq": -0.02, "qa": -0.02}.get(source, 0.0)


def generator_gap(source, share, n, d):
    return share * {"small": 0.02, "middle": 0.0, "large": 0.004}.get(source, 0.0)


GENERATORS = [
    (None, 0.0),
    *((s, share) for s in ("small", "middle", "large") for share in (THIRD, TWO_THIRDS)),
]


def along(of_d, of_n):
    return lambda source, share, n, d: (
        -of_d * math.log10(d / 1e8) - of_n * math.log10(n / 1e8) if source else 0.0
    )


def thirds(floor=1.7, exponent=0.28, textbook_floor=1.8, textbook_exponent=0.28, **more):
    return [
        NATURAL,
        law("hq 33 %", floor=floor, exponent=exponent, **more),
        law("textbook 33 %", floor=textbook_floor, exponent=textbook_exponent),
    ]


def held_out(data_errors, model_errors=(0.001,) * 4):
    groups = ("natural", "hq 33 %", "hq 67 %", "hq 100 %")
    return [
        *(law(group, held_out=error) for group, error in zip(groups, data_errors, strict=True)),
        *(law(group, MODEL, held_out=error) for group, error in zip(groups, model_errors, strict=True)),
    ]


def ranked(correlation, cells=8):
    """Return runs of ten mixtures in some cells, and divergences that rank as their losses do, or not at all."""
    random = np.random.default_rng(3)
    shares = np.linspace(0.1, 1.0, 10)
    order = shares if correlation else shares[[4, 9, 1, 6, 3, 0, 8, 5, 2, 7]]
    found = runs(
        lambda source, share, n, d: 0.05 * share,
        [("hq", share) for share in shares],
        D_AXIS[:cells],
        noise=5e-3,
    )
    names = [replace(found[0], share=share).group for share in shares]
    return found, dict(zip(names, order + 1e-3 * random.random(10), strict=True))


RANKED, ALIGNED = ranked(correlation=True, cells=6)
_, SHUFFLED = ranked(correlation=False, cells=6)

SUPPORTED = {
    1: {"runs": TRAINED, "laws": [NATURAL, law("hq 100 %", scale=450.0), law("qa 100 %", scale=470.0)]},
    2: {"runs": TRAINED, "laws": [NATURAL, law("hq 33 %", scale=410 * 4**-0.28, floor=1.64)]},
    3: {"runs": runs(textbook_gap, [(None, 0.0), ("textbook", 1.0)], D_AXIS)},
    4: {"optima": searched("hq", (0.3, 0.31, 0.29, 0.3))},
    5: {"optima": searched("qa", (0.5, 0.43, 0.37, 0.3))},
    6: {"optima": [*searched("textbook", (0.01, 0.06, 0.12, 0.18), 0.01), *searched("qa", (0.5, 0.43, 0.37, 0.3))]},
    7: {"runs": runs(tied_gap, ALL_SHARES, D_AXIS)},
    8: {"runs": TRAINED, "laws": [NATURAL, law("hq 33 %", floor=1.6), law("hq 67 %", floor=1.65)]},
    9: {"laws": held_out((1e-4, 2e-4, 3e-4, 2.1e-3))},
    10: {"runs": runs(generator_gap, GENERATORS, D_AXIS)},
    11: {"runs": runs(along(0.02, 0.0), PAIR, BOTH_AXES)},
    12: {"runs": TRAINED, "laws": thirds(floor=1.65)},
    13: {"runs": RANKED, "divergences": SHUFFLED},
}  # fmt: skip
NOT_SUPPORTED = {
    1: {"runs": TRAINED, "laws": [NATURAL, law("hq 100 %", scale=300.0), law("qa 100 %", scale=470.0)]},
    2: {"runs": TRAINED, "laws": [NATURAL, law("hq 33 %")]},
    3: {"runs": runs(lambda *args: -textbook_gap(*args), [(None, 0.0), ("textbook", 1.0)], D_AXIS)},
    4: {"optima": searched("hq", (0.3, 0.31, 0.6, 0.3))},
    5: {"optima": searched("qa", (0.3, 0.37, 0.43, 0.5))},
    6: {"optima": searched("textbook", (0.3, 0.33, 0.34, 0.38))},
    7: {"runs": runs(lambda source, share, n, d: -0.1 * share if source == "hq" else 0.0, ALL_SHARES, D_AXIS)},
    8: {"runs": TRAINED, "laws": [NATURAL, law("hq 33 %", floor=1.8), law("hq 67 %", floor=1.65)]},
    9: {"laws": held_out((0.02, 0.021, 0.019, 0.02))},
    10: {"runs": runs(lambda *args: -generator_gap(*args), GENERATORS, D_AXIS)},
    11: {"runs": runs(along(0.0, 0.02), PAIR, BOTH_AXES)},
    12: {"runs": TRAINED, "laws": thirds(floor=1.65, textbook_floor=1.6, textbook_exponent=0.3)},
    13: {"runs": RANKED, "divergences": ALIGNED},
}  # fmt: skip
UNDECIDED = {
    1: {"runs": TRAINED, "laws": [NATURAL, law("hq 100 %", spread=0.05), law("qa 100 %", scale=470.0)]},
    2: {"runs": TRAINED, "laws": [NATURAL, law("hq 33 %", scale=410 * 4**-0.28, floor=1.64, spread=0.05)]},
    3: {"runs": runs(textbook_gap, [(None, 0.0), ("textbook", 1.0)], D_AXIS[:2])},
    4: {"optima": searched("hq", (0.3, 0.31, 0.29, 0.3), 0.2)},
    5: {"optima": searched("qa", (0.5, 0.43, 0.37, 0.3), 0.2)},
    6: {"optima": searched("textbook", (0.01, 0.06, 0.12, 0.18), 0.01)},
    7: {"runs": runs(tied_gap, [each for each in ALL_SHARES if each[0] != "textbook"], D_AXIS)},
    8: {"runs": TRAINED, "laws": [NATURAL, law("hq 33 %", floor=1.6, weak=("E",)), law("hq 67 %", floor=1.65)]},
    9: {"laws": held_out((1e-3, 2e-3, 3e-3, 9e-3))},
    10: {"runs": runs(generator_gap, GENERATORS, D_AXIS), "roles": Roles(rephrased="small")},
    11: {"runs": runs(along(0.02, 0.0), PAIR, D_AXIS)},
    12: {"runs": TRAINED, "laws": thirds(floor=1.7, spread=0.1)},
    13: {"runs": RANKED[:10], "divergences": SHUFFLED},
}  # fmt: skip


@pytest.mark.parametrize("number", SUPPORTED)
def test_a_claim_that_is_true_of_the_runs_is_supported(number):
    found = claim(number, **SUPPORTED[number])
    assert found.verdict == "supported", found
    assert all(part.reason and part.statistic and part.value for part in found.parts)


@pytest.mark.parametrize("number", NOT_SUPPORTED)
def test_a_claim_that_is_false_of_the_runs_is_not_supported(number):
    found = claim(number, **NOT_SUPPORTED[number])
    assert found.verdict == "not supported", found


@pytest.mark.parametrize("number", UNDECIDED)
def test_a_claim_that_the_runs_do_not_decide_says_why(number):
    found = claim(number, **UNDECIDED[number])
    assert found.verdict == "not testable with these runs", found
    assert any(part.verdict == found.verdict and part.reason for part in found.parts)


@pytest.mark.parametrize("number", range(1, 14))
def test_a_claim_without_its_runs_has_no_number(number):
    found = claim(number, runs=runs(lambda *_: 0.0, [(None, 0.0), ("other", THIRD)], D_AXIS), roles=Roles())
    assert found.verdict == "not testable with these runs"
    assert all(part.value is None and part.reason for part in found.parts)


def test_all_thirteen_claims_are_there():
    assert list(CLAIMS) == list(SUPPORTED) == list(NOT_SUPPORTED) == list(UNDECIDED) == list(range(1, 14))


# --- what a claim rests on -------------------------------------------------------------------------------------


def test_small_errors_are_within_a_limit_they_cannot_be_below_zero_of():
    """The interval of these errors begins below 0, where no error can be: only its upper end says anything."""
    data, model = claim(9, laws=held_out((1e-4, 2e-4, 3e-4, 2.1e-3))).parts
    assert data.value.low < 0.0 < data.value.high < 0.0041
    assert data.verdict == "supported"
    assert model.value.value == pytest.approx(0.001)  # the error along N is shown as well


def test_the_speed_up_has_two_ends_and_must_grow():
    factor, growth = claim(2, **SUPPORTED[2]).parts
    assert 5 < factor.value.low < 7.1 < factor.value.high < 10
    assert growth.value.value == pytest.approx(1.6, rel=0.05)
    everywhere = [NATURAL, law("hq 33 %", scale=410 * 7**-0.28, spread=1e-4)]
    assert claim(2, runs=TRAINED, laws=everywhere).parts[0].verdict == "supported"
    twenty = [NATURAL, law("hq 33 %", scale=410 * 20**-0.28, floor=1.68)]
    assert claim(2, runs=TRAINED, laws=twenty).parts[0].verdict == "not supported"


def test_textbooks_that_are_worse_on_one_domain_only_are_not_worse_on_many():
    found = tuple(
        replace(
            run,
            domains={**run.domains, **dict.fromkeys(("books", "code"), 3.0 - (0.1 if run.share else 0.0))},
        )
        for run in runs(textbook_gap, [(None, 0.0), ("textbook", 1.0)], D_AXIS)
    )
    domains = claim(3, runs=found).parts[1]
    assert domains.verdict == "not supported"
    assert domains.value.value == pytest.approx(1 / 3)
    assert "clearly worse on 1 of 3, clearly not on 2" in domains.reason


def test_the_ends_of_the_question_answer_share_count_as_well_as_its_fall():
    falls, small, large = claim(5, optima=searched("qa", (0.9, 0.8, 0.7, 0.6))).parts
    assert (falls.verdict, small.verdict, large.verdict) == ("supported", "not supported", "not supported")


def test_textbooks_are_held_against_question_answer_text():
    optima = [*searched("textbook", (0.1, 0.11, 0.12, 0.13)), *searched("qa", (0.0, 0.01, 0.02, 0.03))]
    assert claim(6, optima=optima).parts[2].verdict == "not supported"


def test_a_third_of_textbooks_is_held_against_two_thirds():
    *rephrased, textbook = claim(7, **SUPPORTED[7]).parts
    assert [part.reason.split(",")[0] for part in (*rephrased, textbook)] == ["hq", "qa", "textbook"]
    assert textbook.value.high < 0.0


def test_a_lower_exponent_is_a_collapse_as_a_higher_floor_is():
    laws = thirds(floor=1.65, textbook_floor=1.7, textbook_exponent=0.2)
    found = claim(12, runs=TRAINED, laws=laws)
    assert found.verdict == "supported"
    assert [part.verdict for part in found.parts][3] == "supported"
    slower = claim(12, runs=TRAINED, laws=thirds(floor=1.65, exponent=0.2))
    assert (slower.verdict, slower.parts[1].verdict) == ("not supported", "not supported")


def test_a_weak_exponent_decides_nothing():
    found = claim(12, runs=TRAINED, laws=thirds(floor=1.65, weak=("beta",)))
    assert found.verdict == "not testable with these runs"
    assert "not identified for hq 33 %" in found.parts[1].reason


def test_a_floor_at_zero_is_no_irreducible_loss_to_compare():
    laws = [NATURAL, law("hq 33 %", floor=1e-6), law("hq 67 %", floor=1.65)]
    (part,) = claim(8, runs=TRAINED, laws=laws).parts
    assert part.reason == "the irreducible loss is not identified for hq 33 %"


def test_cells_tell_of_these_mixtures_what_one_cell_cannot():
    several = claim(13, runs=RANKED, divergences=SHUFFLED).parts[0]
    one = claim(13, runs=RANKED[:10], divergences=SHUFFLED).parts[0]
    assert several.value.high - several.value.low < 0.5 < one.value.high - one.value.low
    assert "the mixtures are taken as given" in several.reason
    # Seeds are no mixtures: five runs of each of four say as little as four.
    seeds = tuple(replace(run, seed=seed) for run in RANKED[:4] for seed in range(5))
    assert claim(13, runs=seeds, divergences=ALIGNED).parts[0].reason.startswith("4 mixtures")


def test_seeds_of_a_cell_are_no_further_cells():
    found = tuple(
        ClaimRun(source, share, 1e9, tokens, loss, seed=seed)
        for tokens, gap in ((1e9, 0.02), (1e10, 0.06))
        for source, share, loss in ((None, 0.0, 3.0), ("hq", THIRD, 3.0 * (1 + gap)))
        for seed in range(10)
    )
    laws = SavedLaws(FitFile(hash="0", recipe={}, fits=(), rows=(), provenance={}), ())
    ratios = [
        ratio for _, ratio in ClaimData(found, laws, (), Roles()).log_ratios(("hq", THIRD), (None, 0.0))
    ]
    assert ratios == pytest.approx([math.log(1.02), math.log(1.06)])


def test_gains_of_sizes_and_budgets_that_grow_together_are_not_told_apart():
    cells = [(10.0**k, 10.0 ** (k + 2)) for k in (5, 6, 7, 8)]
    (part,) = claim(11, runs=runs(along(0.02, 0.0), PAIR, cells)).parts
    assert "grow together" in part.reason
