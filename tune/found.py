"""What a search found in one cell: the optimum with its intervals, and what to beware of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from train.tokens import PackedInfo
from tune.cells import CellSearch, complete_trials, share_caps, surface_of
from tune.config import SearchConfig
from tune.optimum import Curve, interval_of_draws
from tune.results import CellOptimum, Interval, OneSource, TrialResult
from tune.rounds import CONFIDENCE, FEW_LOSSES, best_of, best_shares
from tune.surface import MIN_POINTS, Surface

FLAT_FRACTION = 0.5
"""An optimum is called flat when shares over this part of the range are as good as the best, within a run's noise."""


def cell_optimum(config: SearchConfig, packed: PackedInfo, cell: CellSearch) -> CellOptimum:
    """Return the optimum of a cell from its settled trials. Raises ValueError with fewer complete than MIN_POINTS."""
    surface = surface_of(config, cell.space, cell.settled)
    if surface is None:
        raise ValueError(
            f"cell {cell.name}: fewer than {MIN_POINTS} complete trials, so no curve can be drawn"
        )
    run = cell.trials[0].run
    several = len(config.synthetic) > 1
    curve = Curve.along(surface, CONFIDENCE)
    caps = {name: cap for name, cap in share_caps(config, packed, cell.cell).items() if cap < 1.0}
    return CellOptimum(
        search=config.name,
        natural=config.natural,
        synthetic=config.mixed,
        model=cell.cell.model,
        num_params=cell.num_params,
        train_tokens=run.num_steps * run.tokens_per_step,
        trials=tuple(cell.settled),
        best_share=best_of(cell.space, surface, surface.points.sum(axis=1)),
        best_shares=dict(zip(config.synthetic, best_shares(cell.space, surface), strict=True))
        if several
        else {},
        region=region(surface) if several else (),
        gain=_gain_over_natural(surface) if several else None,
        one_source=best_of_one(config.synthetic, surface) if several else None,
        share_caps=caps,
        best_loss=_loss_at_best(surface),
        natural_only_loss=_natural_only(cell.settled),
        curve=curve.band(),
        noise_nats=surface.noise_nats(),
        method=curve.describe(),
        warnings=tuple(_warnings(config, cell, surface, curve)),
    )


def region(surface: Surface) -> tuple[tuple[float, ...], ...]:
    """Return the mixtures one of which is the best: the fewest that hold CONFIDENCE of the surfaces' minima."""
    counts = np.bincount(surface.draws.argmin(axis=1), minlength=len(surface.points))
    order = np.argsort(-counts, kind="stable")
    needed = int(np.searchsorted(np.cumsum(counts[order]), CONFIDENCE * counts.sum())) + 1
    return tuple(tuple(map(float, surface.points[place])) for place in np.sort(order[:needed]))


def _loss_at_best(surface: Surface) -> Interval:
    best = surface.best_index
    return interval_of_draws(float(surface.mean[best]), surface.draws[:, best], CONFIDENCE)


def best_of_one(sources: Sequence[str], surface: Surface) -> OneSource | None:
    """Return the mixture of natural text and at most one source that loses least; None where there is none to choose."""
    alone = np.flatnonzero((surface.points > 0.0).sum(axis=1) <= 1)
    if not len(alone):
        return None
    place = int(alone[surface.mean[alone].argmin()])
    shares = surface.points[place]
    source = int(shares.argmax())
    return OneSource(
        synthetic=sources[source] if shares[source] > 0.0 else None,
        share=float(shares[source]),
        excess=_excess(surface, place),
    )


def _gain_over_natural(surface: Surface) -> Interval | None:
    natural = np.flatnonzero(surface.points.sum(axis=1) == 0.0)
    return _excess(surface, int(natural[0])) if len(natural) else None


def _excess(surface: Surface, place: int) -> Interval:
    """Return how much more a mixture loses than the best one, nats per token."""
    best = surface.best_index
    value = float(surface.mean[place] - surface.mean[best])
    return interval_of_draws(value, surface.draws[:, place] - surface.draws[:, best], CONFIDENCE)


def _natural_only(settled: Sequence[TrialResult]) -> float | None:
    found = (each.loss_nats_per_token for each in settled if each.share == 0.0 and each.replicate == 0)
    return next(found, None)


def _warnings(config: SearchConfig, cell: CellSearch, surface: Surface, curve: Curve) -> Iterator[str]:
    settled, complete = cell.settled, complete_trials(cell.settled)
    if len(complete) < len(settled):
        failed = ", ".join(
            f"{each.share:.3g} ({each.status})" for each in settled if each.loss_nats_per_token is None
        )
        yield f"{len(settled) - len(complete)} of {len(settled)} trials have no loss: share {failed}"
    if len(complete) < FEW_LOSSES:
        yield f"the curve is drawn through {len(complete)} losses: the interval rests on what is assumed of it"
    low, high = float(curve.shares[0]), float(curve.shares[-1])
    close_low, close_high = curve.indistinguishable(within=surface.noise_nats())
    if close_high - close_low >= FLAT_FRACTION * (high - low):
        yield (
            f"flat optimum: shares from {close_low:.2f} to {close_high:.2f} are within the noise of one run "
            f"({surface.noise_nats():.2g} nats) of the best, so any of them will do"
        )
    yield from _at_an_end(config, cell, surface)
    if not surface.single_valley_fraction:
        yield "no surface with one valley explains the losses: repeat the search with another seed"
    elif not surface.looks_like_one_valley:
        yield (
            f"the losses jump about more than those of runs usually do: they are read as one valley under a noise of {surface.noise_nats():.2g} "
            "nats; more seeds (max_seeds) would show whether it is"
        )


def _at_an_end(config: SearchConfig, cell: CellSearch, surface: Surface) -> Iterator[str]:
    """Say when the best mixture lies where the search had to stop, not where the loss turns up."""
    best = surface.points[surface.best_index]
    total, (low, high) = float(best.sum()), config.share_range
    if (total <= low and low > 0.0) or (total >= high and high < 1.0):
        yield f"the best share lies at the end of the range searched, {total:g}: widen share_range"
    for name, share, cap in zip(config.synthetic, best, cell.space.caps, strict=True):
        if 0.0 < cap < 1.0 and share >= cap and cap <= high:
            yield (
                f"the best share of {name} is all its tokens allow, {cap:.3g}: generate more of it, or allow more passes over it "
                "(run.max_epochs, run.max_epochs_by_source)"
            )
    if low < total <= cell.space.share_range[0]:
        yield f"the best share is as low as the tokens of {config.natural} allow, {total:.3g}: a lower one may be better"
