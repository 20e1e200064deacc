"""Claims about losses: by the data laws and their resamples, or between runs that differ in one thing only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

from synth.percentage import percentage, signed_percentage
from tune.claim_data import ClaimData
from tune.claim_statistics import (
    CONFIDENCE,
    Part,
    Verdict,
    all_hold,
    any_holds,
    data_laws,
    judge,
    mean_of,
    of_all,
    slope_of,
    speed_up,
    untested,
)
from tune.laws import FittedLaw
from tune.laws.fitted import interval_from
from tune.laws.identify import NEGLIGIBLE_SHARE
from tune.laws.law import Floats
from tune.observations import NATURAL, mixture_label
from tune.results import Interval

TIE = 0.01
"""Losses within this relative difference are called nearly tied."""
EXPONENT_TIE = 0.1
"""An exponent that is lower by no more than this fraction is called no worse."""
WEAK_CORRELATION = 0.5
"""A rank correlation is weak when its size is below this."""
FEWEST_RANKED = 5
"""Mixtures of one cell that a rank correlation needs."""
MANY_DOMAINS = 0.5
"""Textbooks are worse on many domains when they are on at least this part of them."""
HOLD_OUT_LIMITS = {"data": 0.0041, "model": 0.0030}
"""The paper's errors at D = 200 B and N = 3 B, sections 4.1.3 and 4.1.4."""


def pure_is_not_faster(data: ClaimData) -> Verdict:
    """Claim 1."""
    statistic = "speed-up at equal loss, at most 1"
    roles = (data.roles.rephrased, data.roles.question_answer)
    pure = [source for source in roles if source and data.near(source, 1.0) == 1.0]
    if not pure:
        return of_all(untested(statistic, "no rephrased or question-answer source was trained alone"))
    parts = []
    for source in pure:
        found = speed_up(data, source, 1.0)
        parts.append(
            untested(statistic, found)
            if isinstance(found, str)
            else judge(
                statistic, found[0], -math.inf, 1.0, f"{source} alone, by the data laws at the largest budget"
            )
        )
    return of_all(*parts)


def third_is_faster(data: ClaimData) -> Verdict:
    """Claim 2."""
    factor, growth = (
        "speed-up at equal loss at the largest budget, 5 to 10",
        "its ratio to that at the smallest budget, above 1",
    )
    source, share = _third(data)
    if source is None or share is None:
        return of_all(untested(factor, "no rephrased source was trained at a share near 1/3"))
    found = speed_up(data, source, share)
    if isinstance(found, str):
        return of_all(untested(factor, found))
    says = f"{mixture_label(source, share)}, by the data laws"
    return of_all(judge(factor, found[0], 5.0, 10.0, says), judge(growth, found[1], 1.0, math.inf, says))


def textbook_is_worse(data: ClaimData) -> Verdict:
    """Claim 3."""
    worse = "mean log loss ratio to natural text, above 0"
    source = data.roles.textbook
    pairs = data.log_ratios((source, 1.0), (None, 0.0)) if source else []
    if source is None or not pairs:
        return of_all(untested(worse, "no textbook source was trained alone in a cell with natural text"))
    tokens = np.array([run.train_tokens for run, _ in pairs])
    gaps = np.array([gap for _, gap in pairs])
    says = f"{source} alone, {len(pairs)} cells, {signed_percentage(gaps[tokens == tokens.min()].mean())} at the smallest budget"
    return of_all(
        judge(worse, mean_of(gaps.tolist()), 0.0, math.inf, says),
        _worse_on_many_domains(data, source),
        _gap_shrinks(tokens, gaps),
    )


def _worse_on_many_domains(data: ClaimData, source: str) -> Part:
    """Count domains in which the whole interval is above 0, and in which none of it is, all at one joint confidence."""
    statistic = f"part of the held-out domains in which they are worse, at least {percentage(MANY_DOMAINS)}"
    run_domains = [set(run.domains) for run in data.runs if run.synthetic in (None, source)]
    domains = sorted(set.intersection(*run_domains)) if run_domains else []
    if not domains:
        return untested(statistic, "the runs have no loss by domain in common")
    level = 1.0 - (1.0 - CONFIDENCE) / len(domains)
    gaps = [
        mean_of([gap for _, gap in data.log_ratios((source, 1.0), (None, 0.0), domain)], level)
        for domain in domains
    ]
    worse = sum(gap.low is not None and gap.low > 0.0 for gap in gaps)
    no_worse = sum(gap.high is not None and gap.high <= 0.0 for gap in gaps)
    count = len(domains)
    value = Interval(
        value=sum(gap.value > 0.0 for gap in gaps) / count, low=worse / count, high=1.0 - no_worse / count
    )
    return judge(
        statistic, value, MANY_DOMAINS, 1.0, f"clearly worse on {worse} of {count}, clearly not on {no_worse}"
    )


