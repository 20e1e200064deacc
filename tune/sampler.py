"""The Optuna sampler of the share: proposes where the fitted curve would learn most about its own minimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tune.optimum import GRID_STEPS, MIN_POINTS, fit_curve, next_share, share_grid

SHARE = "share"
"""Name of the one parameter."""

SPACING = 4 / GRID_STEPS
"""Distance a new share keeps from those that were tried, as long as there is room."""


class CurveSampler(BaseSampler):
    """Proposes the share whose loss should shrink the interval of the best share most (`tune.optimum.next_share`).

    Optuna's own samplers look for a low loss; a search that is stopped by, and judged by, the interval of its optimum
    wants runs that narrow it. On 120 simulated cells of six runs (before the
    noise prior was last narrowed) the mean width of the interval was 0.197, with Optuna's Gaussian process 0.206, with
    TPE 0.259. It has no state and no
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
        trials = [each for each in study.get_trials(deepcopy=False) if SHARE in each.params]
        complete = [each for each in trials if each.state == TrialState.COMPLETE]
        return propose(
            {float(each.params[SHARE]): float(each.values[0]) for each in complete},
            [float(each.params[SHARE]) for each in trials if each.state == TrialState.RUNNING],
            [float(each.params[SHARE]) for each in trials if each.state == TrialState.FAIL],
            (param_distribution.low, param_distribution.high),
        )


def propose(
    losses: Mapping[float, float],
    pending: Sequence[float],
    failed: Sequence[float],
    share_range: tuple[float, float],
) -> float:
    """Return the next share, given losses by share, shares in training, and shares whose run failed.

    It keeps away from all of them as long as there is room: the same run would only give the same loss, one at nearly
    the same share shares much of its noise, and one beside a share that diverged is likely to diverge too. With too
    few losses for a curve it is the share farthest from all that were tried.
    """
    tried = dict.fromkeys((*losses, *pending), SPACING) | dict.fromkeys(failed, 2 * SPACING)
    room = {
        share: min((abs(share - each) / far for each, far in tried.items()), default=1.0)
        for share in share_grid(share_range)
    }
    candidates = [share for share in room if room[share] >= 1.0 - 1e-9] or [
        share for share in room if room[share] > 0.0
    ]
    if len(losses) < MIN_POINTS:
        return max(candidates, key=lambda share: room[share])
    return next_share(fit_curve(list(losses), list(losses.values()), share_range), candidates, pending)
