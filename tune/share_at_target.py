"""Any share at the target, trained or not: its loss by the curve over the shares, its tokens by the laws beside it.

The curve says what a share loses at the target. How that moves with tokens is taken from the laws of the trained
mixtures on either side, each in proportion to how near it is: from D to D' tokens a law moves by L(D') - L(D), and what
it says in all cancels out. So natural text and every share lie on one curve, and the tokens to equal loss follow from
their difference there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from synth.percentage import percentage
from tune.at_target import TOKEN_GRID, MixtureAtTarget, losses_over_tokens, tokens_where
from tune.optimum import Curve
from tune.results import Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ShareAtTarget:
    """One share of one source at the target."""

    share: float
    num_params: float
    train_tokens: float
    curve: Curve = field(repr=False)
    natural: MixtureAtTarget
    below: MixtureAtTarget
    """The trained mixture with the largest share up to this one."""
    above: MixtureAtTarget
    """The trained mixture with the smallest share from this one on; `below` itself where the share was trained."""

    @property
    def gain(self) -> Interval:
        """How much less it loses than natural text alone, nats per token."""
        return self.curve.gain(self.share)

    @property
    def shares_from_trained(self) -> float:
        """How far the nearest share that was trained is."""
        return min(self.share - self.below.share, abs(self.above.share - self.share))

    @property
    def knows_tokens(self) -> bool:
        """Whether the laws beside it say how the loss falls with tokens."""
        return self.below.knows_tokens and self.above.knows_tokens

    @cached_property
    def natural_tokens(self) -> tuple[float, Floats]:
        """Return the tokens after which natural text alone loses as little as this share at the target, and by resample.

        Infinite where it never does. Only where the law of natural text knows tokens.
        """
        return self._tokens_after([(1.0, self.natural)], -1.0)

    def tokens_to_natural_loss(self) -> tuple[float, Floats]:
        """Return the tokens after which this share loses as little as natural text at the target, and by resample.

        Infinite where it never does. Only where `knows_tokens`.
        """
        width = self.above.share - self.below.share
        part = (self.share - self.below.share) / width if width else 0.0
        return self._tokens_after([(1.0 - part, self.below), (part, self.above)], 1.0)

    def _tokens_after(
        self, parts: Sequence[tuple[float, MixtureAtTarget]], sign: float
    ) -> tuple[float, Floats]:
        """Return where the weighted laws have moved by sign x gain from where they are at the target.

        The curve's draws and the resamples of each law are independent, so taken row by row they are draws of all together.
        """
        count = min(len(mixture.fitted.samples) for _, mixture in parts)
        moves = sum(part * self._moves(mixture, count) for part, mixture in parts)
        picked = np.linspace(0, len(self.curve.draws) - 1, count).astype(np.intp)
        gains = (self.curve.losses_at(self.natural.share) - self.curve.losses_at(self.share))[picked]
        tokens = tokens_where(np.asarray(moves), sign * np.append(self.gain.value, gains))
        return float(tokens[0]), tokens[1:]

    def _moves(self, mixture: MixtureAtTarget, count: int) -> Floats:
        """Return L(D') - L(D) over TOKEN_GRID, [1 + count, G]: of the fitted law, then of its resamples."""
        parameters = np.vstack([mixture.fitted.values, mixture.fitted.samples[:count]])
        losses = losses_over_tokens(mixture.fitted, parameters, self.num_params)
        place = float(np.interp(np.log(self.train_tokens), np.log(TOKEN_GRID), np.arange(len(TOKEN_GRID))))
        before = min(int(place), len(TOKEN_GRID) - 2)  # as on the grid, so that no gain is exactly D tokens
        here = losses[:, before] + (place - before) * (losses[:, before + 1] - losses[:, before])
        return np.asarray(losses - here[:, None])


def share_at_target(
    share: float, mixtures: Sequence[MixtureAtTarget], curve: Curve, num_params: float, train_tokens: float
) -> ShareAtTarget:
    """Return a share among the trained ones, which are natural text first and all of one source.

    Beyond the highest, the curve has ended: the share is read as that one.
    """
    below = max((each for each in mixtures if each.share <= share), key=lambda each: each.share)
    return ShareAtTarget(
        share=share,
        num_params=num_params,
        train_tokens=train_tokens,
        curve=curve,
        natural=mixtures[0],
        below=below,
        above=min(
            (each for each in mixtures if each.share >= share), key=lambda each: each.share, default=below
        ),
    )


def percent(share: float) -> str:
    """Return a share for a person: whole per cents, small ones with a decimal."""
    return percentage(share, 1) if 0.0 < share < 0.095 else percentage(share)


def percent_between(share: Interval) -> str:
    """Return a share for a person, with the ends of its interval where it has one."""
    ends = (
        "" if share.low is None or share.high is None else f" ({percent(share.low)} to {percent(share.high)})"
    )
    return f"{percent(share.value)}{ends}"
