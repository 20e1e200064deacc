"""What records of runs have in common that were trained alike, wherever and however fast."""

from train.record import RunRecord

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
