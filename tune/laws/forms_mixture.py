"""Laws in the mixture: how the loss depends on the shares of the sources, alone or together with N and D.

r is the `share` of the synthetic source in the training tokens, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tune.laws.forms import CHINCHILLA, design_of
from tune.laws.law import (
    AffineTerms,
    Columns,
    Floats,
    Law,
    Parameter,
    Shift,
    Terms,
    coefficient,
    exponent,
    floor,
    slope,
)


def exponential_mixing(shares: Sequence[str]) -> Law:
    """Return the exponential mixing law over these share columns, which add up to 1 (or fall short of it by a rest).

    Adding a constant to every slope only rescales k, so of shares that add up to 1 one must be left out: the law is
    written for the others, and the slopes count from the one left out.
    """
    names = tuple(shares)
    size = 2 + len(names)

    def bind(x: Columns) -> Terms:
        entries: dict[int, Floats | float] = {1: 1.0}
        return AffineTerms(
            [
                design_of(size, {0: 1.0}),
                design_of(size, {**entries, **{2 + i: x[name] for i, name in enumerate(names)}}),
            ]
        )

    return Law(
        name="exponential_mixing",
        formula="L(r) = c + k * exp(sum over sources of t_source * r_source), r shares, L in nats/token of one domain",
        source="Ye et al. 2024 (arXiv 2403.16952), for the loss on one evaluation domain at fixed N and D",
        parameters=(
            floor("c", "loss on this domain that no mixture removes"),
            coefficient("k", "loss on top of it at a share of 0 of every source listed", "nats/token"),
            *(
                slope(
                    f"t_{name}",
                    f"change of the logarithm of that part per unit share of {name}",
                    (-4.0, -1.0, 0.0, 1.0),
                )
                for name in names
            ),
        ),
        inputs=(),
        bind=bind,
        shares=names,
    )


def _bivariate(x: Columns) -> Terms:
    log_r, log_d = x["share"], x["train_tokens"]
    return AffineTerms([design_of(4, {0: 1.0, 2: -log_r, 3: -log_d}), design_of(4, {1: 1.0, 2: -log_r})])


BIVARIATE_MIXING = Law(
    name="bivariate_mixing",
    formula="L(r, D) = r^-alpha * (B * D^-beta + C), r share of the domain, D in tokens, L in nats/token of that domain",
    source="BiMix, Ge et al. 2024 (arXiv 2405.14908), with its outer factor taken into B and C, which fixes the gauge",
    parameters=(
        coefficient(
            "B", "loss that more data would remove, at one token and share 1", "nats/token * tokens^beta"
        ),
        coefficient("C", "loss of the domain alone, without limit of data", "nats/token"),
        exponent("alpha", "how fast a larger share of the domain removes its loss"),
        exponent("beta", "how fast data removes its part"),
    ),
    inputs=("share", "train_tokens"),
    bind=_bivariate,
    shifts=(Shift(0, 2, "share"), Shift(0, 3, "train_tokens"), Shift(1, 2, "share")),
)


# --- joint in N, D and the share -------------------------------------------------------------------------------

_RATIO_SOURCE = (
    "chinchilla (Hoffmann et al. 2022, arXiv 2203.15556) with parts that depend on the synthetic share; ours"
)
_E_SLOPES = (
    slope("e1", "linear change of log E with the share", (-0.2, 0.0)),
    slope("e2", "quadratic change of log E with the share"),
)
_B_SLOPES = (
    slope("b1", "linear change of log B with the share", (-0.3, 0.3)),
    slope("b2", "quadratic change of log B with the share"),
)
_A_SLOPE = slope("a1", "linear change of log A with the share")
_BETA_SLOPE = Parameter("beta1", "linear change of beta with the share", "1", "slope", (0.0,), -2.0, 2.0)
_COARSE = tuple(
    Parameter(p.name, p.meaning, p.unit, p.kind, p.starts[1::2], p.low, p.high) for p in CHINCHILLA.parameters
)
"""The chinchilla parameters with every other start: the slopes multiply the grid."""


def _ratio_terms(x: Columns, size: int, slots: dict[str, int]) -> Terms:
    """Return the terms of a ratio law whose slopes sit at these places."""
    log_n, log_d, r = x["num_params"], x["train_tokens"], x["share"]
    values: dict[str, Floats] = {"e1": r, "e2": r**2, "b1": r, "b2": r**2, "a1": r, "beta1": -r * log_d}

    def part(prefix: str) -> dict[int, Floats | float]:
        return {place: values[name] for name, place in slots.items() if name.startswith(prefix)}

    return AffineTerms(
        [
            design_of(size, {0: 1.0, 3: -log_n, **part("a")}),
            design_of(size, {1: 1.0, 4: -log_d, **part("b")}),
            design_of(size, {2: np.ones_like(r), **part("e")}),
        ]
    )


def _ratio_law(name: str, formula: str, extra: Sequence[Parameter]) -> Law:
    parameters = (*_COARSE, *extra)
    slots = {parameter.name: len(_COARSE) + i for i, parameter in enumerate(extra)}
    bends = (Shift(slots["b1"], slots["beta1"], "train_tokens"),) if "beta1" in slots else ()
    return Law(
        name=name,
        formula=f"{formula}, N in parameters, D in tokens, r synthetic share, L in nats/token",
        source=_RATIO_SOURCE,
        parameters=parameters,
        inputs=CHINCHILLA.inputs,
        bind=lambda x: _ratio_terms(x, len(parameters), slots),
        shifts=(*CHINCHILLA.shifts, *bends),
        shares=("share",),
    )


RATIO_FLOOR = _ratio_law(
    "ratio_floor",
    "L(N, D, r) = A * N^-alpha + B * D^-beta + E * exp(e1 * r + e2 * r^2)",
    _E_SLOPES,
)
RATIO_DATA = _ratio_law(
    "ratio_data",
    "L(N, D, r) = A * N^-alpha + B * exp(b1 * r + b2 * r^2) * D^-beta + E * exp(e1 * r + e2 * r^2)",
    (*_E_SLOPES, *_B_SLOPES),
)
RATIO_FULL = _ratio_law(
    "ratio_full",
    "L(N, D, r) = A * exp(a1 * r) * N^-alpha + B * exp(b1 * r + b2 * r^2) * D^-(beta + beta1 * r) "
    "+ E * exp(e1 * r + e2 * r^2)",
    (*_E_SLOPES, *_B_SLOPES, _A_SLOPE, _BETA_SLOPE),
)
