"""What a study found, free of times and provenance, to compare two of them."""

from __future__ import annotations

import json
from typing import Any

from synth.storage import study_path

RESULTS = (
    "corpora/*/*/part-*.parquet", "synthetic/*/part-*.parquet", "packed/*/**/*.tokens", "runs/*/record.json",
    "searches/*/*/best.json", "laws/*/fit.json", "recommendations/*.json",
)  # fmt: skip
# What a branch found trained depends on which branches were there when it began; what comes out does not.
NOT_RESULTS = {"provenance", "wall_seconds", "device_seconds", "tokens_per_second", "attempts", "device", "training_device_hours",
               "generation_device_hours", "trunk"}  # fmt: skip


def results_of(root: Any) -> dict[str, Any]:
    """Return a study's results, wherever its root is: relative path -> bytes or JSON value."""
    directory = study_path(str(root))
    paths = sorted({path for pattern in RESULTS for path in directory.glob(pattern)}, key=str)
    return {
        path.relative_to(directory).as_posix(): _timeless(json.loads(path.read_text()))
        if path.suffix == ".json"
        else path.read_bytes()
        for path in paths
    }


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in NOT_RESULTS}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
