"""`write_report` on a study simulated from a known law: what is on the page, that it is whole, that it comes out the same."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from synth.documents import DOCUMENT_SCHEMA, document_id
from synth.errors import UserError
from synth.identity import claim_directory, finish
from synth.rows import REPHRASED_SCHEMA
from synth.storage import study_path, write_json_atomic, write_parquet_atomic, write_text_atomic
from train.config import Axis, PackConfig, PackSource, PretrainConfig, RunConfig, TrainPlacement
from train.flops import count_parameters, train_flops, train_flops_6nd
from train.grid import PlannedRun, claim_plan, finish_plan, mix, plan_runs, run_of
from train.record import DomainLoss, Evaluation, RunRecord, SourceUse, write_record
from train.sizes import model_of
from train.tokens import EvaluationInfo, PackedInfo, ShardInfo, SourceInfo
from tune.config import LawsConfig, ReportConfig
from tune.fitting import fit_laws
from tune.laws import load_fit
from tune.optimum import fit_curve
from tune.report.artefact import plan_report, write_report
from tune.report.inputs import read_study
from tune.report.page import render
from tune.report.panels import training_panels
from tune.results import CellOptimum, EqualLoss, Interval, Recommendation, TrialResult

PROVENANCE = {
    "commit": "0123456789ab",
    "argv": ["/somewhere/rayjobs/run_study.py", "--config", "demo.toml"],
    "created_at": "2026-01-02T03:04:05+00:00",
    "python": "3.11.9",
    "machine": "Linux x86_64",
    "packages": {"torch": "2.13.0", "ray": "2.60.0"},
}
DOMAINS = {"numpy": 0.85, "scipy": 0.95, "stdlib": 1.05, "transformers": 1.2}
VALLEY = {"hq": 0.35, "qa": 0.5}
"""Where the simulated loss is lowest, share by source."""
NASTY = "</pre><script>alert(1)</script> {{ 7 * 7 }} <img src=http://example.org/x> |pipe| `tick`\u202e"


# --- a study simulated from a known law ------------------------------------------------------------------------


def true_loss(num_params: float, train_tokens: float, synthetic: str | None, share: float) -> float:
    """Chinchilla with a valley in the share that deepens with D."""
    valley = VALLEY.get(synthetic or "", 0.0)
    helped = 0.35 * (valley**2 - (share - valley) ** 2) if synthetic else 0.0
    return 1.6 + 14 * num_params**-0.22 + 58 * train_tokens**-0.27 * (1 - helped)


def simulated_loss(run: RunConfig, num_params: int, train_tokens: int, noise: float = 0.006) -> float:
    synthetic = next((name for name in run.mixture if name != "natural"), None)
    share = run.mixture.get(synthetic, 0.0) if synthetic else 0.0
    draw = np.random.default_rng(int(run.run_id, 16)).standard_normal()
    return true_loss(num_params, train_tokens, synthetic, share) * (1 + noise * draw / 2)


def evaluation_of(loss: float, train_tokens: int) -> Evaluation:
    domains = {
        name: DomainLoss(
            loss_nats_per_token=loss * factor,
            bits_per_byte=loss * factor / math.log(2) / 3.1,
            tokens=4096,
            bytes=12698,
        )
        for name, factor in DOMAINS.items()
    }
    mean = float(np.mean([each.loss_nats_per_token for each in domains.values()]))
    bits = float(np.mean([each.bits_per_byte for each in domains.values()]))
    return Evaluation(
        train_tokens=train_tokens,
        domains=domains,
        loss_nats_per_token=mean,
        macro_loss_nats_per_token=mean,
        bits_per_byte=bits,
    )


def record_of(run: RunConfig, status: str = "complete", reason: str | None = None) -> RunRecord:
    parameters = count_parameters(run.model, 2048)
    tokens = run.num_steps * run.tokens_per_step
    loss = simulated_loss(run, parameters.non_embedding, tokens)
    evaluation = evaluation_of(loss, tokens)
    complete = status == "complete"
    in_source = {"natural": 3_000_000, "hq": 900_000, "qa": 1_400_000}
    sources = {
        name: SourceUse(
            tokens=(used := round(share * tokens)),
            unique_tokens=min(used, in_source[name]),
            repeated_tokens=max(0, used - in_source[name]),
            epochs=used / in_source[name],
        )
        for name, share in run.mixture.items()
    }
    speed = 3e9 / parameters.non_embedding
    return RunRecord(
        run_id=run.run_id, config=run, status=status, reason=reason,
        num_params_non_embedding=parameters.non_embedding, num_params_total=parameters.total, train_tokens=tokens,
        train_flops_6nd=train_flops_6nd(parameters.non_embedding, tokens),
        train_flops=train_flops(run.model, 2048, run.sequence_length, tokens), sources=sources,
        final=evaluation if complete else None, evaluations=(evaluation,) if complete else (), peak_learning_rate=3e-3,
        wall_seconds=tokens / speed, device_seconds=tokens / speed, tokens_per_second=speed,
        placement=TrainPlacement(), provenance=PROVENANCE,
    )  # fmt: skip


def write_run(root: str, record: RunRecord) -> None:
    write_record(root, record)
    tokens = record.config.tokens_per_step
    steps = np.unique(np.linspace(1, record.config.num_steps, 40, dtype=int))
    random = np.random.default_rng(int(record.run_id, 16))
    end = simulated_loss(record.config, record.num_params_non_embedding, record.train_tokens)
    lines = [
        {
            "step": int(step), "train_tokens": int(step) * tokens,
            "loss_nats_per_token": end * (record.config.num_steps / step) ** 0.12 + 0.04 * random.standard_normal(),
            "learning_rate": 3e-3, "gradient_norm": 1.0, "tokens_per_second": 9000.0, "wall_seconds": float(step),
        }
        for step in steps
    ]  # fmt: skip
    path = study_path(root, "runs", record.run_id, "metrics.jsonl")
    write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_packed(root: str) -> PackedInfo:
    shard = ShardInfo(num_tokens=1, sha256="0" * 64)

    def source(tokens: int, documents: int) -> SourceInfo:
        return SourceInfo(
            num_rows=tokens // 256, num_tokens=tokens, num_documents=documents, num_bytes=round(3.1 * tokens),
            num_dropped_tokens=3, num_altered_documents=0, shards=(shard,),
        )  # fmt: skip

    directory = study_path(root, "packed", "packed")
    sources = {
        "natural": PackSource(corpus="natural"),
        "hq": PackSource(synthetic="rephrased", recipe="hq"),
        "qa": PackSource(synthetic="rephrased", recipe="qa"),
    }
    recipe = PackConfig(root=root, sources=sources, evaluate_on=("natural",)).identity()
    identity = claim_directory(directory, "packed", recipe, {})
    info = PackedInfo(
        hash=identity, sequence_length=256, vocab_size=2048, eot_id=0, tokenizer_hash="t" * 16,
        sources={"natural": source(3_000_000, 9_000), "hq": source(900_000, 8_200), "qa": source(1_400_000, 7_900)},
        evaluation={name: EvaluationInfo(num_rows=16, num_tokens=4096, num_bytes=12698, num_documents=40) for name in DOMAINS},
        evaluation_shard=shard, domains_left_out={"tiny": "12 tokens of held-out text, one row takes 257"},
    )  # fmt: skip
    finish(directory, identity, **info.model_dump(mode="json", exclude={"hash"}))
    return info


def write_corpus(root: str) -> list[str]:
    """Write `corpora/natural`; return the texts of its first part."""
    texts = sorted(
        [
            f"The function number {i} returns the sum of its arguments, element by element. {NASTY if i == 0 else ''}"
            for i in range(12)
        ],
        key=document_id,
    )
    directory = study_path(root, "corpora", "natural")
    identity = claim_directory(directory, "corpus", {"sources": []}, {})
    columns = [[document_id(text) for text in texts], texts, ["numpy"] * len(texts), ["test"] * len(texts)]
    write_parquet_atomic(
        directory / "train" / "part-00000-of-00001.parquet", pa.table(columns, schema=DOCUMENT_SCHEMA)
    )
    domains = {
        name: {"documents": 2_000 + 10 * i, "characters": 1_500_000, "bytes": 1_600_000}
        for i, name in enumerate(DOMAINS)
    }
    held = {name: {"documents": 100, "characters": 75_000, "bytes": 80_000} for name in DOMAINS}

    def split(by_domain: dict[str, dict[str, int]]) -> dict[str, object]:
        totals = {
            key: sum(counts[key] for counts in by_domain.values())
            for key in ("documents", "characters", "bytes")
        }
        return {"parts": 1, **totals, "domains": by_domain}

    splits = {"train": split(domains), "held_out": split(held)}
    dropped = {"duplicate": 431, "too_short": 1_204}
    finish(
        directory,
        identity,
        rows_read=10_095,
        documents_kept=8_460,
        dropped=dropped,
        splits=splits,
        sources=[],
    )
    return texts


def write_synthetic(root: str, texts: list[str]) -> None:
    rows = [
        {
            "doc_id": document_id(text), "domain": "numpy", "source": "test", "chunk": 0, "chunk_start": 0, "chunk_end": len(text),
            "recipe": recipe, "sample": 0, "text": f"{recipe}: {text}" if i % 3 else "", "keep": bool(i % 3),
            "verdict": "kept" if i % 3 else "rejected", "reject_reasons": [] if i % 3 else ["too_short"],
            "finish_reason": "stop", "prompt_tokens": 50, "completion_tokens": 30, "input_truncated_tokens": 0,
            "seed": (i * 7919 + len(recipe)) % 1000, "recipe_hash": "r", "sampling_hash": "s", "model": "root:generators/tiny",
            "model_hash": "m", "engine_version": "vllm 0.29.0",
        }
        for recipe in ("hq", "qa")
        for i, text in enumerate(texts)
    ]  # fmt: skip
    directory = study_path(root, "synthetic", "rephrased")
    recipe = {"corpus": "natural", "engine": {"model": "root:generators/tiny"}}
    identity = claim_directory(directory, "synthetic", recipe, {})
    table = pa.Table.from_pylist(rows, schema=REPHRASED_SCHEMA)
    write_parquet_atomic(directory / "part-00000-of-00001.parquet", table)

    def tally(kept: int, rejected: int, quarantined: int) -> dict[str, object]:
        return {
            "rows": kept + rejected + quarantined, "kept": kept, "rejected": rejected, "quarantined": quarantined,
            "reasons": {"too_short": rejected, "engine_death": quarantined}, "completion_tokens": 130 * (kept + rejected),
            "accepted_tokens": 130 * kept, "prompt_tokens": 190 * (kept + rejected), "cached_prompt_tokens": 0, "source_characters": 5_000_000, "kept_characters": 4_100_000,
        }  # fmt: skip

    total = tally(16_100, 803, 1)
    recipes = {"hq": tally(8_200, 252, 1), "qa": tally(7_900, 551, 0)}
    finish(
        directory, identity, parts=1, documents=8_460, recipes=recipes, **total, device_seconds=512.5, engine_start_seconds=41.0,
        accepted_tokens_per_device_second=2_093_000 / 512.5, engine_versions=["vllm 0.29.0"], prompt_formats=["plain"],
        engine_deaths=1, retries=2,
    )  # fmt: skip


SMALL = {
    "shares": (0.0, 1 / 3),
    "axes": (
        Axis(models=("98k",), train_tokens=(131_072, 262_144, 524_288, 1_048_576)),
        Axis(models=("12k", "25k", "49k"), train_tokens=(524_288,)),
    ),
}
"""What the tests train; a larger grid makes a page worth looking at."""
SEARCHED = (("25k", 524_288), ("98k", 1_048_576))
ENDINGS = {
    ("12k", "qa", 1 / 3): ("diverged", "loss is not finite at step 37"),
    ("49k", "qa", 1 / 3): ("failed", "worker died twice at 131,072 tokens: <out of memory>"),
}
"""Runs without a result."""


def write_generator(root: str) -> None:
    directory = study_path(root, "generators", "tiny")
    identity = claim_directory(directory, "generator", {"model": "780k"}, {})
    finish(directory, identity, num_params_total=1_000_000, num_params_non_embedding=780_000, train_tokens=1_000_000,
           train_flops=6.5e12, device_seconds=80.0)  # fmt: skip


def pretrain_config(root: str, grid: dict[str, Any]) -> PretrainConfig:
    return PretrainConfig(root=root, synthetic=("hq", "qa"), **grid)


def write_plan(config: PretrainConfig, packed: PackedInfo) -> list[PlannedRun]:
    """Train the grid by formula; one run diverges, one fails."""
    planned = list(plan_runs(config, packed))
    identity = claim_plan(config, packed, planned)
    records = []
    for each in planned:
        record = record_of(
            each.run, *ENDINGS.get((each.model, each.synthetic, each.share), ("complete", None))
        )
        write_run(config.root, record)
        records.append(record)
    finish_plan(config, identity, records)
    return planned


def write_search(config: PretrainConfig, packed: PackedInfo, synthetic: str) -> None:
    root = config.root
    name = f"search-{synthetic}"
    directory = study_path(root, "searches", name)
    identity = claim_directory(directory, "search", {"synthetic": synthetic}, {})
    for model, tokens in SEARCHED:
        shape = model_of(model)
        runs = {
            share: run_of(
                config.run,
                "packed",
                packed,
                shape,
                tokens,
                mix("natural", synthetic, share),
                0,
                root=config.root,
            )
            for share in (0.0, 0.2, 1 / 3, 0.5, 2 / 3, 1.0)
        }
        records = {share: record_of(run) for share, run in runs.items()}
        for record in records.values():
            if not study_path(root, "runs", record.run_id, "record.json").exists():
                write_run(root, record)
        losses = {
            share: record.final.loss_nats_per_token for share, record in records.items() if record.final
        }
        curve = fit_curve(list(losses), list(losses.values()))
        optimum = CellOptimum(
            search=name, natural="natural", synthetic=synthetic, model=model, train_tokens=tokens,
            num_params=count_parameters(shape, packed.vocab_size).non_embedding,
            trials=tuple(
                TrialResult(share=share, run_id=runs[share].run_id, status="complete", loss_nats_per_token=losses[share])
                for share in runs
            ),
            best_share=curve.best_share(), best_loss=curve.best_loss(), natural_only_loss=losses[0.0], curve=curve.band(),
            noise_nats=curve.noise_nats(), method="Gaussian process over the share", warnings=("flat optimum",),
        )  # fmt: skip
        write_json_atomic(directory / f"{model}-{tokens}" / "best.json", optimum.model_dump(mode="json"))
    finish(directory, identity, cells=[f"{model}-{tokens}" for model, tokens in SEARCHED])


def write_recommendation(root: str) -> Recommendation:
    recommendation = Recommendation(
        hash="feedfacecafebeef", target_num_params=1_000_000, target_train_tokens=20_000_000,
        best_share=Interval(value=0.34375, low=0.21875, high=0.46875), best_group="hq 33 %",
        predicted_loss=Interval(value=2.912345678, low=2.85, high=2.97),
        natural_only_loss=Interval(value=2.98765, low=2.93, high=3.04),
        equal_loss=(
            EqualLoss(group="hq 33 %", tokens=Interval(value=1.4e7, low=1.1e7, high=1.9e7), speed_up=Interval(value=1.43, low=1.05, high=1.8)),
            EqualLoss(group="qa 33 %", tokens=Interval(value=1.6e7, low=1.2e7, high=None), speed_up=Interval(value=1.25, low=None, high=1.7)),
        ),
        synthetic_tokens=6_875_000, training_flops=1.3e14, generation_flops=4.1e13, training_device_hours=0.71,
        generation_device_hours=0.45, cost=None, pays="unclear",
        pays_reason="the interval of the saving includes zero once generation is charged",
        evidence=("fit laws", "search search-hq"),
        warnings=("the target has 5 times the parameters and 19 times the tokens of anything measured",), provenance=PROVENANCE,
    )  # fmt: skip
    write_json_atomic(
        study_path(root, "recommendations", "target.json"), recommendation.model_dump(mode="json")
    )
    return recommendation


def simulate_study(root: str, grid: dict[str, Any], bootstrap_samples: int) -> ReportConfig:
    """Write a whole finished study under `root` and return the report's configuration."""
    packed = write_packed(root)
    write_generator(root)
    write_synthetic(root, write_corpus(root))
    config = pretrain_config(root, grid)
    write_plan(config, packed)
    for synthetic in ("hq", "qa"):
        write_search(config, packed, synthetic)
    fit_laws(LawsConfig(root=root, bootstrap_samples=bootstrap_samples))
    write_recommendation(root)
    log = [
        {"step": "build_corpus", "name": "natural", "wall_seconds": 12.5},
        {"step": "fit_laws", "name": "laws", "wall_seconds": 4.0},
    ]
    write_json_atomic(study_path(root, "study.json"), log)
    return ReportConfig(
        root=root,
        searches=("search-hq", "search-qa"),
        recommendations=("target",),
        synthetic=("rephrased",),
        corpora=("natural",),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ReportConfig:
    """A finished study and the configuration of its report."""
    return simulate_study(str(tmp_path_factory.mktemp("study")), SMALL, bootstrap_samples=20)


@pytest.fixture(scope="module")
def report(config: ReportConfig) -> Path:
    """The directory of the report, written."""
    write_report(config)
    return Path(config.root) / config.name


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


class Page(HTMLParser):
    """What the tests ask of a page: its identifiers, attributes, anchors, numbers and text by section."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.identifiers: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.numbers: dict[str, list[float]] = {}
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self._section = "top"
        self.feed(text)
        self.close()
        assert self._open == [], f"elements never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in given.items()]
        if "id" in given:
            self.identifiers.append(given["id"])
        if tag == "section":
            self._section = given["id"]
        if tag == "data":
            self.numbers.setdefault(self._section, []).append(float(given["value"]))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text[self._section] = self.text.get(self._section, "") + data


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    """The page, parsed."""
    return Page((report / "index.html").read_text(encoding="utf-8"))


# --- the page stands alone -------------------------------------------------------------------------------------


def test_page_asks_for_nothing_outside_itself(report: Path, page: Page) -> None:
    loading = {"src", "srcset", "poster", "data", "action", "formaction", "background"}
    asked = [(tag, name, value) for tag, name, value in page.attributes if name in loading]
    links = [
        value
        for _, name, value in page.attributes
        if name in ("href", "xlink:href") and not value.startswith("#")
    ]
    style = re.search(r"<style>(.*?)</style>", (report / "index.html").read_text(encoding="utf-8"), re.DOTALL)
    assert asked == []
    assert links == ["data:,"]  # the empty icon, so that browsers do not ask for one
    assert style is not None
    assert "@import" not in style.group(1)
    assert "url(" not in style.group(1)
    assert not [
        value for _, name, value in page.attributes if name != "value" and re.search(r"https?://", value)
    ]
    assert not [
        tag
        for tag, name, _ in page.attributes
        if tag in ("script", "iframe", "object", "embed") or name.startswith("on")
    ]


def test_identifiers_are_unique_and_every_reference_leads_somewhere(page: Page) -> None:
    twice = [name for name, count in Counter(page.identifiers).items() if count > 1]
    there = set(page.identifiers)
    targets = [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    targets += [found for _, _, value in page.attributes for found in re.findall(r"url\(#([^)]+)\)", value)]
    targets += [value for _, name, value in page.attributes if name == "aria-labelledby"]
    assert twice == []
    assert [target for target in targets if target not in there] == []
    assert len(targets) > 100


def test_sections_come_in_reading_order(page: Page) -> None:
    wanted = ["answer", "loss-by-share", "data-law", "model-law", "fits", "best-share", "equal-loss", "claims", "domains", "training",
              "corpora", "synthetic", "packed", "cost", "failures", "runs", "provenance"]  # fmt: skip
    assert [name for name in page.identifiers if name in wanted] == wanted


def test_every_figure_is_described_and_names_its_runs(report: Path, page: Page) -> None:
    described = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    figures = sorted(path.stem for path in (report / "figures").iterdir())
    assert (
        len(described)
        == len(figures)
        == len([tag for tag, name, _ in page.attributes if (tag, name) == ("svg", "viewbox")])
    )
    assert all(len(text) > 40 for text in described)
    for stem in figures:
        svg = (report / "figures" / f"{stem}.svg").read_text(encoding="utf-8")
        assert re.search(r"<title>[^<]*\b([0-9a-f]{16}|search-\w+|\d+ %)", svg), stem


def test_foreign_text_is_shown_and_not_obeyed(report: Path, page: Page) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    assert NASTY.rstrip("\u202e") in page.text["synthetic"]
    assert "<script" not in text
    assert "<out of memory>" in page.text["failures"]
    assert "\u202e" not in text
    assert "\u202e" not in (report / "report.md").read_text(encoding="utf-8")


# --- the numbers are those of the records ----------------------------------------------------------------------


def test_answer_gives_the_recommendation(config: ReportConfig, page: Page) -> None:
    stored = Recommendation.model_validate_json(
        (Path(config.root) / "recommendations/target.json").read_text()
    )
    shown = page.numbers["answer"]
    for interval in (
        stored.best_share,
        stored.predicted_loss,
        stored.natural_only_loss,
        stored.equal_loss[0].speed_up,
    ):
        assert {interval.value, interval.low, interval.high} <= set(shown)
    for number in (
        stored.synthetic_tokens,
        stored.training_flops,
        stored.generation_flops,
        stored.target_train_tokens,
    ):
        assert number in shown
    answer = page.text["answer"]
    assert "Unclear" in answer
    assert stored.pays_reason in answer
    assert stored.warnings[0] in answer
    assert "demonstration on tiny models" in answer


def test_fits_and_optima_are_those_on_disk(config: ReportConfig, report: Path, page: Page) -> None:
    rows = read_csv(report / "fits.csv")
    for fitted, row in zip(load_fit(config.root), rows, strict=True):
        assert (row["law"], row["group"]) == (fitted.record.law, fitted.record.group)
        for name, value in fitted.parameters.items():
            assert float(row[name]) == value
            assert value in page.numbers["fits"]
    for path in Path(config.root).glob("searches/*/*/best.json"):
        optimum = CellOptimum.model_validate_json(path.read_text())
        assert {optimum.best_share.value, optimum.best_share.low, optimum.best_share.high} <= set(
            page.numbers["best-share"]
        )


def test_runs_csv_has_every_run_with_its_own_numbers(config: ReportConfig, report: Path) -> None:
    rows = {row["run_id"]: row for row in read_csv(report / "runs.csv")}
    records = [
        RunRecord.model_validate_json(path.read_text())
        for path in Path(config.root).glob("runs/*/record.json")
    ]
    assert sorted(rows) == sorted(record.run_id for record in records)
    for record in records:
        row = rows[record.run_id]
        assert row["status"] == record.status
        assert int(row["train_tokens"]) == record.train_tokens
        assert (float(row["loss_nats_per_token"]) if row["loss_nats_per_token"] else None) == (
            record.final.loss_nats_per_token if record.final else None
        )
    evaluated = read_csv(report / "evaluations.csv")
    assert len(evaluated) == sum(len(e.domains) for record in records for e in record.evaluations)


def test_runs_without_a_result_are_listed_with_their_reason(page: Page) -> None:
    for status, reason in ENDINGS.values():
        assert status in page.text["failures"]
        assert reason in page.text["failures"]
    assert "no model law for 'qa 33 %'" in page.text["fits"]


def test_cost_counts_a_run_of_plan_and_search_once(config: ReportConfig, page: Page) -> None:
    records = [
        RunRecord.model_validate_json(path.read_text())
        for path in Path(config.root).glob("runs/*/record.json")
    ]
    shown = page.numbers["cost"]
    trained = sum(record.train_flops for record in records) + 6.5e12
    generated = 2 * 1_000_000 * (190 + 130) * 16_903  # parameters x tokens of a row x rows with an answer
    assert any(math.isclose(number, trained + generated, rel_tol=1e-12) for number in shown)
    assert generated in shown
    assert "12.5 s" in page.text["cost"]  # build_corpus, from the study's log


def test_data_sections_count_what_was_dropped_and_repeated(page: Page) -> None:
    assert "1,204 too short, 431 duplicate" in page.text["corpora"]
    assert {8_200, 252, 1} <= set(page.numbers["synthetic"])
    assert "root:generators/tiny" in page.text["synthetic"]
    repeated = 1_048_576 - 900_000  # the search's run on hq alone
    assert repeated in page.numbers["packed"]
    assert "rayjobs.run_study --config demo.toml" in page.text["provenance"]
    assert "/somewhere" not in page.text["provenance"]


def test_markdown_says_the_same_and_its_figures_are_there(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert sorted(linked) == sorted(f"figures/{path.name}" for path in (report / "figures").iterdir())
    assert "make 34 % [22 %, 47 %] of the tokens synthetic" in text
    scripts = [line for line in text.splitlines() if "<script" in line]
    assert scripts
    assert all(line.startswith("    ") for line in scripts)  # code, which Markdown shows as it is


def test_a_source_of_searches_alone_has_no_training_panel(config: ReportConfig) -> None:
    study = read_study(config)
    names = [panel.name for panel in training_panels(study)]
    assert "training-qa-98k" in names
    without = dataclasses.replace(study, runs=tuple(run for run in study.runs if run.synthetic != "qa"))
    assert [panel.name for panel in training_panels(without)] == [name for name in names if "qa" not in name]


def test_an_answer_that_is_no_answer_says_so(config: ReportConfig) -> None:
    study = read_study(config)
    unsure = study.recommendations["target"].model_copy(
        update={"best_share": Interval(value=0.2, low=0.0, high=0.5)}
    )
    warned = unsure.model_copy(update={"warnings": tuple(f"doubt {number}" for number in range(9))})
    empty = dataclasses.replace(
        study, runs=(), trial_records={}, optima=(), recommendations={"target": warned}
    )
    files = render(empty)
    answer = Page(files["index.html"]).text["answer"]
    for text in (answer, files["report.md"]):
        assert "The interval reaches 0 %" in text
        assert "No run of this study has a result" in text
        assert all(f"doubt {number}" in text for number in range(9))
    assert "3 more" in answer


# --- written again ---------------------------------------------------------------------------------------------


def test_same_study_gives_the_same_bytes(config: ReportConfig, report: Path) -> None:
    again = config.model_copy(update={"name": "again"})
    write_report(again)
    for path in sorted(report.rglob("*")):
        if path.is_file() and path.name not in ("manifest.json", "recipe.json"):
            assert (
                path.read_bytes() == (Path(config.root) / "again" / path.relative_to(report)).read_bytes()
            ), path.name


def test_finished_report_is_left_alone_until_something_changes(config: ReportConfig, report: Path) -> None:
    assert plan_report(config).finished
    before = (report / "index.html").stat().st_mtime_ns
    write_report(config)
    assert (report / "index.html").stat().st_mtime_ns == before
    assert not plan_report(config.model_copy(update={"title": "Another title"})).finished


# --- what is missing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "job"),
    [
        ({"plan": "nowhere"}, "pretrain_models"),
        ({"laws": "nowhere"}, "fit_laws"),
        ({"searches": ("nowhere",)}, "search_mixture"),
        ({"recommendations": ("nowhere",)}, "recommend_mixture"),
        ({"synthetic": ("nowhere",)}, "rephrase_corpus"),
        ({"corpora": ("nowhere",)}, "build_corpus"),
    ],
)
def test_something_named_and_missing_is_one_sentence(
    config: ReportConfig, changed: dict[str, Any], job: str
) -> None:
    with pytest.raises(UserError, match=rf"nowhere.*run {job} first"):
        plan_report(config.model_copy(update=changed))


def test_a_directory_that_is_no_report_is_left_alone(config: ReportConfig) -> None:
    with pytest.raises(UserError, match="no report"):
        write_report(config.model_copy(update={"name": "corpora"}))


def test_sections_without_input_say_which_job_makes_it(config: ReportConfig) -> None:
    bare = ReportConfig(root=config.root, name="bare")
    write_report(bare)
    page = Page((Path(config.root) / "bare" / "index.html").read_text(encoding="utf-8"))
    for section, job in (("answer", "recommend_mixture"), ("best-share", "search_mixture"), ("equal-loss", "recommend_mixture"),
                         ("corpora", "build_corpus"), ("synthetic", "rephrase_corpus")):  # fmt: skip
        assert f"run {job}" in page.text[section]
        assert section not in page.numbers or section == "answer"
