"""The ledger of a synthetic set: one entry per finished part, written after the part's data.

A part is done when its entry is there. What a job still has to do is what the ledger does not list, and every total
(tokens, device time, rejected rows) is a sum over entries, so it is right after any number of resumed runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ConfigDict
from upath import UPath

from synth.engines.protocol import PASSING_REASONS
from synth.errors import UserError
from synth.identity import read_manifest
from synth.parts import part_name
from synth.storage import list_names, patiently, read_json, study_path, write_json_atomic

MADE_BY = "rephrase_corpus"
LEDGER = "ledger"
QUARANTINE = "quarantine"

_TOTALS = (
    "documents",
    "documents_not_routed",
    "bytes",
    "engine_deaths",
    "retries",
    "device_seconds",
    "engine_start_seconds",
    "lost_attempts",
    "lost_device_seconds",
)

_READERS = 16
"""Entries read at once: on an object store each is one slow little request."""


class Tally(BaseModel):
    """Counts of some rows; tallies add up."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rows: int = 0
    kept: int = 0
    rejected: int = 0
    quarantined: int = 0
    reasons: dict[str, int] = {}
    """Why rows were rejected or quarantined; a row with several reasons counts under each."""
    finish_reasons: dict[str, int] = {}
    """`stop`, `length`, or `not_told` of an engine that gives none."""
    prompt_tokens: int = 0
    cached_prompt_tokens: int | None = 0
    """Prompt tokens the engine did not compute again; depends on what it served before. None where it does not tell."""
    completion_tokens: int = 0
    accepted_tokens: int = 0
    """Completion tokens of kept rows."""
    input_truncated_tokens: int = 0
    """Document tokens cut off because a chunk was longer than the prompt has room for."""
    source_characters: int = 0
    """Length of the chunks sent, characters."""
    kept_characters: int = 0
    """Length of the text of kept rows, characters."""

    def __add__(self, other: Tally) -> Tally:
        values: dict[str, Any] = {}
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            values[name] = (
                dict(Counter(mine) + Counter(theirs)) if isinstance(mine, dict) else known_sum((mine, theirs))
            )
        return Tally.model_construct(**values)


class LedgerEntry(BaseModel):
    """What one part became and what it took."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    part: int
    """Number of the part, from 0; also of the input part it was made from."""
    documents: int
    documents_not_routed: int = 0
    """Documents that no recipe takes by their quality score: they have no row."""
    recipes: dict[str, Tally]
    sha256: str
    """Of the bytes of the part's Parquet file."""
    bytes: int
    prompt_format: str
    """`chat_template`, or `plain` where the model has none."""
    engine_version: str
    tuning: str | None = None
    """File under `tunings/` whose engine settings were taken."""
    device_seconds: float | None
    """Time at work x devices of the engine (a CPU engine counts as one), this part's share where several were in flight.
    As the six below null of an engine that does not tell."""
    engine_start_seconds: float | None
    """Engine starts on this part's account x devices of the engine."""
    engine_deaths: int | None
    retries: int | None
    lost_attempts: int | None
    """Attempts that ended without an answer: engine deaths and hangs, timeouts, failures. What a killed process had at work
    is in no entry."""
    lost_device_seconds: float | None
    """What of device_seconds these took."""
    wall_seconds: float | None
    quarantined: list[dict[str, Any]]
    """Each quarantined row by its key, with reason and the engine's own words."""

    @property
    def total(self) -> Tally:
        """All recipes together."""
        return sum(self.recipes.values(), Tally())

    @property
    def can_be_retried(self) -> bool:
        """Whether a row was quarantined for a reason that may have passed."""
        return any(row["reason"] in PASSING_REASONS for row in self.quarantined)


