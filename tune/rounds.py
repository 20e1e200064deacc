"""What a cell tries next, and when it has tried enough: functions of the configuration and of settled trials alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tune.cells import CellSearch, Choice, choice_of, complete_trials, losses_of, surface_of, transfer_to
from tune.config import SearchConfig
from tune.mixture_space import MixtureSpace, distance
from tune.optimum import interval_of_draws
from tune.results import Interval
from tune.surface import MIN_POINTS, Floats, Losses, Prior, Surface, fit_surface, most_telling

FEW_LOSSES = 5
"""With fewer losses than this the interval is mostly the prior's."""
SPACING = 1 / 24
"""Distance (part of the text that differs) a new mixture keeps from those that were tried, as long as there is room."""
CLOSE_SHARES = 3
"""Mixtures within a run's noise of the best from which on noise decides, and which are repeated with further seeds."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Question:
    """What a round is chosen from."""

    space: MixtureSpace
    """Mixtures to choose from."""
    losses: Losses
    """What has been measured."""
    failed: tuple[int, ...]
    """Places of the mixtures whose run has no loss."""
    prior: Prior | None = None
    """What other cells say."""

    @cached_property
    def surface(self) -> Surface:
        """The surfaces that explain the losses. Raises ValueError below MIN_POINTS losses."""
        return fit_surface(self.space.points, self.losses, self.prior)


def first_choices(config: SearchConfig, space: MixtureSpace) -> tuple[Choice, ...]:
    """Return what a cell starts with.

    One source: the ends and the thirds, where the paper's grid has its runs, or with fewer than five trials the middle
    in place of the thirds. Several: the corners of the simplex and its centre. The `grid` method spreads all its trials:
    the finest simplex lattice that has no more mixtures than there are trials.
    """
    if config.method == "grid":
        parts = max(
            (n for n in range(1, config.trials_per_cell) if len(space.lattice(n)) <= config.trials_per_cell),
            default=1,  # which is then too many, as `tune.search` says
        )
        return tuple(map(Choice, space.lattice(parts)))
    if space.num_sources == 1:
        return tuple(map(Choice, space.lattice(3 if config.trials_per_cell >= FEW_LOSSES else 2)))
    return tuple(map(Choice, dict.fromkeys((*space.lattice(1), space.centre()))))


def is_done(config: SearchConfig, cell: CellSearch) -> bool:
    """Return whether a cell needs no further trial: all are spent, or the intervals of its best shares are narrow."""
    if len(cell.settled) >= cell.most_trials or config.method == "grid":
        return True
    if config.stop_interval_width == 0.0:
        return False
    surface = surface_of(config, cell.space, cell.settled)
    return surface is not None and widest(cell.space, surface) < config.stop_interval_width


def next_choices(
    config: SearchConfig, cell: CellSearch, donors: Sequence[CellSearch]
) -> tuple[Question, tuple[Choice, ...], int]:
    """Return what the next round is chosen from, what it shall begin with, and how many trials it has."""
    count = min(config.trials_per_round, cell.most_trials - len(cell.trials))
    transfer = transfer_to(config, cell, donors)
    losses = losses_of(config, cell.space, cell.settled)
    prior = transfer.prior(losses) if transfer is not None and len(losses.values) else None
    question = Question(cell.space, losses, failed_places(config, cell), prior)
    again = repeats(config, cell)
    if again:
        return question, again[:count], min(count, len(again))
    if not donors or cell.choices != list(first_choices(config, cell.space)):
        return question, (), count
    hint = transfer.best_index if transfer is not None else _best_of(cell.space, donors[0], config)
    if hint is None or any(hint == cell.space.index(each.shares) for each in cell.choices):
        return question, (), count
    return question, (Choice(tuple(map(float, cell.space.points[hint]))),), count


def propose(question: Question, pending: Sequence[int]) -> int:
    """Return the place of the next mixture to try, given those in training besides.

    It keeps away from all that were tried as long as there is room: the same run would only give the same loss, one
    of nearly the same text shares much of its noise, and one beside a mixture that diverged is likely to diverge too.
    With too few losses for a surface it is the mixture farthest from all that were tried.
    """
    points = question.space.points
    tried = {int(place): SPACING for place in (*question.losses.at, *pending)}
    tried |= dict.fromkeys(question.failed, 2 * SPACING)
    room = np.ones(len(points))
    for place, far in tried.items():
        room = np.minimum(room, distance(points, points[place]) / far)
    candidates = np.flatnonzero(room >= 1.0 - 1e-9)
    if not len(candidates):
        candidates = np.flatnonzero(room > 0.0)
    if len(question.losses.values) < MIN_POINTS:
        apart = np.min(
            [distance(points, points[place]) / far for place, far in tried.items()] or [room], axis=0
        )
        return int(candidates[int(apart[candidates].argmax())])
    return most_telling(question.surface, candidates, np.asarray(pending, dtype=np.intp))


def repeats(config: SearchConfig, cell: CellSearch) -> tuple[Choice, ...]:
    """Return the trials to repeat with further seeds, the most urgent first; none while the curve is what is not known.

    Noise decides when at least CLOSE_SHARES of the mixtures tried lie within a run's noise of the best: the loss of one
    more mixture among them would say no more than theirs. The best of them are then trained with the next seed, all
    with the same, so that what the seed does to the loss is the same for all and falls out of the comparison.
    """
    if config.max_seeds == 1:
        return ()
    surface = surface_of(config, cell.space, cell.settled)
    if surface is None:
        return ()
    mean = surface.mean
    tried = {choice_of(config, each).shares: each for each in complete_trials(cell.settled)}
    height = {shares: float(mean[cell.space.index(shares)] - mean.min()) for shares in tried}
    close = sorted(
        (shares for shares in tried if height[shares] <= surface.noise_nats()), key=lambda s: (height[s], s)
    )
    if len(close) < CLOSE_SHARES:
        return ()
    wanted = (Choice(shares, seed) for seed in range(1, config.max_seeds) for shares in close[:CLOSE_SHARES])
    return tuple(choice for choice in wanted if choice not in cell.choices)


def best_shares(space: MixtureSpace, surface: Surface) -> tuple[Interval, ...]:
    """Return the share of each source at the minimum of the mean surface, with the interval of the surfaces' minima."""
    return tuple(best_of(space, surface, column) for column in surface.points.T)


