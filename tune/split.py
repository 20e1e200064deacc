"""Several synthetic sources together: what searches of several say at the target, and whether several beat one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tune.at_target import decades_from, share_where
from tune.results import CellOptimum, Interval, OneSource, Split
from tune.share_at_target import percent, percent_between


def splits_at(
    cells: Sequence[CellOptimum], num_params: float, train_tokens: float, confidence: float
) -> Iterator[Split]:
    """Yield one split a search of several sources: the best mixtures of its cells, moved to the target source by source.

    Each share moves with N and D as that of one source does (`tune.at_target.combine_shares`). Losses are not moved, since
    laws are of one source each: they are those of the cell that is the fewest decades of N and D away, and of cells as
    far, the largest.
    """
    for search in dict.fromkeys(cell.search for cell in cells if cell.best_shares):
        found = [cell for cell in cells if cell.search == search]
        decades = decades_from(found, num_params, train_tokens)
        far = np.abs(decades).sum(axis=1).round(9)
        nearest = min(zip(far, found, strict=True), key=lambda each: (each[0], -each[1].num_params))[1]
        shares = {
            name: share_where(decades, [cell.best_shares[name] for cell in found], confidence)
            for name in nearest.best_shares
        }
        shares = _within_the_whole(shares)
        yield Split(
            search=search,
            headline=_headline(shares, found, nearest),
            shares=shares,
            gain=nearest.gain,
            one_source=nearest.one_source,
        )


def _within_the_whole(shares: dict[str, Interval]) -> dict[str, Interval]:
    """Return the shares, made smaller in proportion where, moved one by one, they came to more than all tokens."""
    total = sum(each.value for each in shares.values())
    if total <= 1.0:
        return shares
    smaller = {name: each.value / total for name, each in shares.items()}
    return {
        name: each.model_copy(update={"value": smaller[name], "low": min(each.low or 0.0, smaller[name])})
        for name, each in shares.items()
    }


def split_warnings(splits: Sequence[Split]) -> Iterator[str]:
    """Say where the answer, which is of one source, is not the best there is."""
    for split in splits:
        if split.is_shown:
            yield (
                f"searches/{split.search} shows that {' and '.join(split.shares)} together lose less than either alone: the share, "
                "the loss and the costs given here are of one source"
            )


def _headline(shares: dict[str, Interval], found: Sequence[CellOptimum], nearest: CellOptimum) -> str:
    mixture = " and ".join(f"{percent_between(share)} of {name}" for name, share in shares.items())
    cells = "one cell" if len(found) == 1 else f"{len(found)} cells"
    best = f"{mixture} are best at the target by {cells} of searches/{nearest.search}."
    losses = [f"{_nats(nearest.gain)} less than natural text alone"] if nearest.gain else []
    if nearest.one_source:
        losses.append(
            f"{_nats(nearest.one_source.excess)} less than the best of one source ({_alone(nearest.one_source)})"
        )
    if not losses:
        return best
    where = f"At {nearest.model}, {nearest.train_tokens:,} tokens, the nearest cell searched"
    return f"{best} {where}, the best mixture loses {' and '.join(losses)}."


def _alone(one: OneSource) -> str:
    return f"{percent(one.share)} of {one.synthetic}" if one.synthetic else "natural text alone"


def _nats(interval: Interval) -> str:
    return f"{interval.value:.3g} nats per token ({interval.low or 0.0:.3g} to {interval.high or 0.0:.3g})"
