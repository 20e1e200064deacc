"""How long to wait before a request that failed is tried again, by how it failed, and when to give it up."""

from __future__ import annotations

import random

from synth.engines.protocol import EngineBusy, EngineError, RequestFailed, RequestTimedOut, ServerFailed

RETRY_SECONDS = (0.1, 1.0, 5.0)
"""Pauses before the attempts after the first of a request that failed by itself."""

SERVER_RETRY_SECONDS = (0.5, 2.0, 8.0, 30.0, 60.0)
"""Pauses before the attempts after one at which a server failed while it answered others."""

TIMED_OUT_RETRY_SECONDS = (0.0, 5.0)
"""Pauses before the attempts after one that timed out."""

BUSY_RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, *[30.0] * 20)
"""Pauses before the attempts after one the engine had no room for: about ten minutes together. Each is drawn from
half to one and a half of this, so that requests turned away together do not come back together."""


def pause_before_retry(error: EngineError, failures: int) -> float | None:
    """Return how long to wait before another attempt after so many failures of this kind, seconds; None gives the request up."""
    if isinstance(error, EngineBusy):
        if failures >= len(BUSY_RETRY_SECONDS):
            return None
        return max(error.retry_after_seconds, BUSY_RETRY_SECONDS[failures] * random.uniform(0.5, 1.5))
    pauses: tuple[float, ...] = ()
    if isinstance(error, RequestTimedOut):
        pauses = TIMED_OUT_RETRY_SECONDS
    elif isinstance(error, ServerFailed):
        pauses = SERVER_RETRY_SECONDS
    elif isinstance(error, RequestFailed):
        pauses = RETRY_SECONDS
    return pauses[failures] if failures < len(pauses) else None
