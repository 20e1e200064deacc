"""True losses over the share, to try curves on: optimum where asked, steep and mild ends, shapes no curve of ours has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Function = Callable[[Floats], Floats]

FINE = np.linspace(0.0, 1.0, 2001)
OPTIMA = (0.0, 0.05, 0.15, 0.3, 0.6, 1.0)
RANGES = (0.04, 0.3, 1.2)
"""Highest less lowest loss, nats per token."""
ERRORS = (0.001, 0.004, 0.015)
"""Standard errors of the laws' predictions, nats per token: from several seeds inside the data to one far outside."""
SHARES = {
    4: ((0, 1 / 3, 2 / 3, 1), (0, 1 / 3, 0.5, 2 / 3)),
    5: ((0, 0.25, 0.5, 0.75, 1), (0, 0.1, 0.3, 0.5, 0.7)),
    6: ((0, 0.1, 0.25, 0.5, 0.75, 1), (0, 0.2, 0.4, 0.6, 0.8, 1)),
}

RISES: dict[str, Function] = {
    "exp 2": lambda s: np.exp(2 * s),
    "exp 6": lambda s: np.exp(6 * s),
    "power": lambda s: (1.02 - s) ** -0.3,  # BiMix's: steep where natural text runs out
    "square": lambda s: (s + 0.05) ** 2,
}
FALLS: dict[str, Function] = {
    "exp 3": lambda s: np.exp(-3 * s),
    "exp 12": lambda s: np.exp(-12 * s),
    "power": lambda s: (s + 0.05) ** -0.3,
    "line": lambda s: -s,
}


@dataclass(frozen=True)
class Case:
    """One truth, and what has been seen of it."""

    family: str
    losses: Floats
    """True losses on FINE, nats per token."""
    shares: tuple[float, ...]
    seen: Floats
    errors: Floats
    """Standard errors as told, which are not quite those the losses were drawn with."""

    def true_loss(self, share: float) -> float:
        """Return the true loss of a share."""
        return float(np.interp(share, FINE, self.losses))

    @property
    def best_share(self) -> float:
        """The share of the lowest true loss, up to the highest that was trained."""
        inside = max(self.shares) + 1e-9 >= FINE
        return float(FINE[inside][self.losses[inside].argmin()])


def cases(number: int, seed: int, families: tuple[str, ...] = ("mixing", "log-square")) -> Iterator[Case]:
    """Yield so many cases: every optimum in turn, and with it every range."""
    random = np.random.default_rng(seed)
    shapes = [(rise, fall) for rise in RISES for fall in FALLS]
    for i in range(number):
        best, size = OPTIMA[i % len(OPTIMA)], RANGES[i // len(OPTIMA) % len(RANGES)]
        family = families[int(random.random() < 0.1) if len(families) > 1 else 0]
        raw = _SHAPES[family](best, *shapes[random.integers(len(shapes))])
        losses = 2.5 + size * (raw - raw.min()) / np.ptp(raw)
        shares = SHARES[int(random.integers(4, 7))][int(random.random() < 0.3)]
        errors = random.choice(ERRORS) * np.exp(0.3 * random.standard_normal(len(shares)))
        seen = np.interp(shares, FINE, losses) + errors * random.standard_normal(len(shares))
        yield Case(family, losses, shares, seen, errors * np.exp(0.3 * random.standard_normal(len(shares))))


def _mixing(best: float, rise: str, fall: str) -> Floats:
    """Return a fall and a rise that balance at the best share; at an end, one of them outweighs the other."""
    up, down = RISES[rise], FALLS[fall]
    at = np.array([best])
    ratio = float((_slope(up, at) / -_slope(down, at))[0])
    return up(FINE) + ratio * {0.0: 0.4, 1.0: 1.5}.get(best, 1.0) * down(FINE)


def _slope(function: Function, at: Floats, step: float = 1e-6) -> Floats:
    return (function(at + step) - function(at - step)) / (2 * step)


_SHAPES: dict[str, Callable[[float, str, str], Floats]] = {
    "mixing": _mixing,
    "log-square": lambda best, *_: 2.5 ** (0.3 * ((FINE - best) / 0.4) ** 2),
    # One valley but not convex: a notch between two plateaus.
    "notch": lambda best, *_: np.abs(FINE - best) ** 1.5 / (0.1 + np.abs(FINE - best) ** 1.5),
}
