"""A fitted law: parameters with intervals, predictions, tokens to reach a loss; prints as a small table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from synth.errors import UserError
from tune.laws.law import Floats, Law
from tune.laws.rows import Rows
from tune.laws.summary import describe
from tune.results import Interval, LawFit, ShareByLaw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG_TOKENS_LIMIT = float(np.log(1e18))
"""A loss that would take more tokens than this counts as never reached."""
SHARE_STEPS = 1000
BISECTED_TOGETHER = 64
"""Resamples solved for at once: each is evaluated at the points of all, and the diagonal is what counts."""
FIXED_TOLERANCE = 0.01
"""A one-axis law answers for the size or budget it was fitted at, up to this relative difference."""


@dataclass(frozen=True, eq=False)
class FittedLaw:
    """One law with its record and the parameters of its bootstrap resamples."""

    law: Law
    record: LawFit
    samples: Floats = field(repr=False)
    """Parameters of the resamples, [bootstrap_samples, p], in the order of `law.names`; empty without intervals."""
    rows: Rows | None = field(default=None, repr=False)
    """The rows it was fitted to, for plots; None for a fit read from a job's directory, which has them in its file."""

    @property
    def parameters(self) -> dict[str, float]:
        """Values of the parameters by name, in the order of `law.names` also where the record has another, read from a file."""
        return {name: self.record.parameters[name].value for name in self.law.names}

    @property
    def values(self) -> Floats:
        """Values of the parameters in the order of `law.names`, [1, p], as `samples` has them."""
        return np.array([list(self.parameters.values())])

    def __str__(self) -> str:
        return describe(self.record)

    # --- plots and files ---------------------------------------------------------------------------------------

    def plot(self) -> Figure:
        """Return a matplotlib figure: the fit with its band on its axis, or predicted against measured, and residuals.

        Raises UserError when the rows are not at hand.
        """
        from tune.laws.plot import plot_fit  # matplotlib is slow to load, and a fit needs none

        return plot_fit(self)

    def save(self, path: str | Path) -> None:
        """Write the fit to one JSON file: record, resamples and rows. `tune.laws.load` reads it."""
        rows = {name: np.asarray(values).tolist() for name, values in (self.rows or {}).items()}
        content = {
            "record": self.record.model_dump(mode="json"),
            "samples": self.samples.tolist(),
            "rows": rows or None,
        }
        Path(path).write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")

    # --- predictions -------------------------------------------------------------------------------------------

    def predict(
        self, num_params: float | None = None, train_tokens: float | None = None, **inputs: float
    ) -> Interval:
        """Return the loss at one point, nats per token, with the interval of the curve (not of a single run).

        A one-axis law needs only its own axis; the other value, if given, must be the one it was fitted at.
        Raises UserError when an input is missing or differs from what the law holds fixed.
        """
        rows = self._point({"num_params": num_params, "train_tokens": train_tokens, **inputs})
        value, samples = self._losses(rows)
        return self._interval(float(value[0]), samples[:, 0])

    def curve(self, rows: Mapping[str, ArrayLike]) -> tuple[Floats, Floats | None, Floats | None]:
        """Return predicted losses [n] for columns of the law's inputs [n], and their low and high ends or None."""
        value, samples = self._losses(rows)
        if not len(samples):
            return value, None, None
        low, high = np.quantile(samples, _tails(self.record.confidence), axis=0)
        return value, low, high

    def tokens_to_reach(
        self, loss: float, num_params: float | None = None, **inputs: float
    ) -> Interval | None:
        """Return the training tokens at which the curve reaches a loss; None if it never does.

        `high` is null when the curve of too many resamples never gets there: the tokens have no upper limit then.
        """
        if "train_tokens" not in self.law.inputs:
            raise UserError(
                f"the {self.law.name} law has no train_tokens, so it cannot say how many reach a loss"
            )
        point = {"num_params": num_params, "train_tokens": 1.0, **inputs}
        best = self._tokens(self.values, point, loss)[0]
        if not np.isfinite(best):
            return None
        return self._interval(float(best), self._tokens(self.samples, point, loss))

    def best_share(self, num_params: float, train_tokens: float) -> Interval:
        """Return the synthetic share with the lowest predicted loss at a size and budget, for a law in `share`.

        Raises UserError for a law that does not know the share. Shares are searched in steps of 1 / SHARE_STEPS.
        """
        if "share" not in self.law.shares:
            raise UserError(
                f"the {self.law.name} law has no share to choose: fit ratio_floor, ratio_data or ratio_full"
            )
        shares = np.linspace(0.0, 1.0, SHARE_STEPS + 1)
        same = np.ones_like(shares)
        value, samples = self._losses(
            {"num_params": num_params * same, "train_tokens": train_tokens * same, "share": shares}
        )
        best = shares[np.argmin(samples, axis=1)] if len(samples) else np.empty(0)
        return self._interval(float(shares[np.argmin(value)]), best)

    def best_shares(self, rows: Rows) -> tuple[ShareByLaw, ...]:
        """Return the best share of every cell among the rows, by size and budget; none for a law not in N, D and the share."""
        if "share" not in self.law.shares or not {"num_params", "train_tokens"} <= set(self.law.inputs):
            return ()
        cells = np.unique(
            np.column_stack([rows["num_params"], rows["train_tokens"]]).astype(np.float64), axis=0
        )
        return tuple(
            ShareByLaw(num_params=n, train_tokens=d, best_share=self.best_share(n, d))
            for n, d in cells.tolist()
        )

    def interval_of(self, function: Callable[[dict[str, Floats]], Floats]) -> Interval:
        """Return any function of the parameters with its interval.

        `function` gets the parameters by name as arrays and returns an array of the same length, for example
        `lambda p: p["beta"] / (p["alpha"] + p["beta"])`.
        """
        value = function({name: np.array([v]) for name, v in self.parameters.items()})
        samples = function({name: self.samples[:, i] for i, name in enumerate(self.law.names)})
        return self._interval(float(value[0]), np.asarray(samples))

    def extrapolation(self, num_params: float | None = None, train_tokens: float | None = None) -> float:
        """Return how far outside its data the law is asked: the largest ratio to the nearest end, 1 inside."""
        asked = {"num_params": num_params, "train_tokens": train_tokens}
        ratios = [1.0]
        for name, (low, high) in self.record.ranges.items():
            value = asked.get(name)
            if value is not None:
                ratios.append(max(value / high, low / value))
        return max(ratios)

    # --- inside ------------------------------------------------------------------------------------------------

    def _interval(self, value: float, samples: Floats) -> Interval:
        return interval_from(value, samples, self.record.confidence)

    def _losses(self, rows: Mapping[str, ArrayLike]) -> tuple[Floats, Floats]:
        bound = self.law.bind(self.law.columns(rows))
        value = np.exp(bound.log_prediction(self.law.to_theta(self.values)))[0]
        if not len(self.samples):
            return value, np.empty((0, len(value)))
        return value, np.exp(bound.log_prediction(self.law.to_theta(self.samples)))

    def _point(self, asked: Mapping[str, float | None]) -> dict[str, Floats]:
        for name, held in self.record.fixed.items():
            value = asked.get(name)
            if value is not None and abs(value / held - 1.0) > FIXED_TOLERANCE:
                raise UserError(
                    f"the {self.law.name} law of {self.record.group!r} was fitted at {name} = {held:g} and says nothing "
                    f"about {value:g}: use the chinchilla law"
                )
        missing = [name for name in self.law.columns_needed if asked.get(name) is None]
        if missing:
            raise UserError(f"the {self.law.name} law needs {missing[0]} to predict a loss")
        return {name: np.array([asked[name]], dtype=np.float64) for name in self.law.columns_needed}

    def _tokens(self, parameters: Floats, asked: Mapping[str, float | None], loss: float) -> Floats:
        """Return the tokens at which each parameter vector [S, p] reaches the loss, inf where never."""
        point = {name: value[0] for name, value in self._point(asked).items()}
        blocks = [parameters[i : i + BISECTED_TOGETHER] for i in range(0, len(parameters), BISECTED_TOGETHER)]
        return np.concatenate([np.empty(0), *(self._bisect(block, point, np.log(loss)) for block in blocks)])

    def _bisect(self, parameters: Floats, point: Mapping[str, float], log_loss: float) -> Floats:
        theta = self.law.to_theta(parameters)
        size = len(theta)

        def above(log_tokens: Floats) -> Floats:
            rows = {name: np.full(size, value) for name, value in point.items()} | {
                "train_tokens": np.exp(log_tokens)
            }
            prediction = self.law.bind(self.law.columns(rows)).log_prediction(theta)
            return np.asarray(np.diagonal(prediction) > log_loss)

        low, high = np.zeros(size), np.full(size, LOG_TOKENS_LIMIT)
        never = above(high)
        for _ in range(60):
            middle = (low + high) / 2.0
            still_above = above(middle)
            low, high = np.where(still_above, middle, low), np.where(still_above, high, middle)
        return np.where(never, np.inf, np.exp(high))


def interval_from(value: float, samples: Floats, confidence: float) -> Interval:
    """Return a value with the percentile interval of its resamples [B]; an infinite end is null."""
    if not len(samples):
        return Interval(value=value)
    method: Literal["inverted_cdf", "linear"] = "inverted_cdf" if np.isinf(samples).any() else "linear"
    low, high = np.quantile(samples, _tails(confidence), method=method)  # no mean of a number and infinity
    error = float(np.std(samples, ddof=1)) if np.isfinite(samples).all() and len(samples) > 1 else None
    return Interval(
        value=value,
        low=float(low) if np.isfinite(low) else None,
        high=float(high) if np.isfinite(high) else None,
        standard_error=error,
    )


def _tails(confidence: float) -> tuple[float, float]:
    return (1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0
