"""How fast a law is fitted: the 4500-start Chinchilla fit and its 4000 bootstraps, against scipy, in the same run.

    python benchmarks/law_fitting.py [--scipy-starts 4500] [--repeats 3] [--out FILE.json]

The rows are the 240 points of Besiroglu et al. 2024 where SYNTHSCALE_REFERENCE_DATA has them, else 240 simulated
ones. Both sides start from the published grid of 5 x 5 x 5 x 6 x 6 points. The other side is the published way:
scipy's L-BFGS-B with finite differences from every start. With fewer --scipy-starts it runs an even sample of the
grid, and its time is scaled up to the whole grid, which the output says.
"""

from __future__ import annotations

import itertools
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.csv
import scipy
from scipy.optimize import minimize
from scipy.special import huber

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, machine, parser_of
from tune.laws import CHINCHILLA, Objective
from tune.laws.bootstrap import pairs_bootstrap
from tune.laws.estimate import optimise
from tune.laws.law import Floats

T = TypeVar("T")

DELTA = 1e-3
EXPONENTS, FLOORS, COEFFICIENTS = np.arange(0, 2.5, 0.5), np.arange(-1, 1.5, 0.5), np.arange(0, 30, 5)


def reference_rows() -> tuple[str, dict[str, Floats]]:
    """Return where the rows come from, and the rows."""
    root = Path(
        os.environ.get("SYNTHSCALE_REFERENCE_DATA", Path(__file__).parents[2] / "shared" / "reference")
    )
    path = root / "chinchilla_epoch" / "svg_extracted_data.csv"
    if not path.exists():
        return "240 simulated runs", simulated_rows()
    table = pyarrow.csv.read_csv(path)
    n, c, loss = (table[name].to_numpy() for name in ("Model Size", "Training FLOP", "loss"))
    kept = loss < np.sort(loss)[-5]
    return "240 points of the Chinchilla figure", {
        "num_params": n[kept],
        "train_tokens": (c / (6 * n))[kept],
        "loss": loss[kept],
    }


def simulated_rows() -> dict[str, Floats]:
    """Return 240 runs around the published law, with 0.5 % noise."""
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(np.log([5e7, 1e9]), np.log([1e10, 5e11]), size=(240, 2))).T
    loss = (478 * n**-0.3473 + 2143 * d**-0.3672 + 1.817) * np.exp(0.005 * rng.normal(size=240))
    return {"num_params": n, "train_tokens": d, "loss": loss}


def published_grid() -> Floats:
    """Return the 4500 starts in the order (log A, log B, log E, alpha, beta), not centred."""
    grid = itertools.product(COEFFICIENTS, COEFFICIENTS, FLOORS, EXPONENTS, EXPONENTS)
    return np.array(list(grid), dtype=np.float64)


def scipy_fit(rows: dict[str, Floats], starts: Floats) -> float:
    """Return the best objective L-BFGS-B finds from these starts with finite differences and default tolerances."""
    log_n, log_d, log_loss = (np.log(rows[name]) for name in ("num_params", "train_tokens", "loss"))

    def objective(theta: Floats) -> float:
        # Written as lean as numpy allows (scipy's own logsumexp alone would make this several times slower).
        a, b, e, alpha, beta = theta
        prediction = np.exp(a - alpha * log_n) + np.exp(b - beta * log_d) + np.exp(e)
        return float(huber(DELTA, np.log(prediction) - log_loss).sum())

    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # the far corners of the published grid overflow at first
        return min(minimize(objective, start, method="L-BFGS-B").fun for start in starts)


def seconds(action: Callable[[], T], repeats: int = 1) -> tuple[float, T]:
    """Return the shortest wall time of an action, and its last result."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - began)
    return min(times), result


def measure(scipy_starts: int, repeats: int) -> dict[str, object]:
    origin, rows = reference_rows()
    grid = published_grid()
    centred = CHINCHILLA.to_theta(CHINCHILLA.to_parameters(grid, {}), CHINCHILLA.centre(rows))
    objective = Objective("huber_log", DELTA)
    sample = grid[np.linspace(0, len(grid) - 1, scipy_starts).round().astype(int)]
    ours, optimum = seconds(lambda: optimise(CHINCHILLA, rows, objective, centred), repeats)
    theirs, best = seconds(lambda: scipy_fit(rows, sample))
    theirs *= len(grid) / len(sample)
    count = len(rows["loss"])
    resampled, _ = seconds(
        lambda: pairs_bootstrap(optimum.problem, optimum.theta[None], np.arange(count), 4000, seed=42),
        repeats,
    )
    return {
        "rows": origin,
        "starts": len(grid),
        "ours_seconds": ours,
        "ours_objective": optimum.value,
        "ours_gradient_norm": optimum.gradient_norm,
        "starts_at_optimum_fraction": optimum.at_optimum_fraction,
        "scipy_starts_run": len(sample),
        "scipy_seconds_for_all_starts": theirs,
        "scipy_objective_minus_ours": best - optimum.value,
        "speed_up": theirs / ours,
        "bootstraps": 4000,
        "bootstrap_seconds": resampled,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--scipy-starts", type=int, default=4500, help="starts scipy really runs, evenly spread"
    )
    parser.add_argument("--repeats", type=int, default=3, help="our fits; the fastest counts")
    options = parser.parse_args()
    give(measure(options.scipy_starts, options.repeats), options.out)


if __name__ == "__main__":
    main()