def _gap_shrinks(tokens: Floats, gaps: Floats) -> Part:
    statistic = "change of that ratio per factor of ten of D, below 0"
    if len(np.unique(tokens)) < 3:
        return untested(statistic, "too few budgets to see whether the gap shrinks")
    return judge(
        statistic, slope_of(np.log10(tokens), gaps), -math.inf, 0.0, f"{len(np.unique(tokens))} budgets"
    )


def third_and_two_thirds(data: ClaimData) -> Verdict:
    """Claim 7."""
    tied = f"mean log loss ratio of 1/3 to 2/3 of rephrased text, within {percentage(TIE)}"
    better = "mean log loss ratio of 1/3 to 2/3 of textbooks, below 0"
    rephrased = [source for source in (data.roles.rephrased, data.roles.question_answer) if source]
    parts = [_third_to_two_thirds(data, tied, source, -TIE, TIE) for source in rephrased]
    if not parts:
        parts = [untested(tied, "no rephrased source was trained")]
    textbook = data.roles.textbook
    last = (
        untested(better, "no textbook source was trained")
        if textbook is None
        else _third_to_two_thirds(data, better, textbook, -math.inf, 0.0)
    )
    return of_all(*parts, last)


def _third_to_two_thirds(data: ClaimData, statistic: str, source: str, low: float, high: float) -> Part:
    third, two_thirds = (data.near(source, share) for share in (1 / 3, 2 / 3))
    if third is None or two_thirds is None or third == two_thirds:
        return untested(statistic, f"{source} was not trained near shares of 1/3 and of 2/3")
    pairs = data.log_ratios((source, third), (source, two_thirds))
    if not pairs:
        return untested(statistic, f"no cell has both shares of {source}")
    return judge(statistic, mean_of([gap for _, gap in pairs]), low, high, f"{source}, {len(pairs)} cells")


def third_has_lowest_floor(data: ClaimData) -> Verdict:
    """Claim 8."""
    statistic = "its irreducible loss E less the lowest other E, below 0"
    source, share = _third(data)
    fits = {fit.record.group: fit for fit in data.laws if fit.record.law == "data"}
    own = mixture_label(source, share or 0.0)
    if share is None or own not in fits or NATURAL not in fits or len(fits) < 3:
        missing = "there are no data laws of natural text, a third of rephrased text and another mixture"
        return of_all(untested(statistic, missing))
    if weak := [group for group, fit in fits.items() if _is_weak(fit, "E")]:
        return of_all(untested(statistic, f"the irreducible loss is not identified for {', '.join(weak)}"))
    count = min(len(fit.samples) for fit in fits.values())
    floors = {group: _samples(fit, "E")[:count] for group, fit in fits.items()}
    lowest = np.minimum.reduce([values for group, values in floors.items() if group != own])
    best = fits[own].parameters["E"] - min(fit.parameters["E"] for group, fit in fits.items() if group != own)
    value = interval_from(best, floors[own] - lowest, CONFIDENCE)
    return of_all(judge(statistic, value, -math.inf, 0.0, f"{own} against {len(fits) - 1} other mixtures"))


def held_out_is_predicted(data: ClaimData) -> Verdict:
    """Claim 9."""
    parts = []
    for law, limit in HOLD_OUT_LIMITS.items():
        axis = {"data": "budget", "model": "size"}[law]
        statistic = f"mean error at the largest {axis} held out, at most {percentage(limit, 2)}"
        errors = [
            fit.record.hold_out.mean_absolute_relative_error
            for fit in data.laws
            if fit.record.law == law and fit.record.hold_out
        ]
        parts.append(
            judge(statistic, mean_of(errors), -math.inf, limit, f"{law} laws of {len(errors)} mixtures")
            if errors
            else untested(statistic, f"no {law} law has a hold-out error")
        )
    return of_all(*parts)


