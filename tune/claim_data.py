"""What the paper's claims are tested on: the runs of a study, its laws and searches, and which source plays which part."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tune.laws import SavedLaws
from tune.observations import mixture_label
from tune.results import CellOptimum


@dataclass(frozen=True)
class Roles:
    """Which source of the study plays which part in the claims; None: none does."""

    rephrased: str | None = None
    question_answer: str | None = None
    textbook: str | None = None
    generators: tuple[str, ...] = ()
    """Sources that differ in nothing but the size of their generator, small to large."""

    @classmethod
    def by_name(cls, sources: Sequence[str]) -> Roles:
        """Return the roles that names give away: hq, qa and textbook, alone or before a dash; three or more of one name
        with sizes behind the dash (hq-3b, hq-8b, hq-70b) are of generators of these sizes. Several sources that were
        searched together, joined by a plus, play none."""
        single = [source for source in sources if "+" not in source]
        found = {
            part: next((s for s in single if s.lower().split("-")[0] in names), None)
            for part, names in _NAMES.items()
        }
        return cls(found["rephrased"], found["question_answer"], found["textbook"], _by_size(single))


def _by_size(sources: Sequence[str]) -> tuple[str, ...]:
    families: dict[str, list[tuple[float, str]]] = {}
    for source in sources:
        if named := _SIZE.fullmatch(source.lower()):
            size = float(named["number"]) * _UNITS[named["unit"]]
            families.setdefault(named["name"], []).append((size, source))
    family = next((family for _, family in sorted(families.items()) if len(family) >= 3), [])
    return tuple(source for _, source in sorted(family))


_SIZE = re.compile(r"(?P<name>.+)-(?P<number>\d+(\.\d+)?)(?P<unit>[kmb])")
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


_NAMES = {
    "rephrased": ("hq", "rephrased", "wikipedia"),
    "question_answer": ("qa", "question_answer"),
    "textbook": ("textbook", "txbk"),
}


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

    def log_ratios(
        self, over: tuple[str | None, float], under: tuple[str | None, float]
    ) -> list[tuple[ClaimRun, float]]:
        """Return log(loss of one mixture / loss of another) in every cell that has both, with the first one's run.

        Seeds of a cell are averaged: they share its size and budget, so they are no further evidence about other cells.
        """
        others = {(r.num_params, r.train_tokens, r.seed): r for r in self.runs if _is(r, *under)}
        cells: dict[tuple[float, float], list[tuple[ClaimRun, float]]] = collections.defaultdict(list)
        for run in (each for each in self.runs if _is(each, *over)):
            if (other := others.get((run.num_params, run.train_tokens, run.seed))) is not None:
                cells[run.num_params, run.train_tokens].append((run, math.log(run.loss / other.loss)))
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
