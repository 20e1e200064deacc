"""Tables of the report on data and cost: corpora, synthetic sets, packed sources, what it all took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from synth.model_source import shipped_num_params
from train.flops import train_flops
from train.record import RunRecord
from tune.config import ReportPrices
from tune.report.format import significant
from tune.report.inputs import Study, SyntheticSet
from tune.report.table import Column, Table

# --- natural text ----------------------------------------------------------------------------------------------

_CORPUS_COLUMNS = (
    Column("domain", "Domain"),
    Column("train_documents", "Documents", "count"),
    Column("train_characters", "Characters", "count"),
    Column("held_out_documents", "Held-out documents", "count"),
    Column("held_out_characters", "Held-out characters", "count"),
)


def corpus_tables(study: Study) -> list[Table]:
    """Return one table per corpus: its domains, then the sum; dropped rows as notes."""
    return [_corpus_table(name, manifest) for name, manifest in sorted(study.corpora.items())]


def _corpus_table(name: str, manifest: dict[str, Any]) -> Table:
    splits = manifest["splits"]
    domains = sorted({domain for split in splits.values() for domain in split["domains"]})
    rows = [
        {"domain": domain}
        | _split_counts({split: splits[split]["domains"].get(domain, {}) for split in splits})
        for domain in domains
    ]
    rows.append({"domain": "all"} | _split_counts(splits))
    note = (
        f"{manifest['rows_read']:,} rows read, {manifest['documents_kept']:,} documents kept; "
        f"dropped: {_spoken(manifest['dropped']) or 'none'}."
    )
    return Table(
        f"corpus-{name}", f"Corpus {name}, hash {manifest['hash']}", _CORPUS_COLUMNS, tuple(rows), (note,)
    )


def _spoken(counts: dict[str, int]) -> str:
    """Return counts by reason in words, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in ordered)