def larger_generator_is_not_better(data: ClaimData) -> Verdict:
    """Claim 10."""
    better = "log loss ratio of the middle to the small generator, below 0"
    no_better = "log loss ratio of the large to the middle generator, at least 0"
    if len(data.roles.generators) < 3:
        return of_all(untested(better, "no three sources that differ in the size of their generator alone"))
    small, middle, large = data.roles.generators[:3]
    parts = []
    for statistic, over, under, low, high in (
        (better, middle, small, -math.inf, 0.0),
        (no_better, large, middle, 0.0, math.inf),
    ):
        shares = [share for share in data.shares_of(over) if share in data.shares_of(under)]
        gaps = [gap for share in shares for _, gap in data.log_ratios((over, share), (under, share))]
        says = f"{over} against {under}, {len(gaps)} pairs of cell and share"
        parts.append(
            judge(statistic, mean_of(gaps), low, high, says)
            if gaps
            else untested(statistic, f"no cell has the same share of {over} and {under}")
        )
    return of_all(*parts)


def gains_grow_along_data(data: ClaimData) -> Verdict:
    """Claim 11."""
    statistic = "relative gain per factor of ten of D less that of N, above 0"
    source = data.roles.rephrased or data.roles.question_answer
    share = data.near(source, 1 / 3) if source else None
    pairs = data.log_ratios((None, 0.0), (source, share)) if source and share else []
    n = np.array([run.num_params for run, _ in pairs])
    d = np.array([run.train_tokens for run, _ in pairs])
    if len(np.unique(n)) < 2 or len(np.unique(d)) < 2 or len(pairs) < 4:
        few = "no rephrased source was trained with natural text over several sizes and several budgets"
        return of_all(untested(statistic, few))
    design = np.column_stack([np.ones_like(n), np.log10(n), np.log10(d)])
    if np.linalg.matrix_rank(design) < 3:
        together = "sizes and budgets grow together, so what each does cannot be told apart"
        return of_all(untested(statistic, together))
    value = _contrast(design, np.array([gain for _, gain in pairs]), np.array([0.0, -1.0, 1.0]))
    return of_all(
        judge(statistic, value, 0.0, math.inf, f"{mixture_label(source, share or 0.0)}, {len(pairs)} cells")
    )


