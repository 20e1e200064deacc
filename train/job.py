"""The Ray seam of train: tokenise in parallel, and train a queue of runs on warm worker groups."""

from __future__ import annotations
