"""What the report works out of a study's results: speed-up against budget, best share over (N, D), words against loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tune.claim_statistics import FEWEST_SHARES
from tune.laws.fitted import FittedLaw
from tune.observations import NATURAL, mixture_label
from tune.optimum import fit_curve
from tune.report.inputs import Study, StudyRun
from tune.results import Interval
from tune.speed_up import speed_ups as speed_ups_by_law

CURVE_POINTS = 40
BEYOND_DATA = 2.0


# --- speed-up to equal loss ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpeedUp:
    """How many times fewer tokens a mixture needs for the loss of natural text, over the budget of the latter."""

    label: str
    source: str
    share: float
    tokens: list[float]
    """Budgets of natural text, tokens."""
    value: list[float]
    """Speed-up at each; 0 where the mixture never gets there."""
    low: list[float] | None
    high: list[float] | None
    run_ids: tuple[str, ...]


def speed_ups(study: Study) -> list[SpeedUp]:
    """Return the speed-up curves of all mixtures with a data law, by the laws L(D) = B D^-beta + E of both texts."""
    natural = study.laws.find("data", NATURAL)
    if natural is None:
        return []
    mixtures = sorted({(run.synthetic, run.share) for run in study.runs if run.synthetic and run.share > 0})
    found = []
    for source, share in mixtures:
        fitted = study.laws.find("data", mixture_label(source, share))
        if fitted is not None and source is not None:
            found.append(_speed_up(natural, fitted, source, share))
    return found


def _speed_up(natural: FittedLaw, mixed: FittedLaw, source: str, share: float) -> SpeedUp:
    first, last = natural.record.ranges["train_tokens"]
    tokens = np.geomspace(first, last * BEYOND_DATA, CURVE_POINTS)
    value, samples = speed_ups_by_law(natural, mixed, tokens)
    low = high = None
    if len(samples):
        tail = (1.0 - mixed.record.confidence) / 2.0
        ends = np.quantile(samples, (tail, 1 - tail), axis=0, method="inverted_cdf")
        low, high = ends[0].tolist(), ends[1].tolist()
    run_ids = (*natural.record.rows_used, *mixed.record.rows_used)
    return SpeedUp(
        mixture_label(source, share), source, share, tokens.tolist(), value.tolist(), low, high, run_ids
    )


# --- the best share over (N, D) --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShareMark:
    """The best share of one (N, D) cell."""

    source: str
    model: str
    num_params: int
    train_tokens: int
    best_share: Interval
    origin: str
    """`search <name>`, or `plan` for a curve through the plan's own runs."""
    run_ids: tuple[str, ...]


def share_marks(study: Study) -> list[ShareMark]:
    """Return the best share of every searched cell, and of cells of the plan with enough shares for a curve."""
    marks = {
        (o.synthetic, o.num_params, o.train_tokens): ShareMark(
            o.synthetic, o.model, o.num_params, o.train_tokens, o.best_share, f"search {o.search}",
            tuple(trial.run_id for trial in o.trials),
        )
        for o in study.optima
    }  # fmt: skip
    for source in sorted({run.synthetic for run in study.runs if run.synthetic}):
        cells: dict[tuple[int, int], list[StudyRun]] = {}
        for run in study.runs:
            if run.loss is not None and (run.synthetic == source or run.share == 0):
                cells.setdefault((run.num_params, run.train_tokens), []).append(run)
        for cell, runs in cells.items():
            if (source, *cell) not in marks and len({run.share for run in runs}) >= FEWEST_SHARES:
                marks[source, *cell] = _from_plan(source, runs)
    return [marks[key] for key in sorted(marks)]


def _from_plan(source: str, runs: list[StudyRun]) -> ShareMark:
    shares = sorted({run.share for run in runs})
    means = [
        float(np.mean([run.loss for run in runs if run.share == share and run.loss])) for share in shares
    ]
    best = fit_curve(shares, means, (shares[0], shares[-1])).best_share()
    first = runs[0]
    ids = tuple(run.run_id for run in runs)
    return ShareMark(source, first.model, first.num_params, first.train_tokens, best, "plan", ids)


# --- words against loss ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordsPoint:
    """One mixture in the cell that the most mixtures share: how far its words are from the held-out text's, and its loss."""

    label: str
    source: str | None
    share: float
    divergence: float
    """KL(held-out || mixture) of token frequencies, nats."""
    loss: float
    run_id: str


def words_points(study: Study, divergences: dict[str, float]) -> tuple[str, list[WordsPoint]]:
    """Return the cell in words and its mixtures; none where fewer than three have a divergence and a loss."""
    cells: dict[tuple[int, int], dict[str, StudyRun]] = {}
    for run in sorted(study.runs, key=lambda run: (run.seed, run.run_id)):
        if run.loss is not None and run.mixture in divergences:
            cells.setdefault((run.num_params, run.train_tokens), {}).setdefault(run.mixture, run)
    if not cells:
        return "", []
    cell = max(cells, key=lambda cell: (len(cells[cell]), cell))
    runs = sorted(cells[cell].values(), key=lambda run: (run.synthetic or "", run.share))
    if len(runs) < 3:
        return "", []
    points = [
        WordsPoint(run.mixture, run.synthetic if run.share else None, run.share, divergences[run.mixture], run.loss, run.run_id)
        for run in runs
        if run.loss is not None
    ]  # fmt: skip
    return f"{runs[0].model} parameters", points
