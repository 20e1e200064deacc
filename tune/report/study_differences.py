"""What two studies that are compared differ in themselves: recipes, held-out texts, and how their synthetic text was made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from synth.identity import RECIPE_FILE
from synth.storage import MARKER, exists, list_directories, read_json, study_path
from tune.config import CompareConfig
from tune.report.inputs import StudyRun
from tune.report.pairs import Pair


def packed_set(root: str, runs: Sequence[StudyRun]) -> dict[str, Any]:
    """Return the manifest of the packed set a study's runs read; empty where it is not under the root."""
    names = {run.record.config.packed for run in runs if run.record is not None}
    return _json(root, "packed", sorted(names)[0], MARKER) if names else {}


def _json(root: str, *parts: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(study_path(root, *parts))
    except FileNotFoundError:
        return {}
    return found


def _synthetic_of(root: str, run: StudyRun) -> tuple[str, dict[str, Any]]:
    """Return the name and the manifest of the synthetic set behind a run's source; empty where it is not under the root."""
    assert run.record is not None
    sources = (
        _json(root, "packed", run.record.config.packed, RECIPE_FILE).get("recipe", {}).get("sources", {})
    )
    name = str(sources.get(run.synthetic, {}).get("synthetic") or "")
    return name, _json(root, "synthetic", name, MARKER) if name else {}


def differing_fields(config: CompareConfig, pairs: Sequence[Pair]) -> Iterable[dict[str, Any]]:
    """Yield the fields in which the recipes of two studies, or of two sets of one study, differ: `artefact`, `field`, `a`, `b`."""
    if config.study_a == config.study_b:
        yield from _differing_sets(config, pairs)
        return
    for kind in ("corpora", "synthetic", "packed", "plans"):
        names_a, names_b = (_finished(root, kind) for root in (config.study_a, config.study_b))
        for name in sorted(names_a & names_b):
            old, new = (
                _json(root, kind, name, RECIPE_FILE).get("recipe", {})
                for root in (config.study_a, config.study_b)
            )
            for field, (a, b) in _unequal(old, new).items():
                yield {"artefact": f"{kind}/{name}", "field": field, "a": a, "b": b}
        for name in sorted(names_a ^ names_b):
            yield {"artefact": f"{kind}/{name}", "field": "", "a": "there" if name in names_a else None, "b": "there" if name in names_b else None}  # fmt: skip


def _differing_sets(config: CompareConfig, pairs: Sequence[Pair]) -> Iterable[dict[str, Any]]:
    """Yield what two synthetic sets of one study differ in."""
    done: set[tuple[str, str]] = set()
    for pair in pairs:
        if pair.a.share == 0:
            continue
        (name_a, made_a), (name_b, made_b) = (
            _synthetic_of(config.study_a, pair.a),
            _synthetic_of(config.study_b, pair.b),
        )
        if (name_a, name_b) not in done:
            done.add((name_a, name_b))
            for field, (a, b) in _unequal(made_a.get("recipe", {}), made_b.get("recipe", {})).items():
                yield {"artefact": f"synthetic/{name_a} against {name_b}", "field": field, "a": a, "b": b}


def _finished(root: str, kind: str) -> set[str]:
    directory = study_path(root, kind)
    return {name for name in list_directories(directory) if exists(directory / name / MARKER)}


def _unequal(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted(old.keys() | new.keys()):
            found |= _unequal(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return {} if old == new else {prefix: (_in_a_cell(old), _in_a_cell(new))}


def _in_a_cell(value: Any) -> Any:
    """Return a value as a table can hold it: of a whole recipe that only one side has, its hash says enough."""
    if not isinstance(value, dict):
        return value
    return f"there ({value['hash']})" if "hash" in value else "there"


def generation_of_sets(config: CompareConfig, pairs: Sequence[Pair]) -> Iterable[dict[str, Any]]:
    """Yield how each synthetic set behind the pairs was made: model, recipes, part kept, tokens, speed."""
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        if pair.a.share == 0:
            continue
        for study, root, run in (("A", config.study_a, pair.a), ("B", config.study_b, pair.b)):
            name, manifest = _synthetic_of(root, run)
            if not manifest or (study, name) in seen:
                continue
            seen.add((study, name))
            yield {
                "study": study,
                "synthetic": name,
                "model": manifest["recipe"]["engine"]["model"],
                "recipes": ", ".join(sorted(manifest["recipes"])),
                "kept_fraction": manifest["kept"] / manifest["rows"] if manifest["rows"] else None,
                "accepted_tokens": manifest["accepted_tokens"],
                "tokens_per_device_second": manifest["accepted_tokens_per_device_second"],
                "device_hours_per_billion": manifest["device_hours_per_billion_accepted_tokens"],
            }


def texts_differ(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """Return how the held-out texts of two packed sets differ, in words; None when they are the same.

    With one tokenizer the tokens tell. With two, the corpora they were drawn from do, and how many bytes of each domain
    were taken: a limit in tokens cuts the same text at another place.
    """
    if a.get("tokenizer_hash") == b.get("tokenizer_hash"):
        shards = [each.get("evaluation_shard", {}).get("sha256") for each in (a, b)]
        return None if shards[0] == shards[1] else "the held-out texts differ"
    corpora = [
        sorted(made for role, made in each.get("parents", {}).items() if role.startswith("evaluate_on."))
        for each in (a, b)
    ]
    if corpora[0] != corpora[1]:
        return "the held-out texts are of different corpora"
    sizes = [
        {
            name: (info["num_documents"], info["num_bytes"])
            for name, info in each.get("evaluation", {}).items()
        }
        for each in (a, b)
    ]
    if sizes[0] == sizes[1]:
        return None
    taken = [sum(size for _, size in each.values()) for each in sizes]
    return (
        f"the held-out texts are of the same corpora but not cut at the same place ({taken[0]:,} bytes of {len(sizes[0])} "
        f"domains against {taken[1]:,} of {len(sizes[1])})"
    )
