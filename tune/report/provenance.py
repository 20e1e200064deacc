"""What the report says of its own making: artefacts and their hashes, the commands, the versions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from tune.report.inputs import Study
from tune.report.table import Column, Table

_ARTEFACT_COLUMNS = (
    Column("artefact", "Artefact"),
    Column("hash", "Hash", "code"),
    Column("commit", "Code", "code"),
    Column("created_at", "Made (UTC)"),
)
_VERSION_COLUMNS = (Column("software", "Software"), Column("versions", "Version", "prose"))


def provenance_tables(study: Study) -> list[Table]:
    """Return the artefacts with their hashes, each command once with what it made, and the versions that made them."""
    sources = {name: manifest for name, manifest in study.manifests.items() if "provenance" in manifest}
    fit = study.laws.file
    for name, each in study.recommendations.items():
        sources[f"recommendations/{name}"] = {"hash": each.hash, "provenance": each.provenance}
    sources.setdefault(f"laws/{study.config.laws}", {"hash": fit.hash, "provenance": fit.provenance})
    ordered = sorted(
        sources.items(), key=lambda item: (str(item[1]["provenance"].get("created_at")), item[0])
    )
    rows = tuple(
        {
            "artefact": name,
            "hash": manifest.get("hash"),
            "commit": manifest["provenance"].get("commit"),
            "created_at": manifest["provenance"].get("created_at"),
        }
        for name, manifest in ordered
    )
    made_by: dict[str, list[str]] = {}
    for name, manifest in ordered:
        if command := command_line(manifest["provenance"].get("argv") or []):
            made_by.setdefault(command, []).append(name)
    everything = [manifest["provenance"] for _, manifest in ordered] + [
        r.provenance for r in study.records.values()
    ]
    caption = "What this report was made from, oldest first"
    return [
        Table("artefacts", caption, _ARTEFACT_COLUMNS, rows, tuple(_commands(made_by))),
        Table("versions", "Versions", _VERSION_COLUMNS, tuple(_versions(everything))),
    ]


def _commands(made_by: dict[str, list[str]]) -> Iterator[str]:
    if len(made_by) == 1:
        yield f"One command made all of it: {next(iter(made_by))}"
        return
    for command, names in made_by.items():
        yield f"{command} made {', '.join(names)}"


def command_line(argv: list[str]) -> str | None:
    """Return the command a manifest was made by, as one types it: `python -m rayjobs.<job> ...`, no machine paths."""
    if not argv:
        return None
    program = PurePath(argv[0])
    start = ["python", "-m", f"rayjobs.{program.stem}"] if program.suffix == ".py" else [program.name]
    return shlex.join([*start, *argv[1:]])


def _versions(provenances: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: dict[str, set[str]] = {}
    for each in provenances:
        software = {
            "python": each.get("python"),
            "machine": each.get("machine"),
            "synthscale": each.get("commit"),
        }
        for name, version in (software | each.get("packages", {})).items():
            if version:
                seen.setdefault(name, set()).add(str(version))
    for name, versions in sorted(seen.items()):
        yield {"software": name, "versions": ", ".join(sorted(versions))}
