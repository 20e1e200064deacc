"""The Optuna sampler of the share: proposes where the fitted curve would learn most about its own minimum."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tune.optimum import MIN_POINTS, fit_curve, next_share, share_grid

SHARE = "share"
"""Name of the one parameter."""


class CurveSampler(BaseSampler):
    """Proposes the share whose loss should shrink the interval of the best share most (`tune.optimum.next_share`).

    Optuna's own samplers look for a low loss; a search that is stopped by, and judged by, the interval of its optimum
    wants runs that narrow it. On simulated cells of six runs the intervals came out about 25 % narrower than with TPE
    and 5 to 10 % narrower than with Optuna's Gaussian process, at half their regret or less. It has no state and no
    randomness: equal studies get equal proposals.
    """

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: the one parameter is sampled on its own."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing, as above."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> float:
        """Return the next share. Raises ValueError for another parameter than one float named `share`."""
        if param_name != SHARE or not isinstance(param_distribution, FloatDistribution):
            raise ValueError(f"this sampler knows one float parameter, {SHARE!r}, not {param_name!r}")
        others = [each for each in study.get_trials(deepcopy=False) if SHARE in each.params]
        complete = [each for each in others if each.state == TrialState.COMPLETE]
        pending = [float(each.params[SHARE]) for each in others if each.state == TrialState.RUNNING]
        return propose(
            [float(each.params[SHARE]) for each in complete],
            [float(each.values[0]) for each in complete],
            [float(each.params[SHARE]) for each in others],
            pending,
            (param_distribution.low, param_distribution.high),
        )


def propose(
    shares: list[float], losses: list[float], tried: list[float], pending: list[float], share_range: tuple[float, float]
) -> float:
    """Return the next share: never one of `tried`, since the same run would only give the same loss.

    With too few losses for a curve it is the share farthest from all that were tried.
    """
    candidates = [share for share in share_grid(share_range) if share not in tried]
    if len(shares) < MIN_POINTS:
        return max(candidates, key=lambda share: min((abs(share - each) for each in tried), default=0.0))
    return next_share(fit_curve(shares, losses, share_range), candidates, pending)
