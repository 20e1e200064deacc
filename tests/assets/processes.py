"""What a job has started, to see that it goes when the job does."""

from __future__ import annotations

import contextlib

import psutil

RAYS_AGENTS = ("ray::DashboardAg", "ray::RuntimeEnv")
"""They look for their node about once a minute only, and hold nothing."""


class Family:
    """Every process below another one, as of now."""

    def __init__(self, pid: int) -> None:
        below = psutil.Process(pid).children(recursive=True)
        self._agents = [process for process in below if process.name().startswith(RAYS_AGENTS)]
        self._others = [process for process in below if process not in self._agents]

    def left_after(self, seconds: float) -> list[str]:
        """Return the names of those that are still there after so long; Ray's agents are not waited for, but ended."""
        _, left = psutil.wait_procs(self._others, timeout=seconds)
        for agent in self._agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.kill()
        return [process.name() for process in left]
