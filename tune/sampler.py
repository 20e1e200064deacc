"""The Optuna sampler of mixtures: proposes the run after which the mixture answered with should be best."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tune.rounds import Question, propose

REPLICATE = "replicate"
"""Name of the parameter that says which seed a trial has; the others are the shares of the sources, by their names."""


def search_space(sources: tuple[str, ...], max_seeds: int) -> dict[str, BaseDistribution]:
    """Return the parameters of a trial: a share of each source and which seed."""
    shares: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in sources}
    return shares | {REPLICATE: IntDistribution(0, max_seeds - 1)}


class SurfaceSampler(BaseSampler):
    """Proposes the mixture whose loss should improve the answer most (`tune.surface.most_telling`).

    Optuna's own samplers look for a low loss; a search that answers with the minimum of a fit wants runs that better the
    fit there, and a lattice on a simplex is not a space that Optuna's distributions can state. It has no state and no
    randomness: equal studies get equal proposals.
    """

    def __init__(self, sources: tuple[str, ...], max_seeds: int, question: Question) -> None:
        self._sources = sources
        self._space = search_space(sources, max_seeds)
        self._question = question

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all parameters: a mixture is chosen as a whole."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the next mixture, with the search's own seed."""
        running = [
            each for each in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if each.params
        ]
        pending = [
            self._question.space.index([float(each.params[name]) for name in self._sources])
            for each in running
        ]
        shares = self._question.space.points[propose(self._question, pending)]
        return dict(zip(self._sources, map(float, shares), strict=True)) | {REPLICATE: 0}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> float:
        """Raise ValueError: this sampler knows no parameters but its own."""
        raise ValueError(f"this sampler knows the parameters {', '.join(self._space)}, not {param_name!r}")