def _contrast(design: Floats, y: Floats, contrast: Floats) -> Interval:
    """Return a combination of least-squares coefficients with its t interval."""
    coefficients, *_ = np.linalg.lstsq(design, y)
    degrees = len(y) - design.shape[1]
    variance = float(np.sum((y - design @ coefficients) ** 2)) / degrees
    error = math.sqrt(variance * float(contrast @ np.linalg.pinv(design.T @ design) @ contrast))
    reach = float(student.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    value = float(contrast @ coefficients)
    return Interval(value=value, low=value - reach, high=value + reach, standard_error=error)


def no_collapse(data: ClaimData) -> Verdict:
    """Claim 12: rephrased text is no worse in floor and exponent; textbooks are worse in one of them at least."""
    floor, exponent = (
        _against_natural(data, "rephrased", data.roles.rephrased, name, *within)
        for name, within in (("E", (-math.inf, TIE)), ("beta", (-EXPONENT_TIE, math.inf)))
    )
    higher, slower = (
        _against_natural(data, "textbook", data.roles.textbook, name, *within)
        for name, within in (("E", (0.0, math.inf)), ("beta", (-math.inf, 0.0)))
    )
    holds = all_hold(floor.holds, exponent.holds, any_holds(higher.holds, slower.holds))
    return (floor, exponent, higher, slower), holds


_PARAMETERS = {"E": "irreducible loss E", "beta": "exponent of D"}


def _against_natural(
    data: ClaimData, role: str, source: str | None, name: str, low: float, high: float
) -> Part:
    """Return how far a parameter of a third of a source lies from that of natural text, relative to the latter."""
    where = f"at most {percentage(high)} above" if math.isfinite(high) and high > 0 else f"at most {percentage(-low)} below" if low < 0 < high else "above" if high > 0 else "below"  # fmt: skip
    alternative = ", or the other" if role == "textbook" else ""
    statistic = f"{_PARAMETERS[name]} of a third of {role} text, {where} that of natural text{alternative}"
    share = data.near(source, 1 / 3) if source else None
    if source is None or share is None:
        return untested(statistic, f"no {role} source was trained at a share near 1/3")
    laws = data_laws(data, source, share)
    if isinstance(laws, str):
        return untested(statistic, laws)
    if weak := [fit.record.group for fit in laws if _is_weak(fit, name)]:
        return untested(statistic, f"the {_PARAMETERS[name]} is not identified for {', '.join(weak)}")
    count = min(len(fit.samples) for fit in laws)
    base, mixed = (_samples(fit, name)[:count] for fit in laws)
    value = laws[1].parameters[name] / laws[0].parameters[name] - 1.0
    return judge(
        statistic, interval_from(value, mixed / base - 1.0, CONFIDENCE), low, high, laws[1].record.group
    )


def unigrams_do_not_rank(data: ClaimData) -> Verdict:
    """Claim 13: of these mixtures, over all cells; of one cell alone, of any such mixtures."""
    statistic = f"rank correlation with the loss, within {WEAK_CORRELATION} of 0"
    cells: dict[tuple[float, float], dict[str, list[float]]] = {}
    for run in data.runs:
        if run.group in data.divergences:
            cell = cells.setdefault((run.num_params, run.train_tokens), {})
            cell.setdefault(run.group, []).append(run.loss)
    ranked = {cell: losses for cell, losses in cells.items() if len(losses) >= FEWEST_RANKED}
    if not ranked:
        most = max((len(losses) for losses in cells.values()), default=0)
        few = f"{most} mixtures of one cell have a unigram divergence, and a rank correlation needs {FEWEST_RANKED}"
        return of_all(untested(statistic, few))
    found = [_rank_correlation(data, losses) for losses in ranked.values()]
    if len(ranked) == 1:
        ((n, d), losses) = next(iter(ranked.items()))
        says = f"{len(losses)} mixtures at N = {n:,.0f}, D = {d:,.0f}, read as a sample of mixtures"
        return of_all(
            judge(statistic, _of_a_sample(found[0], len(losses)), -WEAK_CORRELATION, WEAK_CORRELATION, says)
        )
    fewest, most = min(map(len, ranked.values())), max(map(len, ranked.values()))
    count = str(most) if fewest == most else f"{fewest} to {most}"
    says = (
        f"mean over {len(ranked)} cells of {count} mixtures; the interval is over cells, the mixtures are taken as given, so "
        "it says nothing of others"
    )
    return of_all(judge(statistic, _mean_correlation(found), -WEAK_CORRELATION, WEAK_CORRELATION, says))


def _rank_correlation(data: ClaimData, losses: dict[str, list[float]]) -> float:
    ranks = [
        rankdata([data.divergences[mixture] for mixture in losses]),
        rankdata([np.mean(of_seeds) for of_seeds in losses.values()]),
    ]
    return float(np.corrcoef(ranks)[0, 1])


def _fisher(correlation: float) -> float:
    return math.atanh(max(-0.999999, min(0.999999, correlation)))


def _of_a_sample(rho: float, count: int) -> Interval:
    """Return the interval of a rank correlation of a sample of mixtures (Bonett and Wright 2000)."""
    reach = float(student.ppf((1 + CONFIDENCE) / 2, 1_000)) * math.sqrt((1 + rho**2 / 2) / (count - 3))
    centre = _fisher(rho)
    return Interval(value=rho, low=math.tanh(centre - reach), high=math.tanh(centre + reach))


def _mean_correlation(found: Sequence[float]) -> Interval:
    """Return the mean of the rank correlations of several cells, taken on Fisher's scale, with its t interval."""
    mean = mean_of([_fisher(rho) for rho in found])
    low, high = (None if end is None else math.tanh(end) for end in (mean.low, mean.high))
    return Interval(value=math.tanh(mean.value), low=low, high=high)


# --- what several claims ask -----------------------------------------------------------------------------------


def _third(data: ClaimData) -> tuple[str | None, float | None]:
    source = data.roles.rephrased
    return source, data.near(source, 1 / 3) if source else None


def _samples(fit: FittedLaw, name: str) -> Floats:
    return np.asarray(fit.samples[:, fit.law.names.index(name)])


def _is_weak(fit: FittedLaw, name: str) -> bool:
    """Return whether the runs leave a parameter of a data law open; a floor they show no sign of is open, however narrow its
    profile."""
    _, largest = fit.record.ranges["train_tokens"]
    if name == "E" and fit.parameters["E"] < NEGLIGIBLE_SHARE * fit.predict(train_tokens=largest).value:
        return True
    return name not in fit.record.profiles or fit.record.profiles[name].weak
