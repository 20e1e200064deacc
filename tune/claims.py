"""The thirteen findings of Kang et al. 2025 (arXiv 2510.01631), tested on any study's records.

Each claim is one statistic with an interval. `supported`: the whole interval lies where the claim says. `not
supported`: the whole interval lies elsewhere. Anything else, a missing condition as well as an interval that reaches
both ways, is `not testable with these runs`, with the reason. A claim about "rephrased", "question-answer" or
"textbook" text is tested on the source that plays this role in the study (`Roles`).

Tokens to a loss and irreducible losses come from the data laws and their resamples, best shares from searched cells or
from a curve through the plan's own runs, everything else from runs that differ in one thing only: they read the same
text in the same order, so the difference of their losses is less noisy than either.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

from tune.claim_data import ClaimData
from tune.claim_statistics import (
    CONFIDENCE,
    Verdict,
    best_shares,
    drift_of,
    judge,
    mean_of,
    not_testable,
    slope_of,
    speed_up,
)
from tune.laws.fitted import interval_from
from tune.observations import NATURAL, mixture_label
from tune.results import ClaimResult, Interval

TIE = 0.01
"""Losses within this relative difference are called nearly tied."""
WEAK_CORRELATION = 0.5
"""A rank correlation is weak when its size is below this."""


def check_claims(data: ClaimData) -> tuple[ClaimResult, ...]:
    """Return all thirteen claims with their verdicts."""
    return tuple(_checked(number, text, statistic, test(data)) for number, text, statistic, test in _CLAIMS)


def _checked(number: int, text: str, statistic: str, found: Verdict) -> ClaimResult:
    value, holds, reason = found
    verdict = "not testable with these runs" if holds is None else "supported" if holds else "not supported"
    return ClaimResult(
        number=number, claim=text, statistic=statistic, value=value, verdict=verdict, reason=reason
    )


# --- the claims ------------------------------------------------------------------------------------------------


def _pure_is_not_faster(data: ClaimData) -> Verdict:
    pure = [s for s in (data.roles.rephrased, data.roles.question_answer) if s and data.near(s, 1.0) == 1.0]
    if not pure:
        return not_testable("no rephrased or question-answer source was trained alone")
    found = {source: speed_up(data, source, 1.0) for source in pure}
    known = {source: value for source, value in found.items() if isinstance(value, Interval)}
    if not known:
        return not_testable("; ".join(str(value) for value in found.values()))
    source = max(known, key=lambda name: known[name].value)
    return judge(known[source], -math.inf, 1.0, f"{source} alone, by the data laws at the largest budget")


def _third_is_faster(data: ClaimData) -> Verdict:
    source = data.roles.rephrased
    share = data.near(source, 1 / 3) if source else None
    if source is None or share is None:
        return not_testable("no rephrased source was trained at a share near 1/3")
    value = speed_up(data, source, share)
    if isinstance(value, str):
        return not_testable(value)
    return judge(
        value, 5.0, math.inf, f"{mixture_label(source, share)}, by the data laws at the largest budget"
    )


def _textbook_is_worse(data: ClaimData) -> Verdict:
    source = data.roles.textbook
    pairs = data.log_ratios((source, 1.0), (None, 0.0)) if source else []
    if not pairs:
        return not_testable("no textbook source was trained alone in a cell with natural text")
    tokens = np.array([run.train_tokens for run, _ in pairs])
    gaps = np.array([gap for _, gap in pairs])
    at_smallest = gaps[tokens == tokens.min()]
    value = mean_of(gaps.tolist())
    if len(np.unique(tokens)) < 3:
        return judge(value, 0.0, math.inf, "mean gap; too few budgets to see whether it shrinks")
    falling = slope_of(np.log10(tokens), gaps)
    says = f"gap {at_smallest.mean():+.2%} at the smallest D, changing {falling.value:+.2%} per factor of ten"
    _, larger, _ = judge(value, 0.0, math.inf, says)
    _, shrinks, _ = judge(falling, -math.inf, 0.0, says)
    holds = None if larger is None or shrinks is None else larger and shrinks
    return value, False if larger is False or shrinks is False else holds, says


def _best_is_a_third(data: ClaimData) -> Verdict:
    source = data.roles.rephrased
    cells = best_shares(data, source) if source else []
    if not cells:
        return not_testable("no cell has enough shares of a rephrased source for a best share")
    lows = [0.0 if share.low is None else share.low for *_, share in cells]
    highs = [1.0 if share.high is None else share.high for *_, share in cells]
    mean = float(np.mean([share.value for *_, share in cells]))
    value = Interval(value=mean, low=min(lows), high=max(highs))
    says = f"{len(cells)} cells, mean {mean:.0%}, intervals from {min(lows):.0%} to {max(highs):.0%}"
    if any(low > 0.4 or high < 0.2 for low, high in zip(lows, highs, strict=True)):
        return value, False, f"{says}; in at least one cell the interval lies outside 20 to 40 %"
    return judge(value, 0.2, 0.4, says)


def _best_qa_falls(data: ClaimData) -> Verdict:
    if data.roles.question_answer is None:
        return not_testable("no question-answer source was trained")
    value = drift_of(data, data.roles.question_answer, lambda n, d: 6.0 * n * d)
    return (
        not_testable(value)
        if isinstance(value, str)
        else judge(value, -math.inf, 0.0, "best share per factor of ten of compute")
    )


def _best_textbook_is_small(data: ClaimData) -> Verdict:
    source = data.roles.textbook
    cells = best_shares(data, source) if source else []
    if source is None or not cells:
        return not_testable("no cell has enough shares of a textbook source for a best share")
    smallest = min(d for _, d, _ in cells)
    at_smallest = next(share for _, d, share in cells if d == smallest)
    value, small, says = judge(at_smallest, 0.0, 0.05, f"best share at D = {smallest:,.0f}")
    drift = drift_of(data, source, lambda _, d: d)
    if isinstance(drift, str):
        return value, False if small is False else None, f"{says}; {drift}"
    _, rises, _ = judge(drift, 0.0, math.inf, "")
    says = f"{says}; {drift.value:+.2f} per factor of ten of D"
    return value, False if small is False or rises is False else True if small and rises else None, says


def _third_and_two_thirds(data: ClaimData) -> Verdict:
    source = data.roles.rephrased or data.roles.question_answer
    third, two_thirds = (data.near(source, share) if source else None for share in (1 / 3, 2 / 3))
    if source is None or third is None or two_thirds is None or third == two_thirds:
        return not_testable("no rephrased source was trained near shares of 1/3 and of 2/3")
    pairs = data.log_ratios((source, third), (source, two_thirds))
    if not pairs:
        return not_testable("no cell has both shares")
    says = f"{source}, {len(pairs)} cells; nearly tied means within {TIE:.0%}"
    return judge(mean_of([gap for _, gap in pairs]), -TIE, TIE, says)


def _third_has_lowest_floor(data: ClaimData) -> Verdict:
    source = data.roles.rephrased
    share = data.near(source, 1 / 3) if source else None
    fits = {fit.record.group: fit for fit in data.laws if fit.record.law == "data"}
    own = mixture_label(source, share or 0.0)
    if share is None or own not in fits or NATURAL not in fits or len(fits) < 3:
        return not_testable(
            "there are no data laws of natural text, a third of rephrased text and another mixture"
        )
    weak = [
        group
        for group, fit in fits.items()
        if "E" not in fit.record.profiles or fit.record.profiles["E"].weak
    ]
    if weak:
        return not_testable(f"the irreducible loss is not identified for {', '.join(weak)}")
    count = min(len(fit.samples) for fit in fits.values())
    floors = {group: fit.samples[:count, fit.law.names.index("E")] for group, fit in fits.items()}
    lowest = np.minimum.reduce([values for group, values in floors.items() if group != own])
    gap = floors[own] - lowest
    best = fits[own].parameters["E"] - min(fit.parameters["E"] for group, fit in fits.items() if group != own)
    return judge(
        interval_from(best, gap, CONFIDENCE),
        -math.inf,
        0.0,
        f"E of {own} less the lowest of {len(fits) - 1} other mixtures",
    )


def _held_out_is_predicted(data: ClaimData) -> Verdict:
    errors = {
        law: [fit.record.hold_out.mean_absolute_relative_error for fit in data.laws if fit.record.law == law and fit.record.hold_out]
        for law in ("data", "model")
    }  # fmt: skip
    limits = {"data": 0.0041, "model": 0.0030}
    if not all(errors.values()):
        return not_testable(
            f"no {' or '.join(law for law, found in errors.items() if not found)} law has a hold-out error"
        )
    means = {law: mean_of(found) for law, found in errors.items()}
    within = {law: judge(means[law], 0.0, limits[law], "")[1] for law in limits}
    says = ", ".join(f"{law} law {means[law].value:.2%} (paper {limits[law]:.2%})" for law in limits)
    holds = False if False in within.values() else True if all(within.values()) else None
    return means["data"], holds, f"mean error of the largest scale held out: {says}"


def _larger_generator_is_not_better(data: ClaimData) -> Verdict:
    if len(data.roles.generators) < 3:
        return not_testable("no three sources that differ in the size of their generator alone")
    small, middle, large = data.roles.generators[:3]
    gains = []
    for over, under in ((middle, small), (large, middle)):
        shares = [share for share in data.shares_of(over) if share in data.shares_of(under)]
        gains.append([gap for share in shares for _, gap in data.log_ratios((over, share), (under, share))])
    if not all(gains):
        return not_testable("no cell has the same share of all three sources")
    first, second = mean_of(gains[0]), mean_of(gains[1])
    better, no_better = judge(first, -math.inf, 0.0, "")[1], judge(second, 0.0, math.inf, "")[1]
    holds = False if better is False or no_better is False else True if better and no_better else None
    return (
        second,
        holds,
        f"middle against small {first.value:+.2%}, large against middle {second.value:+.2%} of the loss",
    )


def _gains_grow_along_data(data: ClaimData) -> Verdict:
    source = data.roles.rephrased or data.roles.question_answer
    share = data.near(source, 1 / 3) if source else None
    pairs = data.log_ratios((None, 0.0), (source, share)) if source and share else []
    n, d, gain = (np.array(each) for each in zip(*((r.num_params, r.train_tokens, g) for r, g in pairs), strict=True)) if pairs else (np.empty(0),) * 3  # fmt: skip
    if len(np.unique(n)) < 2 or len(np.unique(d)) < 2 or len(gain) < 4:
        return not_testable(
            "no rephrased source was trained with natural text over several sizes and several budgets"
        )
    design = np.column_stack([np.ones_like(gain), np.log10(n), np.log10(d)])
    if np.linalg.matrix_rank(design) < 3:
        return not_testable("sizes and budgets grow together, so what each does cannot be told apart")
    coefficients, *_ = np.linalg.lstsq(design, gain)
    degrees = len(gain) - 3
    variance = float(np.sum((gain - design @ coefficients) ** 2)) / degrees
    contrast = np.array([0.0, -1.0, 1.0])
    error = math.sqrt(variance * float(contrast @ np.linalg.pinv(design.T @ design) @ contrast))
    reach = float(student.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    value = float(contrast @ coefficients)
    interval = Interval(value=value, low=value - reach, high=value + reach, standard_error=error)
    return judge(
        interval,
        0.0,
        math.inf,
        f"{mixture_label(source, share or 0.0)}: relative gain per factor of ten of D less that of N",
    )


def _no_collapse(data: ClaimData) -> Verdict:
    roles = {"rephrased": data.roles.rephrased, "textbook": data.roles.textbook}
    gaps = {}
    for role, source in roles.items():
        share = data.near(source, 1 / 3) if source else None
        fits = [data.laws.find("data", group) for group in (NATURAL, mixture_label(source, share or 0.0))]
        if source is None or share is None or any(fit is None for fit in fits):
            return not_testable(f"there is no data law of natural text and of a third of {role} text")
        natural, mixed = (fit for fit in fits if fit is not None)
        if any("E" not in fit.record.profiles or fit.record.profiles["E"].weak for fit in (natural, mixed)):
            return not_testable(f"the irreducible loss of natural or of {source} mixtures is not identified")
        count, at = min(len(natural.samples), len(mixed.samples)), natural.law.names.index("E")
        samples = mixed.samples[:count, at] - natural.samples[:count, at]
        gaps[role] = interval_from(mixed.parameters["E"] - natural.parameters["E"], samples, CONFIDENCE)
    no_worse = judge(gaps["rephrased"], -math.inf, 0.0, "")[1]
    worse = judge(gaps["textbook"], 0.0, math.inf, "")[1]
    holds = False if no_worse is False or worse is False else True if no_worse and worse else None
    return (
        gaps["rephrased"],
        holds,
        f"E less natural text's: rephrased {gaps['rephrased'].value:+.3g}, textbook {gaps['textbook'].value:+.3g}",
    )


def _unigrams_do_not_rank(data: ClaimData) -> Verdict:
    cells: dict[tuple[float, float], dict[str, list[float]]] = {}
    for run in data.runs:
        if run.group in data.divergences:
            cell = cells.setdefault((run.num_params, run.train_tokens), {})
            cell.setdefault(run.group, []).append(run.loss)
    (n, d), losses = max(cells.items(), key=lambda item: len(item[1]), default=((0.0, 0.0), {}))
    if len(losses) < 5:
        return not_testable(
            f"{len(losses)} mixtures of one cell have a unigram divergence, and a rank correlation needs 5"
        )
    ranks = [
        rankdata([data.divergences[mixture] for mixture in losses]),
        rankdata([np.mean(of_seeds) for of_seeds in losses.values()]),
    ]
    rho = float(np.corrcoef(ranks)[0, 1])
    reach = float(student.ppf((1 + CONFIDENCE) / 2, 1_000)) * math.sqrt(
        (1 + rho**2 / 2) / (len(losses) - 3)
    )  # Bonett and Wright 2000
    centre = math.atanh(max(-0.999999, min(0.999999, rho)))
    value = Interval(value=rho, low=math.tanh(centre - reach), high=math.tanh(centre + reach))
    return judge(
        value,
        -WEAK_CORRELATION,
        WEAK_CORRELATION,
        f"{len(losses)} mixtures at N = {n:,.0f}, D = {d:,.0f}",
    )


_CLAIMS: tuple[tuple[int, str, str, Callable[[ClaimData], Verdict]], ...] = (
    (1, "Rephrased text alone is not faster than natural text", "speed-up at equal loss, at most 1", _pure_is_not_faster),
    (2, "A third of rephrased text reaches the natural loss with 5 to 10 times fewer tokens", "speed-up at equal loss, at least 5", _third_is_faster),
    (3, "Textbooks alone are worse, most of all at small budgets", "mean log loss ratio to natural text, above 0 and falling with D", _textbook_is_worse),
    (4, "The best share of rephrased text is about 30 % at every size and budget", "best share, 20 to 40 % in every cell", _best_is_a_third),
    (5, "The best share of question-answer text falls with scale", "change of the best share per factor of ten of compute, below 0", _best_qa_falls),
    (6, "The best share of textbooks is below 5 % at small budgets and rises", "best share at the smallest budget, at most 5 %, and rising", _best_textbook_is_small),
    (7, "Shares of 1/3 and 2/3 of rephrased text nearly tie", f"mean log loss ratio of 1/3 to 2/3, within {TIE:.0%}", _third_and_two_thirds),
    (8, "A third of rephrased text has the lowest irreducible loss", "its E less the lowest other E, below 0", _third_has_lowest_floor),
    (9, "The largest scale is predicted within 0.41 % (D) and 0.30 % (N)", "hold-out error of the data laws", _held_out_is_predicted),
    (10, "A larger generator helps up to a point only", "log loss ratio of the large to the middle generator, at least 0", _larger_generator_is_not_better),
    (11, "Gains grow along D more than along N", "relative gain per factor of ten of D less that of N, above 0", _gains_grow_along_data),
    (12, "Rephrased text does not degrade, textbooks show a pattern of collapse", "E of the mixture less natural text's, at most 0", _no_collapse),
    (13, "Unigram divergence does not rank the mixtures", f"rank correlation with the loss, within {WEAK_CORRELATION} of 0", _unigrams_do_not_rank),
)  # fmt: skip
