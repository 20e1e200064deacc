"""What runs that were trained alike have in common, wherever and however fast: their records, and their metrics' lines to compare."""

import json
from typing import Any

from train.record import RunRecord, run_directory
from train.run import RunConfig

WHERE_AND_WHEN = {
    "wall_seconds",
    "device_seconds",
    "tokens_per_second",
    "attempts",
    "placement",
    "provenance",
    "device",
}


def results(record: RunRecord) -> dict:
    """Return what a record says, without where, when and how fast."""
    return record.model_dump(exclude=WHERE_AND_WHEN)


def metric_lines(root: Any, run: RunConfig) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl under a local root."""
    text = (run_directory(str(root), run.run_id) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
