"""Pairs of runs, one of each of two studies, that differ in nothing but the study.

Runs are paired when they agree in size, budget, share and seed and in everything the studies have in common; a pair
reads the same natural text in the same order, so its difference is less noisy than either loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from synth.errors import UserError
from tune.config import CompareConfig
from tune.report.inputs import StudyRun

NATURAL = "natural text alone"


@dataclass(frozen=True)
class Pair:
    """Two runs that differ in nothing but the study."""

    a: StudyRun
    b: StudyRun

    @property
    def label(self) -> str:
        """What was mixed in, in words: the two sources, or one name where they share it."""
        if self.a.share == 0:
            return NATURAL
        names = [str(self.a.synthetic), str(self.b.synthetic)]
        return names[0] if names[0] == names[1] else " against ".join(names)


def matched_sources(
    config: CompareConfig, runs_a: Sequence[StudyRun], runs_b: Sequence[StudyRun]
) -> dict[str, str]:
    """Return source of study A -> source of study B it is compared with. Raises UserError for a name that is no source."""
    there_a, there_b = ({run.synthetic for run in runs if run.synthetic} for runs in (runs_a, runs_b))
    for field, names, there in (("a", config.pairs.keys(), there_a), ("b", config.pairs.values(), there_b)):
        if unknown := sorted(set(names) - there):
            raise UserError(
                f"pairs names {unknown[0]!r}, which is no synthetic source of study {field} (it has "
                f"{', '.join(sorted(there)) or 'none'}): correct the name."
            )
    return dict(config.pairs) or {name: name for name in sorted(there_a & there_b)}


def paired_runs(
    runs_a: Iterable[StudyRun], runs_b: Iterable[StudyRun], matched: dict[str, str]
) -> tuple[Pair, ...]:
    """Return the pairs of finished runs of the same size, budget, share and seed, natural text first."""
    there = {_place(run): run for run in runs_b if run.loss is not None}
    pairs = []
    for run in runs_a:
        if run.loss is None or (run.share > 0 and run.synthetic not in matched):
            continue
        source = matched[str(run.synthetic)] if run.share > 0 else None
        other = there.get((run.num_params, run.train_tokens, run.seed, round(run.share, 9), source))
        if other is not None and other.run_id != run.run_id:
            pairs.append(Pair(run, other))
    return tuple(
        sorted(pairs, key=lambda p: (p.a.share > 0, p.label, p.a.share, p.a.num_params, p.a.train_tokens))
    )


def _place(run: StudyRun) -> tuple[Any, ...]:
    return (
        run.num_params,
        run.train_tokens,
        run.seed,
        round(run.share, 9),
        run.synthetic if run.share > 0 else None,
    )


def log_ratio(pair: Pair, measure: str) -> float:
    """Return ln(loss of B / loss of A) of a pair of finished runs by a measure of their final evaluation."""
    return math.log(_measured(pair.b, measure) / _measured(pair.a, measure))


def _measured(run: StudyRun, measure: str) -> float:
    assert run.record is not None
    assert run.record.final is not None
    return float(getattr(run.record.final, measure))
