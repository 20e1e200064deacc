"""The mixtures a search may try: a lattice of shares of the synthetic sources, natural text being the rest.

A mixture of K synthetic sources is a point of the simplex {w : w_k >= 0, sum w_k <= 1}; the natural share is what is
left of 1. With one source the lattice is a grid of shares, with several it is the simplex lattice of Scheffe
("Experiments with mixtures", 1958), cut to what the sources can supply.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRID_STEPS = 96
"""Steps of the grid of one source over [0, 1]: fine enough for any use of a share, and it holds the thirds."""

STEPS = {1: GRID_STEPS, 2: 24, 3: 12, 4: 8, 5: 6}
"""Steps over [0, 1] by number of synthetic sources: at most about 500 mixtures, on which surfaces can be drawn whole."""

MOST_SOURCES = max(STEPS)


@dataclass(frozen=True)
class MixtureSpace:
    """The mixtures of some synthetic sources that a cell may be trained on."""

    share_range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest share of all synthetic sources together."""
    caps: tuple[float, ...] = (1.0,)
    """[K] highest share of each source."""
    steps: int | None = None
    """Steps over [0, 1]; null takes the number of STEPS."""

    @property
    def num_sources(self) -> int:
        """K."""
        return len(self.caps)

    @property
    def num_steps(self) -> int:
        """Steps over [0, 1]."""
        return self.steps or STEPS[self.num_sources]

    @cached_property
    def points(self) -> Floats:
        """The mixtures, [G, K], sorted by the first source, then the second, and so on."""
        steps = self.num_steps
        low, high = self.share_range
        if self.num_sources == 1:
            end = min(high, self.caps[0])
            shares = share_grid((low, end), steps) if low <= end else ()
            return np.array(shares, dtype=np.float64)[:, None]
        axes = [share_grid((0.0, min(cap, high)), steps) for cap in self.caps]
        inside = [
            mixture
            for mixture in itertools.product(*axes)
            if low - 1e-9 <= math.fsum(mixture) <= min(high, 1.0) + 1e-9
        ]
        return np.array(inside, dtype=np.float64).reshape(-1, self.num_sources)

    def index(self, shares: Sequence[float]) -> int:
        """Return the place of a mixture among the points, or of the one nearest to it."""
        return int(distance(self.points, np.asarray(shares, dtype=np.float64)).argmin())

    def nearest(self, shares: Sequence[float]) -> tuple[float, ...]:
        """Return the point nearest to a mixture."""
        return tuple(map(float, self.points[self.index(shares)]))

    def lattice(self, parts: int) -> tuple[tuple[float, ...], ...]:
        """Return the simplex lattice of so many parts, stretched to the range and the caps, each point once.

        With parts = 3 and one source: the ends and the thirds. With parts = 2: corners and middles of edges.
        """
        low, high = self.share_range
        ends = [min(cap, high) for cap in self.caps]
        if self.num_sources == 1:
            wanted: list[tuple[float, ...]] = [
                (low + (ends[0] - low) * part / parts,) for part in range(parts + 1)
            ]
        else:
            counts = itertools.product(range(parts + 1), repeat=self.num_sources)
            wanted = [
                tuple(end * count / parts for end, count in zip(ends, each, strict=True))
                for each in counts
                if sum(each) <= parts
            ]
        return tuple(dict.fromkeys(self.nearest(each) for each in wanted))

    def centre(self) -> tuple[float, ...]:
        """Return the mixture in the middle: equal parts of every source and of natural text, as far as there is room."""
        return self.nearest([min(cap, 1.0 / (self.num_sources + 1)) for cap in self.caps])


def share_grid(share_range: tuple[float, float], steps: int = GRID_STEPS) -> tuple[float, ...]:
    """Return the shares runs are made at: whole steps of 1 / steps inside the range, and its two ends."""
    low, high = share_range
    inside = (step / steps for step in range(steps + 1))
    return tuple(dict.fromkeys((low, *(share for share in inside if low < share < high), high)))


def with_natural(points: Floats) -> Floats:
    """Return the mixtures with the natural share in front, [..., K + 1]."""
    natural = (1.0 - points.sum(axis=-1, keepdims=True)).clip(min=0.0)
    return np.concatenate([natural, points], axis=-1)


def distance(points: Floats, other: Floats) -> Floats:
    """Return how much of the text differs between mixtures [..., K] and [K] (total variation): 0 equal, 1 nothing shared."""
    apart: Floats = 0.5 * np.abs(with_natural(points) - with_natural(other)).sum(axis=-1)
    return apart


def neighbours(points: Floats) -> NDArray[np.intp]:
    """Return for each of the points [G, K] the places of those next to it, [G, M]; rows are filled up with itself.

    Next to each other are mixtures that differ by one step of one source, or by one step taken from one source and
    given to another. A step is one place on the sorted list of the shares that the source has among the points.
    """
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in points.T], axis=1)
    place = {tuple(row): i for i, row in enumerate(ranks.tolist())}
    num_sources = points.shape[1]
    moves = [move for move in itertools.product((-1, 0, 1), repeat=num_sources) if _is_a_step(move)]
    return np.array(
        [
            [place.get(tuple(int(a) + b for a, b in zip(row, move, strict=True)), i) for move in moves]
            for i, row in enumerate(ranks.tolist())
        ],
        dtype=np.intp,
    )


def _is_a_step(move: Sequence[int]) -> bool:
    return sorted(filter(None, move)) in ([-1], [1], [-1, 1])
