"""The laws by name: formula, symbols, units, source.

N is `num_params`, D is `train_tokens`, L is the loss in nats per token.
"""

from __future__ import annotations

import numpy as np

from synth.errors import UserError
from tune.laws.law import AffineTerms, Columns, Floats, Law, Shift, Terms, coefficient, exponent, floor

_E = floor("E", "irreducible loss of this mixture on this evaluation text")


def _row(size: int, entries: dict[int, Floats | float]) -> Floats:
    """Return a design [size, n] with these rows filled; [size, 1] when all entries are numbers."""
    length = max(np.size(value) for value in entries.values())
    design = np.zeros((size, length))
    for index, value in entries.items():
        design[index] = value
    return design


def _power_and_floor(x: Floats) -> Terms:
    return AffineTerms([_row(3, {0: 1.0, 1: -x}), _row(3, {2: 1.0})])


def _chinchilla(x: Columns) -> Terms:
    return AffineTerms(
        [_row(5, {0: 1.0, 3: -x["num_params"]}), _row(5, {1: 1.0, 4: -x["train_tokens"]}), _row(5, {2: 1.0})]
    )


def _chinchilla_tied(x: Columns) -> Terms:
    return AffineTerms(
        [_row(4, {0: 1.0, 3: -x["num_params"]}), _row(4, {1: 1.0, 3: -x["train_tokens"]}), _row(4, {2: 1.0})]
    )


DATA = Law(
    name="data",
    formula="L(D) = B * D^-beta + E, D in tokens, L in nats/token, N fixed",
    source="the one-axis data law of Kang et al. 2025 (arXiv 2510.01631), after Hestness et al. 2017 (1712.00409)",
    parameters=(
        coefficient("B", "loss that more data would remove, at one token", "nats/token * tokens^beta"),
        exponent("beta", "how fast data removes it"),
        _E,
    ),
    inputs=("train_tokens",),
    bind=lambda x: _power_and_floor(x["train_tokens"]),
    shifts=(Shift(0, 1, "train_tokens"),),
)

MODEL = Law(
    name="model",
    formula="L(N) = A * N^-alpha + E, N in parameters, L in nats/token, D fixed",
    source="the one-axis model law of Kang et al. 2025 (arXiv 2510.01631), after Hestness et al. 2017 (1712.00409)",
    parameters=(
        coefficient("A", "loss that a larger model would remove, at one parameter", "nats/token * params^alpha"),
        exponent("alpha", "how fast parameters remove it"),
        _E,
    ),
    inputs=("num_params",),
    bind=lambda x: _power_and_floor(x["num_params"]),
    shifts=(Shift(0, 1, "num_params"),),
)

CHINCHILLA = Law(
    name="chinchilla",
    formula="L(N, D) = A * N^-alpha + B * D^-beta + E, N in parameters, D in tokens, L in nats/token",
    source="approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556); objective as in Besiroglu et al. 2024 (2404.10102)",
    parameters=(
        coefficient("A", "loss that a larger model would remove, at one parameter", "nats/token * params^alpha"),
        coefficient("B", "loss that more data would remove, at one token", "nats/token * tokens^beta"),
        _E,
        exponent("alpha", "how fast parameters remove their part"),
        exponent("beta", "how fast data removes its part"),
    ),
    inputs=("num_params", "train_tokens"),
    bind=_chinchilla,
    shifts=(Shift(0, 3, "num_params"), Shift(1, 4, "train_tokens")),
)

CHINCHILLA_TIED = Law(
    name="chinchilla_tied",
    formula="L(N, D) = A * N^-gamma + B * D^-gamma + E, N in parameters, D in tokens, L in nats/token",
    source="chinchilla with alpha = beta = gamma, so that the compute-optimal D/N does not depend on the budget",
    parameters=(
        coefficient("A", "loss that a larger model would remove, at one parameter", "nats/token * params^gamma"),
        coefficient("B", "loss that more data would remove, at one token", "nats/token * tokens^gamma"),
        _E,
        exponent("gamma", "how fast parameters and data remove their parts"),
    ),
    inputs=("num_params", "train_tokens"),
    bind=_chinchilla_tied,
    shifts=(Shift(0, 3, "num_params"), Shift(1, 3, "train_tokens")),
)

LAWS: dict[str, Law] = {law.name: law for law in (DATA, MODEL, CHINCHILLA, CHINCHILLA_TIED)}


def law_named(name: str) -> Law:
    """Return a law by name. Raises UserError listing the known ones."""
    try:
        return LAWS[name]
    except KeyError:
        raise UserError(f"there is no law {name!r}; known laws: {', '.join(LAWS)}") from None
