"""What the laws of a study say at one target (N, D), mixture by mixture, and what a search of shares adds to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from synth.errors import UserError
from tune.config import RecommendConfig
from tune.laws import FittedLaw, SavedLaws, compute_optimal
from tune.mixture_space import GRID_STEPS
from tune.observations import NATURAL
from tune.optimum import Curve
from tune.results import CellOptimum, Interval
from tune.share_curve import fit_share_curve
from tune.surface import MIN_POINTS

Floats = NDArray[np.float64]

JOINT_LAWS = ("chinchilla", "chinchilla_tied", "over_training")
LAWS_BY_PREFERENCE = (*JOINT_LAWS, "data", "model")
"""The joint laws answer anywhere; a one-axis law only at the N or D it was fitted at."""

DRIFT_PER_DECADE = 0.1
"""Prior standard deviation of the move of the best share per factor of ten in N, and in D. The largest move reported is
0.2 (question-answer data, arXiv 2510.01631, figure 4) over about 1.5 decades of N and 2.3 of D."""

TOKEN_GRID = np.geomspace(1.0, 1e18, 1200)
"""Budgets between which the tokens to a loss are interpolated, in logarithms."""


@dataclass(frozen=True, eq=False)
class MixtureAtTarget:
    """One trained mixture at the target, through its law."""

    group: str
    synthetic: str | None
    """Synthetic source; None for natural text alone."""
    share: float
    fitted: FittedLaw = field(repr=False)
    loss: Interval
    """Predicted loss at the target, nats per token."""
    losses: Floats = field(repr=False)
    """[B] the same, by bootstrap resample; empty without intervals. Resamples of two mixtures are independent."""

    def tokens_to(self, loss: float, losses: Floats, num_params: float) -> tuple[float, Floats]:
        """Return the tokens at which this mixture reaches a loss, and by resample those at which it reaches `losses`.

        Infinite where it never does. Only for laws of D.
        """
        samples = self.fitted.samples[: len(losses)]
        curves = losses_over_tokens(self.fitted, np.vstack([self.fitted.values, samples]), num_params)
        tokens = tokens_where(curves, np.append(loss, losses[: len(samples)]))
        return float(tokens[0]), tokens[1:]

    @property
    def knows_tokens(self) -> bool:
        """Whether its law says how the loss falls with tokens."""
        return "train_tokens" in self.fitted.law.inputs


def with_target(config: RecommendConfig, laws: SavedLaws) -> RecommendConfig:
    """Return the configuration with N and D worked out from a compute budget. Raises UserError where the laws cannot."""
    if config.target_compute_flops is None:
        return config
    per_token = config.target_compute_flops / 6.0
    n, d = config.target_num_params, config.target_train_tokens
    if n is None and d is None:
        joint = next((fit for name in JOINT_LAWS if (fit := laws.find(name, NATURAL)) is not None), None)
        if joint is None:
            raise UserError(
                "target_compute_flops alone needs a joint law of natural text to choose N: fit one, or give target_num_params too"
            )
        best = compute_optimal(joint, [config.target_compute_flops]).points[0].num_params
        if best is None:
            raise UserError(
                f"the {joint.law.name} law of natural text has no compute-optimal size for {config.target_compute_flops:.3g} FLOP "
                "(it shows no trade-off between N and D): give target_num_params too"
            )
        n = round(best.value)
    if n is None:
        assert d is not None
        n = round(per_token / d)
    return config.model_copy(
        update={
            "target_num_params": max(n, 1),
            "target_train_tokens": d or max(round(per_token / n), 1),
            "target_compute_flops": None,
        }
    )


def mixtures_at_target(
    laws: SavedLaws, num_params: float, train_tokens: float
) -> tuple[MixtureAtTarget, ...]:
    """Return every mixture whose laws answer at the target, natural text first, then by source and share.

    Raises UserError when the rows behind the fit do not say their shares, or no law answers for natural text.
    """
    places = {
        row["group"]: (row.get("synthetic"), float(row["share"]))
        for row in laws.file.rows
        if row.get("share") is not None
    }
    if not places:
        raise UserError(
            "the fit was made from a table without shares, so no share can be recommended from it: fit the plan of a study."
        )
    found = []
    for group, (synthetic, share) in places.items():
        fitted = _law_at(laws, group, num_params, train_tokens)
        if fitted is not None:
            loss = fitted.predict(num_params, train_tokens)
            losses = _predictions(fitted, num_params, train_tokens)
            found.append(MixtureAtTarget(group, synthetic, share, fitted, loss, losses))
    if not any(each.share == 0.0 for each in found):
        raise UserError(
            f"no law of natural text answers at N = {num_params:g}, D = {train_tokens:g}: fit the chinchilla law (it needs "
            "runs over several N and several D), or choose a target on one of the axes that were trained."
        )
    return tuple(sorted(found, key=lambda each: (each.share > 0.0, each.synthetic or "", each.share)))


def curve_at_target(mixtures: Sequence[MixtureAtTarget], confidence: float) -> Curve:
    """Return loss against share at the target, through the predictions of natural text and one source's mixtures.

    It ends at the highest share that was trained: the laws say nothing about shares beyond. Each prediction counts with its own standard error. Raises UserError with
    fewer than three shares.
    """
    if len(mixtures) < MIN_POINTS:
        source = next((each.synthetic for each in mixtures if each.synthetic), "the synthetic source")
        raise UserError(
            f"the laws answer at the target for {len(mixtures)} shares of {source} (natural text included) and a best share "
            f"needs {MIN_POINTS}: train more shares with pretrain_models and fit again."
        )
    return fit_share_curve(
        [each.share for each in mixtures],
        [each.loss.value for each in mixtures],
        [each.loss.standard_error or 0.0 for each in mixtures],
        confidence,
    )


def combine_shares(
    from_laws: Interval,
    cells: Sequence[CellOptimum],
    num_params: float,
    train_tokens: float,
    confidence: float,
) -> Interval:
    """Return the best share at the target from the laws there and from cells searched elsewhere.

    The best share is taken as s(N, D) = s(target) + g1 log10(N / target N) + g2 log10(D / target D) with slopes g of
    prior mean 0 and standard deviation DRIFT_PER_DECADE: cells far from the target count less, and several cells show
    how the share moves. Every estimate counts with its own standard error. Without cells the laws' interval stands.
    """
    if not cells:
        return from_laws
    decades = np.vstack([np.zeros(2), decades_from(cells, num_params, train_tokens)])
    return share_where(decades, [from_laws, *(cell.best_share for cell in cells)], confidence)


def decades_from(cells: Sequence[CellOptimum], num_params: float, train_tokens: float) -> Floats:
    """Return log10(N / target N) and log10(D / target D) of cells, [n, 2]."""
    return np.log10([[cell.num_params / num_params, cell.train_tokens / train_tokens] for cell in cells])


def share_where(decades: Floats, estimates: Sequence[Interval], confidence: float) -> Interval:
    """Return the share at the target from those estimated so many decades of N and D away, as `combine_shares` says."""
    design = np.column_stack([np.ones(len(estimates)), decades])
    precision = np.array([1.0 / max(_error(each), 1.0 / GRID_STEPS) ** 2 for each in estimates])
    prior = np.diag([0.0, DRIFT_PER_DECADE**-2, DRIFT_PER_DECADE**-2])
    covariance = np.linalg.inv(design.T @ (design * precision[:, None]) + prior)
    best = float((covariance @ design.T @ (precision * np.array([each.value for each in estimates])))[0])
    error = float(np.sqrt(covariance[0, 0]))
    reach = NormalDist().inv_cdf((1.0 + confidence) / 2.0) * error
    value = min(1.0, max(0.0, best))
    return Interval(
        value=value,
        low=max(0.0, min(value, best - reach)),
        high=min(1.0, max(value, best + reach)),
        standard_error=error,
    )


def _error(estimate: Interval) -> float:
    if estimate.standard_error is None:
        return 1.0 / math.sqrt(12.0)  # nothing is known of it: a share anywhere in [0, 1]
    return estimate.standard_error


def _law_at(laws: SavedLaws, group: str, num_params: float, train_tokens: float) -> FittedLaw | None:
    for name in LAWS_BY_PREFERENCE:
        fitted = laws.find(name, group)
        if fitted is None:
            continue
        try:
            fitted.predict(num_params, train_tokens)
        except UserError:  # a one-axis law, fitted at another N or D
            continue
        return fitted
    return None


def _predictions(fitted: FittedLaw, num_params: float, train_tokens: float) -> Floats:
    if not len(fitted.samples):
        return np.empty(0)
    point = {"num_params": [num_params], "train_tokens": [train_tokens]}
    bound = fitted.law.bind(fitted.law.columns(point))
    return np.asarray(np.exp(bound.log_prediction(fitted.law.to_theta(fitted.samples)))[:, 0])


def losses_over_tokens(fitted: FittedLaw, parameters: Floats, num_params: float) -> Floats:
    """Return the losses of parameter vectors [S, p] over TOKEN_GRID, [S, G], nats per token."""
    rows = {"num_params": np.full(len(TOKEN_GRID), num_params), "train_tokens": TOKEN_GRID}
    bound = fitted.law.bind(fitted.law.columns(rows))
    return np.asarray(np.exp(bound.log_prediction(fitted.law.to_theta(parameters))))


def tokens_where(curves: Floats, levels: Floats) -> Floats:
    """Return the tokens at which each curve over TOKEN_GRID [S, G], falling, is down at its level [S]; inf where never."""
    log_tokens = np.log(TOKEN_GRID)
    crossings = [
        np.interp(-level, -curve, log_tokens, right=np.inf)
        for level, curve in zip(levels, curves, strict=True)
    ]
    return np.asarray(np.exp(crossings))
