"""Claims about best shares: how large they are, and how they move with size and budget."""

from __future__ import annotations

import math

import numpy as np

from synth.percentage import percentage
from tune.claim_data import ClaimData
from tune.claim_statistics import (
    Part,
    Verdict,
    best_shares,
    drift_of,
    judge,
    of_all,
    scale_ends,
    share_difference,
    untested,
)
from tune.results import Interval

ABOUT = 0.1
"""A best share is about a number when it is within this of it."""
SMALL_SHARE = 0.05


def best_is_a_third(data: ClaimData) -> Verdict:
    """Claim 4."""
    statistic = "best share, 20 to 40 % in every cell"
    source = data.roles.rephrased
    cells = best_shares(data, source) if source else []
    if not cells:
        return of_all(untested(statistic, "no cell has enough shares of a rephrased source for a best share"))
    lows = [0.0 if share.low is None else share.low for *_, share in cells]
    highs = [1.0 if share.high is None else share.high for *_, share in cells]
    mean = float(np.mean([share.value for *_, share in cells]))
    value = Interval(value=mean, low=min(lows), high=max(highs))
    says = f"{source}, {len(cells)} cells, mean {percentage(mean)}, intervals from {percentage(min(lows))} to {percentage(max(highs))}"
    if any(low > 0.4 or high < 0.2 for low, high in zip(lows, highs, strict=True)):
        outside = f"{says}; in at least one cell the interval lies outside 20 to 40 %"
        return of_all(Part(statistic, value, False, outside))
    return of_all(judge(statistic, value, 0.2, 0.4, says))


def best_qa_falls(data: ClaimData) -> Verdict:
    """Claim 5."""
    falls = "change of the best share per factor of ten of compute, below 0"
    ends = ("best share in the smallest cell, 40 to 60 %", "best share in the largest cell, 20 to 40 %")
    source = data.roles.question_answer
    if source is None:
        return of_all(untested(falls, "no question-answer source was trained"))
    drift = drift_of(data, source, lambda n, d: 6.0 * n * d)
    moved = untested(falls, drift) if isinstance(drift, str) else judge(falls, drift, -math.inf, 0.0, source)
    found = scale_ends(data, source)
    if isinstance(found, str):
        return of_all(moved, *(untested(statistic, found) for statistic in ends))
    about = (0.5, 0.3)
    return of_all(
        moved,
        *(
            judge(statistic, share, centre - ABOUT, centre + ABOUT, f"{source}, by compute")
            for statistic, share, centre in zip(ends, found, about, strict=True)
        ),
    )


def best_textbook_is_small(data: ClaimData) -> Verdict:
    """Claim 6."""
    small = f"best share at the smallest budget, at most {percentage(SMALL_SHARE)}"
    source = data.roles.textbook
    cells = best_shares(data, source) if source else []
    if source is None or not cells:
        return of_all(untested(small, "no cell has enough shares of a textbook source for a best share"))
    smallest = min(d for _, d, _ in cells)
    at_smallest = next(share for _, d, share in cells if d == smallest)
    return of_all(
        judge(small, at_smallest, -math.inf, SMALL_SHARE, f"{source} at D = {smallest:,.0f}"),
        _textbook_rises(data, source),
        _textbook_below_qa(data, source),
    )


def _textbook_rises(data: ClaimData, source: str) -> Part:
    statistic = "change of the best share per factor of ten of D, above 0"
    drift = drift_of(data, source, lambda _, d: d)
    return (
        untested(statistic, drift)
        if isinstance(drift, str)
        else judge(statistic, drift, 0.0, math.inf, source)
    )


def _textbook_below_qa(data: ClaimData, source: str) -> Part:
    statistic = "best share less that of question-answer text in the same cells, below 0"
    other = data.roles.question_answer
    if other is None:
        return untested(statistic, "no question-answer source was trained")
    value, cells = share_difference(data, source, other)
    if not cells:
        return untested(statistic, f"no cell has a best share of both {source} and {other}")
    return judge(statistic, value, -math.inf, 0.0, f"{source} less {other}, {cells} cells")