def known_sum(values: Sequence[float | None]) -> Any:
    """Return the sum, None as soon as one of the values is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def synthetic_directory(root: str, name: str) -> UPath:
    """Return `synthetic/<name>` under a study root."""
    return study_path(root, "synthetic", name)


def entry_path(directory: UPath, part: int, num_parts: int) -> UPath:
    """Return where the entry of a part is."""
    return directory / LEDGER / _entry_name(part, num_parts)


def _entry_name(part: int, num_parts: int) -> str:
    return part_name(part, num_parts).replace(".parquet", ".json")


def quarantine_path(directory: UPath, part: int, num_parts: int) -> UPath:
    """Return where the rows are noted that have killed an engine, before their part is done."""
    return directory / QUARANTINE / _entry_name(part, num_parts)


def write_entry(directory: UPath, num_parts: int, entry: LedgerEntry) -> None:
    """Write an entry, which makes its part done."""
    write_json_atomic(entry_path(directory, entry.part, num_parts), entry.model_dump(mode="json"))


def read_entry(directory: UPath, part: int, num_parts: int) -> LedgerEntry | None:
    """Return the entry of a part, None if it is not done. Raises UserError when the entry cannot be read."""
    path = entry_path(directory, part, num_parts)
    try:
        return LedgerEntry.model_validate(read_json(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{path} is not a ledger entry ({type(error).__name__}): delete it and run {MADE_BY} again."
        ) from None


def remove_entry(directory: UPath, part: int, num_parts: int) -> None:
    """Take an entry away, so that its part is no longer done."""
    path = entry_path(directory, part, num_parts)
    patiently(path, lambda: path.unlink(missing_ok=True))


def missing_parts(directory: UPath, num_parts: int) -> list[int]:
    """Return the parts that are not done: one listing, whatever their number."""
    done = set(list_names(directory / LEDGER, ".json"))
    return [part for part in range(num_parts) if _entry_name(part, num_parts) not in done]


def read_entries(directory: UPath, num_parts: int) -> Iterator[LedgerEntry]:
    """Return all entries in order. Raises UserError when one is not there."""
    with ThreadPoolExecutor(_READERS) as pool:
        for part, entry in enumerate(
            pool.map(lambda part: read_entry(directory, part, num_parts), range(num_parts))
        ):
            if entry is None:
                raise UserError(f"{entry_path(directory, part, num_parts)} is missing: run {MADE_BY} again.")
            yield entry


def parts_to_retry(directory: UPath, num_parts: int) -> list[int]:
    """Return the parts that are done and have rows that may be answered another time; reads every entry."""
    done = sorted(set(range(num_parts)) - set(missing_parts(directory, num_parts)))
    with ThreadPoolExecutor(_READERS) as pool:
        entries = pool.map(lambda part: read_entry(directory, part, num_parts), done)
        return [entry.part for entry in entries if entry is not None and entry.can_be_retried]


def summarise(entries: Iterable[LedgerEntry]) -> dict[str, Any]:
    """Return the totals of a synthetic set, by recipe and together: rows, tokens, device time, rates.

    `wasted_tokens` are completion tokens of rows that were not kept.

    `device_hours_per_billion_accepted_tokens` and `accepted_tokens_per_device_second` count the devices' time at
    work; starts of engines are beside it. Both are None when no token was accepted or no time was taken. A total of
    which one part is not known is None.
    """
    recipes: dict[str, Tally] = {}
    totals: dict[str, Any] = dict.fromkeys(_TOTALS, 0)
    versions: set[str] = set()
    formats: set[str] = set()
    tunings: set[str] = set()
    for entry in entries:
        for name, tally in entry.recipes.items():
            recipes[name] = recipes.get(name, Tally()) + tally
        for name in _TOTALS:
            totals[name] = known_sum((totals[name], getattr(entry, name)))
        versions.add(entry.engine_version)
        formats.add(entry.prompt_format)
        if entry.tuning:
            tunings.add(entry.tuning)
    total = sum(recipes.values(), Tally())
    accepted, device_seconds = total.accepted_tokens, totals["device_seconds"]
    return {
        "documents": totals["documents"],
        "documents_not_routed": totals["documents_not_routed"],
        "bytes": totals["bytes"],
        **total.model_dump(),
        "wasted_tokens": total.completion_tokens - accepted,
        "recipes": {name: tally.model_dump() for name, tally in recipes.items()},
        "engine_deaths": totals["engine_deaths"],
        "retries": totals["retries"],
        "lost_attempts": totals["lost_attempts"],
        "lost_device_seconds": _rounded(totals["lost_device_seconds"]),
        "device_seconds": _rounded(device_seconds),
        "engine_start_seconds": _rounded(totals["engine_start_seconds"]),
        "accepted_tokens_per_device_second": accepted / device_seconds if accepted and device_seconds else None,
        "device_hours_per_billion_accepted_tokens": device_seconds / 3600 / (accepted / 1e9) if accepted and device_seconds else None,
        "engine_versions": sorted(versions),
        "prompt_formats": sorted(formats),
        "tunings": sorted(tunings),
    }  # fmt: skip


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def open_synthetic(root: str, name: str) -> tuple[list[UPath], dict[str, Any]]:
    """Return the parts of a finished synthetic set, in order, and its manifest.

    The parts' columns are `synth.rows.REPHRASED_SCHEMA`; `keep` says which rows count. Raises
    IncompleteArtefact when the set is not finished, UserError when a part has gone since.
    """
    directory = synthetic_directory(root, name)
    manifest = read_manifest(directory, MADE_BY)
    names = [part_name(part, manifest["parts"]) for part in range(manifest["parts"])]
    lost = sorted(set(names) - set(list_names(directory, ".parquet")))
    if lost:
        raise UserError(
            f"{directory} has lost {len(lost)} of {len(names)} parts ({lost[0]}): delete its manifest.json and these "
            f"parts' ledger entries and run {MADE_BY} again."
        )
    return [directory / name for name in names], manifest
