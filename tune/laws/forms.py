"""Laws in model size and data: formula, symbols, units, source. Laws in the share are in `forms_mixture`.

N is `num_params`, D is `train_tokens`, U is `unique_tokens`, L is the loss in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tune.laws.law import (
    AffineTerms,
    Columns,
    CurvedTerms,
    Floats,
    Law,
    Parameter,
    Shift,
    Terms,
    coefficient,
    exponent,
    floor,
)

_E = floor("E", "irreducible loss of this mixture on this evaluation text")
LOG_6 = float(np.log(6.0))


def design_of(size: int, entries: dict[int, Floats | float]) -> Floats:
    """Return a design [size, n] with these rows filled; [size, 1] when all entries are numbers."""
    length = max(np.size(value) for value in entries.values())
    design = np.zeros((size, length))
    for index, value in entries.items():
        design[index] = value
    return design


def _power_and_floor(x: Floats) -> Terms:
    return AffineTerms([design_of(3, {0: 1.0, 1: -x}), design_of(3, {2: 1.0})])


def _chinchilla(x: Columns) -> Terms:
    return AffineTerms(
        [
            design_of(5, {0: 1.0, 3: -x["num_params"]}),
            design_of(5, {1: 1.0, 4: -x["train_tokens"]}),
            design_of(5, {2: 1.0}),
        ]
    )


def _over_training(x: Columns) -> Terms:
    log_c, log_m = LOG_6 + x["num_params"] + x["train_tokens"], x["train_tokens"] - x["num_params"]
    return AffineTerms(
        [
            design_of(4, {0: 1.0, 3: log_m - log_c}),
            design_of(4, {1: 1.0, 3: -log_m - log_c}),
            design_of(4, {2: 1.0}),
        ]
    )


def _rectified(x: Columns) -> Terms:
    log_d = x["train_tokens"]

    def function(theta: Floats) -> tuple[Sequence[Floats], Sequence[Floats]]:
        b, log_d_l, beta, e = (theta[:, i : i + 1] for i in range(4))
        log_sum = np.logaddexp(log_d_l, beta * log_d)
        gained = np.exp(beta * log_d - log_sum)
        falling, constant = np.zeros((2, len(theta), len(log_d), 4))
        falling[..., 0], falling[..., 1], falling[..., 2] = 1.0, gained - 1.0, -gained * log_d
        constant[..., 3] = 1.0
        return [b - log_sum, np.broadcast_to(e, log_sum.shape)], [falling, constant]

    return CurvedTerms(function)


def _data_constrained(x: Columns) -> Terms:
    log_n, log_d, log_u = (
        x["num_params"],
        x["train_tokens"],
        np.minimum(x["unique_tokens"], x["train_tokens"]),
    )
    repeats = np.expm1(log_d - log_u)

    def function(theta: Floats) -> tuple[Sequence[Floats], Sequence[Floats]]:
        a, b, e, alpha, beta, log_r = (theta[:, i : i + 1] for i in range(6))
        lifetime = np.exp(log_r)
        decayed = np.exp(-repeats / lifetime)
        worth = 1.0 + lifetime * (1.0 - decayed)
        log_effective = log_u + np.log(worth)
        by_log_r = (lifetime * (1.0 - decayed) - repeats * decayed) / worth
        in_n, in_d, constant = np.zeros((3, len(theta), len(log_n), 6))
        in_n[..., 0], in_n[..., 3] = 1.0, -log_n
        in_d[..., 1], in_d[..., 4], in_d[..., 5] = 1.0, -log_effective, -beta * by_log_r
        constant[..., 2] = 1.0
        return [a - alpha * log_n, b - beta * log_effective, np.broadcast_to(e, worth.shape)], [
            in_n,
            in_d,
            constant,
        ]

    return CurvedTerms(function)


def _chinchilla_tied(x: Columns) -> Terms:
    return AffineTerms(
        [
            design_of(4, {0: 1.0, 3: -x["num_params"]}),
            design_of(4, {1: 1.0, 3: -x["train_tokens"]}),
            design_of(4, {2: 1.0}),
        ]
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
        coefficient(
            "A", "loss that a larger model would remove, at one parameter", "nats/token * params^alpha"
        ),
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
        coefficient(
            "A", "loss that a larger model would remove, at one parameter", "nats/token * params^alpha"
        ),
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
        coefficient(
            "A", "loss that a larger model would remove, at one parameter", "nats/token * params^gamma"
        ),
        coefficient("B", "loss that more data would remove, at one token", "nats/token * tokens^gamma"),
        _E,
        exponent("gamma", "how fast parameters and data remove their parts"),
    ),
    inputs=("num_params", "train_tokens"),
    bind=_chinchilla_tied,
    shifts=(Shift(0, 3, "num_params"), Shift(1, 3, "train_tokens")),
)

OVER_TRAINING = Law(
    name="over_training",
    formula="L(C, M) = (a * M^eta + b * M^-eta) * C^-eta + E, C = 6 N D in FLOP, M = D / N, L in nats/token",
    source="Gadre et al. 2024 (arXiv 2403.08540): how a model trained past its compute-optimal D/N still scales",
    parameters=(
        coefficient("a", "loss that a larger model would remove", "nats/token * FLOP^eta"),
        coefficient("b", "loss that more data would remove", "nats/token * FLOP^eta"),
        _E,
        exponent("eta", "how fast compute removes loss at a fixed D/N; half the exponent in N and in D"),
    ),
    inputs=("num_params", "train_tokens"),
    bind=_over_training,
    shifts=(Shift(0, 3, "num_params", times=2.0), Shift(1, 3, "train_tokens", times=2.0)),
)

RECTIFIED = Law(
    name="rectified",
    formula="L(D) = B / (D_l + D^beta) + E, D in tokens, L in nats/token, N fixed",
    source="Lin et al. 2024 (arXiv 2402.02314), used for synthetic data by SynthLLM (Qin et al. 2025, 2503.19551)",
    parameters=(
        coefficient("B", "loss that more data would remove", "nats/token * tokens^beta"),
        Parameter(
            "D_l",
            "what the model has learned before: data of this size raised to beta is worth as much",
            "tokens^beta",
            "scale",
            (-4.0, -1.5, 0.0, 1.5),
            -14.0,
            8.0,
        ),
        exponent("beta", "how fast data removes it"),
        _E,
    ),
    inputs=("train_tokens",),
    bind=_rectified,
    shifts=(Shift(0, 2, "train_tokens"), Shift(1, 2, "train_tokens")),
)

DATA_CONSTRAINED = Law(
    name="data_constrained",
    formula="L(N, D, U) = A * N^-alpha + B * D_e^-beta + E, D_e = U + U * R * (1 - exp(-(D / U - 1) / R)), "
    "N in parameters, D and U (unique) in tokens, L in nats/token",
    source="Muennighoff et al. 2023 (arXiv 2305.16264), with repeated data; excess parameters are not discounted",
    parameters=(
        *CHINCHILLA.parameters,
        Parameter(
            "R",
            "repetitions after which one more pass is worth 1/e of a fresh one",
            "passes",
            "scale",
            tuple(float(np.log(passes)) for passes in (1.0, 4.0, 15.0, 60.0)),
            float(np.log(0.05)),
            float(np.log(2000.0)),
        ),
    ),
    inputs=("num_params", "train_tokens", "unique_tokens"),
    bind=_data_constrained,
    shifts=CHINCHILLA.shifts,
    centred_with={"unique_tokens": "train_tokens"},
)
