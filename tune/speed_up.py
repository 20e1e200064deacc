"""How many times fewer tokens a mixture needs for the loss of natural text, by the data laws L(D) = B D^-beta + E of both."""

from __future__ import annotations

import numpy as np

from tune.laws import FittedLaw
from tune.laws.law import Floats


def speed_ups(natural: FittedLaw, mixed: FittedLaw, tokens: Floats) -> tuple[Floats, Floats]:
    """Return D / (tokens after which the mixture has the loss that natural text has after D) for budgets D [n], and the
    same by resample, [B, n]; 0 where the mixture never gets there.

    Resamples of two groups are independent, so taken row by row they are resamples of the two together.
    """
    count = min(len(natural.samples), len(mixed.samples))
    value = tokens / _tokens_to(_values(mixed), _loss(_values(natural), tokens))
    needed = _tokens_to(mixed.samples[:count], _loss(natural.samples[:count], tokens))
    return value[0], tokens / np.maximum(needed, 1e-9)


def _values(fitted: FittedLaw) -> Floats:
    return np.array([[fitted.parameters[name] for name in fitted.law.names]])


def _loss(parameters: Floats, tokens: Floats) -> Floats:
    """Return B D^-beta + E, [S, n]."""
    b, beta, e = (parameters[:, [column]] for column in range(3))
    return np.asarray(b * tokens**-beta + e)


def _tokens_to(parameters: Floats, loss: Floats) -> Floats:
    """Return where each B D^-beta + E falls to the losses [S, n]; infinite where it never does."""
    b, beta, e = (parameters[:, [column]] for column in range(3))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        tokens = np.exp(np.log(b / (loss - e)) / beta)
    return np.where((loss > e) & (beta > 0), tokens, np.inf)
