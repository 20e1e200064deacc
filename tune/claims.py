"""The thirteen findings of Kang et al. 2025 (arXiv 2510.01631), tested on any study's records.

A claim has one part for each thing it says, each part one statistic with an interval. A part is `supported` when the whole
interval lies where the claim says, `not supported` when the whole of it lies elsewhere; anything else, a missing condition as
well as an interval that reaches both ways, is `not testable with these runs`, with the reason. A claim is supported when all
its parts are, not supported when one of them is not. A claim about "rephrased", "question-answer" or "textbook" text is
tested on the source that plays this role in the study (`tune.claim_roles`).

Tokens to a loss, exponents and irreducible losses come from the data laws and their resamples, best shares from searched
cells or from a curve through the plan's own runs, everything else from runs that differ in one thing only: they read the same
text in the same order, so the difference of their losses is less noisy than either.
"""

from __future__ import annotations

from collections.abc import Callable

from tune import claim_losses, claim_shares
from tune.claim_data import ClaimData
from tune.claim_statistics import Verdict
from tune.results import ClaimPart, ClaimResult, ClaimVerdict


def check_claims(data: ClaimData) -> tuple[ClaimResult, ...]:
    """Return all thirteen claims with their verdicts."""
    return tuple(check_claim(number, data) for number in CLAIMS)


def check_claim(number: int, data: ClaimData) -> ClaimResult:
    """Return one claim, by the paper's order from 1 on, with its verdict."""
    text, test = CLAIMS[number]
    parts, holds = test(data)
    return ClaimResult(
        number=number,
        claim=text,
        verdict=_word(holds),
        parts=tuple(
            ClaimPart(
                statistic=part.statistic, value=part.value, verdict=_word(part.holds), reason=part.reason
            )
            for part in parts
        ),
    )


def _word(holds: bool | None) -> ClaimVerdict:
    return "not testable with these runs" if holds is None else "supported" if holds else "not supported"


CLAIMS: dict[int, tuple[str, Callable[[ClaimData], Verdict]]] = {
    1: ("Rephrased text alone is not faster than natural text", claim_losses.pure_is_not_faster),
    2: ("A third of rephrased text reaches the natural loss with 5 to 10 times fewer tokens, at larger budgets", claim_losses.third_is_faster),
    3: ("Textbooks alone are worse on many domains, most of all at small budgets", claim_losses.textbook_is_worse),
    4: ("The best share of rephrased text is about 30 % at every size and budget", claim_shares.best_is_a_third),
    5: ("The best share of question-answer text falls from about 50 % to about 30 % with scale", claim_shares.best_qa_falls),
    6: ("The best share of textbooks is below 5 % at small budgets, rises, and stays below that of question-answer text", claim_shares.best_textbook_is_small),
    7: ("Shares of 1/3 and 2/3 of rephrased text nearly tie; of textbooks 1/3 is better", claim_losses.third_and_two_thirds),
    8: ("A third of rephrased text has the lowest irreducible loss", claim_losses.third_has_lowest_floor),
    9: ("The largest scale is predicted within 0.41 % (D) and 0.30 % (N)", claim_losses.held_out_is_predicted),
    10: ("A larger generator helps up to a point only", claim_losses.larger_generator_is_not_better),
    11: ("Gains grow along D more than along N", claim_losses.gains_grow_along_data),
    12: ("Rephrased text does not degrade, textbooks show a pattern of collapse", claim_losses.no_collapse),
    13: ("Unigram divergence does not rank the mixtures", claim_losses.unigrams_do_not_rank),
}  # fmt: skip