def _split_counts(splits: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {
        f"{split}_{count}": counts.get(count, 0)
        for split, counts in splits.items()
        for count in ("documents", "characters")
    }


# --- synthetic text --------------------------------------------------------------------------------------------

_SYNTHETIC_COLUMNS = (
    Column("recipe", "Recipe"),
    Column("rows", "Rows", "count"),
    Column("kept", "Kept", "count"),
    Column("rejected", "Rejected", "count"),
    Column("quarantined", "Quarantined", "count"),
    Column("kept_fraction", "Kept of all", "percent"),
    Column("completion_tokens", "Tokens generated", "count"),
    Column("accepted_tokens", "Tokens accepted", "count"),
    Column("length_ratio", "Output/input length", "number"),
)


def synthetic_tables(study: Study) -> list[Table]:
    """Return one table per synthetic set: rows by outcome and recipe; reasons and speed as notes."""
    return [_synthetic_table(name, each.manifest) for name, each in sorted(study.synthetic.items())]


def _synthetic_table(name: str, manifest: dict[str, Any]) -> Table:
    recipes = manifest["recipes"]
    rows = [_tally_row(recipe, tally) for recipe, tally in sorted(recipes.items())]
    rows.append(_tally_row("all", manifest))
    notes = [
        f"{recipe}, not kept: {_spoken(tally['reasons'])}."
        for recipe, tally in sorted(recipes.items())
        if tally["reasons"]
    ]
    speed = manifest["accepted_tokens_per_device_second"]
    if speed is not None:
        notes.append(
            f"{significant(speed)} accepted tokens per device second at work; engine starts are not counted in it."
        )
    notes.append(f"Engine: {', '.join(manifest['engine_versions'])}; prompt format: {', '.join(manifest['prompt_formats'])}; "
                 f"engine deaths: {manifest['engine_deaths']:,}; retries: {manifest['retries']:,}.")  # fmt: skip
    model = manifest["recipe"]["engine"]["model"]
    caption = f"Synthetic set {name}, hash {manifest['hash']}, from corpus {manifest['recipe']['corpus']} by {model}"
    return Table(f"synthetic-{name}", caption, _SYNTHETIC_COLUMNS, tuple(rows), tuple(notes))


def _tally_row(recipe: str, tally: dict[str, Any]) -> dict[str, Any]:
    counts = {
        key: tally[key]
        for key in ("rows", "kept", "rejected", "quarantined", "completion_tokens", "accepted_tokens")
    }
    return counts | {
        "recipe": recipe,
        "kept_fraction": tally["kept"] / tally["rows"] if tally["rows"] else None,
        "length_ratio": tally["kept_characters"] / tally["source_characters"]
        if tally["source_characters"]
        else None,
    }


# --- packed sources --------------------------------------------------------------------------------------------

_SOURCE_COLUMNS = (
    Column("source", "Source"),
    Column("num_documents", "Documents", "count"),
    Column("num_bytes", "Text", "size"),
    Column("num_tokens", "Tokens", "amount"),
    Column("bytes_per_token", "Bytes/token", "number"),
    Column("runs", "Runs", "count"),
    Column("tokens_used", "Tokens trained on", "amount"),
    Column("most_epochs", "Most passes in a run", "number"),
    Column("runs_repeating", "Runs that repeat", "count"),
    Column("most_repeated_tokens", "Most repeated tokens in a run", "amount"),
)


def packed_tables(study: Study) -> list[Table]:
    """Return one table per packed set: what is in it, and what the runs of this report drew from it."""
    return [
        _packed_table(name, manifest, study.records.values())
        for name, manifest in sorted(study.packed.items())
    ]


def _packed_table(name: str, manifest: dict[str, Any], records: Iterable[RunRecord]) -> Table:
    mine = [record for record in records if record.config.packed == name]
    rows = []
    for source, info in sorted(manifest["sources"].items()):
        uses = [record.sources[source] for record in mine if source in record.sources]
        rows.append({
            "source": source,
            "num_documents": info["num_documents"],
            "num_bytes": info["num_bytes"],
            "num_tokens": info["num_tokens"],
            "bytes_per_token": info["num_bytes"] / info["num_tokens"] if info["num_tokens"] else None,
            "runs": len(uses),
            "tokens_used": sum(use.tokens for use in uses),
            "most_epochs": max((use.epochs for use in uses), default=None),
            "runs_repeating": sum(use.repeated_tokens > 0 for use in uses),
            "most_repeated_tokens": max((use.repeated_tokens for use in uses), default=None),
        })  # fmt: skip
    caption = (
        f"Packed set {name}, hash {manifest['hash']}: vocabulary {manifest['vocab_size']:,}, rows of "
        f"{manifest['sequence_length']:,} tokens"
    )
    left_out = manifest.get("domains_left_out", {})
    notes = tuple(
        f"Held-out domain {domain} left out: {reason}." for domain, reason in sorted(left_out.items())
    )
    return Table(f"packed-{name}", caption, _SOURCE_COLUMNS, tuple(rows), notes)


# --- cost ------------------------------------------------------------------------------------------------------

_COST_COLUMNS = (
    Column("step", "Step"),
    Column("artefact", "Artefact"),
    Column("runs", "Runs", "count"),
    Column("wall_seconds", "Wall, whole step", "seconds"),
    Column("device_seconds", "Device", "seconds"),
    Column("tokens", "Tokens", "amount"),
    Column("flops", "FLOP", "flops"),
)


def cost_table(study: Study) -> Table:
    """Return what each step took; a run that the plan had trained too is charged to the plan alone."""
    rows = [*_data_costs(study), *_training_costs(study), *_evaluation_costs(study), *_other_costs(study)]
    columns: tuple[Column, ...] = _COST_COLUMNS
    if study.config.prices != ReportPrices():
        rows = [row | {"money": _money(study.config.prices, row)} for row in rows]
        columns = (*columns, Column("money", f"Price, {study.config.prices.currency}", "money"))
    known = {
        key: [row[key] for row in rows if row.get(key) is not None]
        for key in ("wall_seconds", "device_seconds", "flops", "money")
    }
    rows.append(
        {"step": "sum of what is known", "artefact": ""}
        | {key: sum(each) for key, each in known.items() if each}
    )
    notes = (
        "Tokens: generated by rephrase_corpus, packed by pack_tokens, trained on by the others, so they do not add up.",
        "Evaluation: the forward passes over held-out text; its seconds are in those of the runs.",
        "FLOP of training: every matrix product forward and backward, attention and output projection included; of "
        "generation: 2 x all parameters x tokens read or written, prompt tokens the engine had cached left out.",
    )
    return Table("cost", "Cost by step", columns, tuple(rows), notes)


def _money(prices: ReportPrices, row: dict[str, Any]) -> float | None:
    """Return what a step's device time cost; None without a price, or for a step that has no device time of its own."""
    generating = row["step"] == "rephrase_corpus"
    price = prices.generation_device_hour if generating else prices.training_device_hour
    seconds = row.get("device_seconds")
    return None if price is None or seconds is None else price * seconds / 3600


def _wall(study: Study, step: str, name: str) -> float | None:
    times = [entry["wall_seconds"] for entry in study.steps if (entry["step"], entry["name"]) == (step, name)]
    return sum(times) if times else None


def _data_costs(study: Study) -> Iterator[dict[str, Any]]:
    for name in sorted(study.corpora):
        yield {"step": "build_corpus", "artefact": name, "wall_seconds": _wall(study, "build_corpus", name)}
    for name, manifest in sorted(study.generators.items()):
        yield {
            "step": "train_generator",
            "artefact": name,
            "wall_seconds": _wall(study, "train_generator", name),
            "device_seconds": manifest["device_seconds"],
            "tokens": manifest["train_tokens"],
            "flops": manifest["train_flops"],
        }
    for name, each in sorted(study.synthetic.items()):
        yield {
            "step": "rephrase_corpus",
            "artefact": name,
            "wall_seconds": _wall(study, "rephrase_corpus", name),
            "device_seconds": _generation_seconds(each.manifest),
            "tokens": each.manifest["completion_tokens"],
            "flops": _generation_flops(study, each),
        }
    for name, manifest in sorted(study.packed.items()):
        tokens = sum(info["num_tokens"] for info in manifest["sources"].values())
        yield {
            "step": "pack_tokens",
            "artefact": name,
            "wall_seconds": _wall(study, "pack_tokens", name),
            "tokens": tokens,
        }


def _generation_seconds(manifest: dict[str, Any]) -> float | None:
    """Return device seconds at work and starting; None of an engine that does not tell."""
    times = manifest["device_seconds"], manifest["engine_start_seconds"]
    return None if None in times else float(sum(times))


def _generation_flops(study: Study, synthetic: SyntheticSet) -> float | None:
    """Return 2 N FLOP for each token read or written (forward pass); None when the generator's size is not known.

    None also where the engine does not tell which prompt tokens it did not compute.
    """
    generator = study.generators.get(synthetic.generator or "")
    num_params = (
        generator["num_params_total"]
        if generator is not None
        else shipped_num_params(synthetic.manifest["recipe"]["engine"]["model"])
    )
    cached = synthetic.manifest["cached_prompt_tokens"]
    if num_params is None or cached is None:
        return None
    tokens = synthetic.manifest["prompt_tokens"] - cached
    return float(2 * num_params * (tokens + synthetic.manifest["completion_tokens"]))


def _training_costs(study: Study) -> Iterator[dict[str, Any]]:
    planned = [run.record for run in study.runs if run.record is not None]
    yield _records_cost(study, "pretrain_models", study.config.plan, planned)
    charged = {record.run_id for record in planned}
    for name, runs in sorted(study.sweeps.items()):
        yield _records_cost(
            study, "sweep_learning_rates", name, [record for record in runs if record.run_id not in charged]
        )
        charged |= {record.run_id for record in runs}
    for name in sorted({optimum.search for optimum in study.optima}):
        own = {trial.run_id for o in study.optima if o.search == name for trial in o.trials} - charged
        charged |= own
        records = [study.trial_records[run_id] for run_id in sorted(own) if run_id in study.trial_records]
        yield _records_cost(study, "search_mixture", name, records)


def _records_cost(study: Study, step: str, name: str, records: list[RunRecord]) -> dict[str, Any]:
    return {
        "step": step,
        "artefact": name,
        "runs": len(records),
        "wall_seconds": _wall(study, step, name),
        "device_seconds": sum(record.own_device_seconds for record in records),
        "tokens": sum(record.own_tokens for record in records),
        "flops": sum(record.own_train_flops for record in records),
    }


def _evaluation_costs(study: Study) -> Iterator[dict[str, Any]]:
    """Yield what evaluating on held-out text took: a third of the FLOP of training on as many tokens."""
    tokens, flops = 0, 0.0
    swept = {record.run_id: record for runs in study.sweeps.values() for record in runs}
    trained = swept | study.records
    for record in trained.values():
        packed = study.packed.get(record.config.packed)
        if packed is None:
            continue
        seen = len(record.evaluations) * sum(each["num_tokens"] for each in packed["evaluation"].values())
        tokens += seen
        flops += (
            train_flops(record.config.model, packed["vocab_size"], record.config.sequence_length, seen) / 3
        )
    if tokens:
        yield {
            "step": "evaluation",
            "artefact": "",
            "runs": len(trained),
            "tokens": tokens,
            "flops": flops,
        }


def _other_costs(study: Study) -> Iterator[dict[str, Any]]:
    for step, names in (
        ("fit_laws", [study.config.laws]),
        ("recommend_mixture", sorted(study.recommendations)),
    ):
        for name in names:
            yield {"step": step, "artefact": name, "wall_seconds": _wall(study, step, name)}
