"""Ranking mixtures of many sources: gradient-boosted trees from shares to loss, after RegMix (arXiv 2407.01492).

With more than a handful of sources no mixing law of a fixed form ranks mixtures as well: on RegMix's own 1M-parameter
runs the exponential mixing law reaches rank correlations of 0.95 to 0.96 with held-out runs, the trees 0.97 to 0.998.
What the trees cannot do is extrapolate: they answer inside the mixtures they have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from synth.errors import UserError
from tune.laws.law import Floats

ROUNDS = 1000
PARAMETERS: dict[str, Any] = {
    "objective": "regression",
    "learning_rate": 0.01,
    "seed": 42,
    "verbosity": -1,
    "num_threads": 1,
    "deterministic": True,
}
FEWEST_RUNS = 40
"""A leaf holds 20 runs: with fewer than two leaves' worth there is nothing to learn."""
CANDIDATES = 50_000
TOP_FRACTION = 0.001


@dataclass(frozen=True)
class MixtureRegressor:
    """A fitted regression of a loss on the shares of sources."""

    sources: tuple[str, ...]
    seen: Floats = field(repr=False)
    """[n, k] mixtures it was fitted to."""
    booster: Any = field(repr=False)

    @classmethod
    def fit(cls, sources: Sequence[str], shares: ArrayLike, loss: ArrayLike) -> MixtureRegressor:
        """Fit to shares [n, k] of sources [k] and losses [n], nats per token. Raises UserError with too few runs."""
        import lightgbm  # loaded here: seconds to load, and only this needs it

        x, y = np.asarray(shares, dtype=np.float64), np.asarray(loss, dtype=np.float64)
        if len(y) < FEWEST_RUNS:
            raise UserError(
                f"{len(y)} runs are too few to learn a ranking of mixtures from: train at least {FEWEST_RUNS}"
            )
        booster = lightgbm.train(PARAMETERS, lightgbm.Dataset(x, y), num_boost_round=ROUNDS)
        return cls(tuple(sources), x, booster)

    def predict(self, shares: ArrayLike) -> Floats:
        """Return the losses of mixtures [m, k], [m]; meant for their order."""
        return np.asarray(self.booster.predict(np.asarray(shares, dtype=np.float64)))

    def best_mixture(self, caps: Mapping[str, float] | None = None, seed: int = 0) -> dict[str, float]:
        """Return the mean of the best candidate mixtures: blends of those seen, no source above its cap.

        `caps` are the largest shares by source, such as available tokens / target tokens. Raises UserError when the
        caps do not add up to 1 or no blend keeps to them.
        """
        top = np.array([(caps or {}).get(source, 1.0) for source in self.sources])
        if top.sum() < 1.0:
            raise UserError(
                f"the caps add up to {top.sum():.3g}, so no mixture keeps to them: allow more passes over a source"
            )
        random = np.random.default_rng(seed)
        pairs = random.integers(len(self.seen), size=(CANDIDATES, 2))
        weight = random.uniform(size=(CANDIDATES, 1))
        blends = weight * self.seen[pairs[:, 0]] + (1.0 - weight) * self.seen[pairs[:, 1]]
        blends = _capped(blends / blends.sum(axis=1, keepdims=True), top)
        best = np.argsort(self.predict(blends), kind="stable")[: max(1, round(TOP_FRACTION * len(blends)))]
        return dict(zip(self.sources, blends[best].mean(axis=0).tolist(), strict=True))


def _capped(mixtures: Floats, caps: Floats) -> Floats:
    """Return the mixtures with what is above a cap moved to the sources that have room, in proportion to the room."""
    kept = np.minimum(mixtures, caps)
    room = caps - kept
    spare = 1.0 - kept.sum(axis=1, keepdims=True)
    return np.asarray(kept + spare * room / np.maximum(room.sum(axis=1, keepdims=True), 1e-12))
