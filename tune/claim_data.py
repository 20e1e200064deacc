"""What the paper's claims are tested on: the runs of a study, its laws and searches, and who plays which part."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tune.claim_roles import Roles
from tune.laws import SavedLaws
from tune.observations import mixture_label
from tune.results import CellOptimum, Interval


@dataclass(frozen=True)
class ClaimRun:
    """What a claim needs to know of a complete run."""

    synthetic: str | None
    share: float
    num_params: float
    train_tokens: float
    loss: float
    """Nats per token."""
    seed: int = 0
    domains: Mapping[str, float] = field(default_factory=dict)
    """The same by held-out domain."""

    @property
    def group(self) -> str:
        """Its mixture in words."""
        return mixture_label(self.synthetic, self.share)


@dataclass(frozen=True)
class ClaimData:
    """Everything the claims are tested on."""

    runs: tuple[ClaimRun, ...]
    laws: SavedLaws
    optima: tuple[CellOptimum, ...]
    roles: Roles
    divergences: Mapping[str, float] = field(default_factory=dict)
    """By mixture: KL divergence of held-out unigrams from the mixture's, nats."""
    found_shares: dict[str, list[tuple[float, float, Interval]]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """By source: best shares that were worked out already."""

    def log_ratios(
        self, over: tuple[str | None, float], under: tuple[str | None, float], domain: str | None = None
    ) -> list[tuple[ClaimRun, float]]:
        """Return log(loss of one mixture / loss of another) in every cell that has both, with the first one's run.

        On all held-out text together, or on one domain of it. Seeds of a cell are averaged: they share its size and budget, so they are no further evidence about other cells.
        """
        others = {(r.num_params, r.train_tokens, r.seed): r for r in self.runs if _is(r, *under)}
        cells: dict[tuple[float, float], list[tuple[ClaimRun, float]]] = collections.defaultdict(list)
        for run in (each for each in self.runs if _is(each, *over)):
            if (other := others.get((run.num_params, run.train_tokens, run.seed))) is not None:
                mine, theirs = (
                    each.loss if domain is None else each.domains[domain] for each in (run, other)
                )
                cells[run.num_params, run.train_tokens].append((run, math.log(mine / theirs)))
        return [
            (found[0][0], math.fsum(ratio for _, ratio in found) / len(found)) for found in cells.values()
        ]

    def shares_of(self, source: str) -> list[float]:
        """Return the shares of a source that were trained, ascending."""
        return sorted({r.share for r in self.runs if r.synthetic == source and r.share > 0})

    def near(self, source: str, share: float) -> float | None:
        """Return the trained share nearest to one, None when it is further than 0.1 away."""
        found = min(self.shares_of(source), key=lambda each: abs(each - share), default=None)
        return found if found is not None and abs(found - share) <= 0.1 else None


def _is(run: ClaimRun, source: str | None, share: float) -> bool:
    if source is None or share == 0.0:
        return run.synthetic is None or run.share == 0.0
    return run.synthetic == source and abs(run.share - share) < 1e-9
