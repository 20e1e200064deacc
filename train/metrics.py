"""`metrics.jsonl` of a run: a few hundred lines that show how it went, consistent with its checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from upath import UPath

from synth.storage import read_bytes, write_text_atomic
from train.run import RunConfig

METRICS_FILE = "metrics.jsonl"

MAX_LINES = 200
"""Lines a run leaves at most; short runs leave one for each step."""

FLUSH_SECONDS = 10.0
"""Lines reach the disk at least this often, and with every checkpoint."""


@dataclass(frozen=True)
class StepMetrics:
    """How a run stood after a step."""

    step: int
    """Finished steps."""
    train_tokens: int
    """Training tokens done."""
    loss_nats_per_token: float | None
    """Mean training loss of the steps since the line before, nats; null when it is not finite (the run diverged)."""
    learning_rate: float
    """Rate of this step."""
    gradient_norm: float | None
    """Global norm of this step's gradient before clipping; null when it is not finite."""
    tokens_per_second: float
    """Throughput since the line before (or since the run was resumed), evaluation and checkpoints left out."""
    loss_by_source: dict[str, float | None]
    """The same loss over the rows of each source alone, nats; a source without a row in these steps is left out."""
    mfu_fraction: float | None
    """Model FLOPs utilisation since the line before: `train_flops` a second over the peak of the devices, [0, 1] (Chowdhery
    et al. 2022, appendix B); null when no peak is known."""
    memory_bytes: int
    """Memory of the leading worker: on a GPU the most allocated since the line before, else the process's resident set."""
    wall_seconds: float
    """Seconds of all attempts so far; what a kill cost of the last ten seconds is not known and not in it."""


def log_steps(num_steps: int) -> range:
    """Return the numbers of finished steps that get a line; the last step's is written besides."""
    every = math.ceil(num_steps / MAX_LINES)
    return range(every, num_steps + 1, every)


def scalars_of(line: StepMetrics) -> dict[str, float]:
    """Return the numbers of a line by name, as trackers want them: sources as `loss_by_source/<name>`, nulls left out."""
    values: dict[str, float | None] = {}
    for name, value in asdict(line).items():
        if isinstance(value, dict):
            values |= {f"{name}/{source}": loss for source, loss in value.items()}
        elif name != "step":
            values[name] = value
    return {name: value for name, value in values.items() if value is not None}


CountTokens = Callable[[int, int], Sequence[int]]
"""Tokens of each source that the loss counts in some steps: from the first number up to the second."""


class SourceLosses:
    """Training losses since the last line, summed by source. Which rows a step has of each source is the sampler's to say,
    so the sums are all there is to keep."""

    def __init__(self, names: Sequence[str], count_tokens: CountTokens, nats: Sequence[float] = ()) -> None:
        self._names, self._count_tokens = names, count_tokens
        self.nats = list(nats) or [0.0] * len(names)
        """Losses summed over tokens, nats, in the order of the sampler's names."""

    def add(self, nats: Sequence[float]) -> None:
        """Add the sums of further steps."""
        self.nats = [before + more for before, more in zip(self.nats, nats, strict=True)]

    def take(self, step: int, num_steps: int) -> dict[str, float | None]:
        """Return the mean of each source over the last `num_steps` steps, up to `step`, nats per counted token; begin anew."""
        counts = self._count_tokens(step - num_steps, step)
        nats, self.nats = self.nats, [0.0] * len(self.nats)
        return {
            name: finite(total / count)
            for name, total, count in zip(self._names, nats, counts, strict=True)
            if count
        }


class MetricsLog:
    """The lines of a run. They are few, so the file is always written whole: it never holds half a line, and a
    resumed run drops the lines after its checkpoint by not taking them over."""

    def __init__(self, directory: UPath, run: RunConfig) -> None:
        self._path = directory / METRICS_FILE
        self._steps = log_steps(run.num_steps)
        self._last_step = run.num_steps
        self._lines: list[StepMetrics] = []
        self._flushed_at = time.monotonic()

    def resume(self, step: int) -> None:
        """Take over the lines up to a finished step."""
        with contextlib.suppress(FileNotFoundError):
            found = [StepMetrics(**json.loads(line)) for line in read_bytes(self._path).splitlines()]
            self._lines = [line for line in found if line.step <= step]

    def wants(self, step: int) -> bool:
        """Return whether this finished step gets a line."""
        return step in self._steps or step == self._last_step

    def add(self, line: StepMetrics) -> None:
        """Add a line and, now and then, write the file."""
        self._lines.append(line)
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the file whole."""
        text = "".join(json.dumps(asdict(line), allow_nan=False) + "\n" for line in self._lines)
        write_text_atomic(self._path, text)
        self._flushed_at = time.monotonic()


def finite(value: float) -> float | None:
    """Return the value, or None for infinity and not-a-number, which JSON does not have."""
    return value if math.isfinite(value) else None