def best_of(space: MixtureSpace, surface: Surface, column: Floats) -> Interval:
    """Return a function of the mixture, [G], at the minimum; the interval is that of the surfaces' minima.

    Its ends lie half a step further out, since the best mixture of all lies anywhere between those on the lattice.
    """
    found = interval_of_draws(
        float(column[surface.best_index]), column[surface.draws.argmin(axis=1)], CONFIDENCE
    )
    half = 0.5 / space.num_steps
    return found.model_copy(
        update={
            "low": max(float(column.min()), (found.low or 0.0) - half),
            "high": min(float(column.max()), (found.high or 0.0) + half),
        }
    )


def widest(space: MixtureSpace, surface: Surface) -> float:
    """Return the width of the widest interval of a best share."""
    return max((each.high or 0.0) - (each.low or 0.0) for each in best_shares(space, surface))


def failed_places(config: SearchConfig, cell: CellSearch) -> tuple[int, ...]:
    """Return the places of the mixtures whose run has no loss."""
    return tuple(
        cell.space.index(choice_of(config, each).shares)
        for each in cell.settled
        if each.loss_nats_per_token is None
    )


def _best_of(space: MixtureSpace, donor: CellSearch, config: SearchConfig) -> int | None:
    """Return the place of another cell's best mixture; None when it has none."""
    optimum = donor.optimum
    if optimum is None:
        return None
    several = [optimum.best_shares[name].value for name in config.synthetic if name in optimum.best_shares]
    return space.index(several or [optimum.best_share.value])


def trial_limits(config: SearchConfig, cells: Sequence[CellSearch], tokens: Sequence[int]) -> list[int]:
    """Return how many trials each cell may spend, given the tokens of one of its runs, so that max_tokens is kept.

    All start with their first round; what is left is dealt out one trial at a time, cheap cells first. It follows from
    the configuration alone, so that a search that was killed stops where it would have stopped.
    """
    if config.max_tokens is None or config.method == "grid":
        return [config.trials_per_cell] * len(cells)
    limits = [len(first_choices(config, cell.space)) for cell in cells]
    left = config.max_tokens - sum(a * b for a, b in zip(limits, tokens, strict=True))
    gave = True
    while gave:
        gave = False
        for i, cost in enumerate(tokens):
            if limits[i] < config.trials_per_cell and cost <= left:
                limits[i] += 1
                left -= cost
                gave = True
    return limits
