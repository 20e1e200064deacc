"""The sections of the report after the answer, in reading order: what is said, shown and listed in each.

A section whose input is not there keeps one line that names the job to run; it never shows an empty chart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tune.claim_data import ClaimData
from tune.report import data_tables as data
from tune.report import tables
from tune.report.claims import claim_data, claims_table
from tune.report.derived import share_marks, speed_ups, words_points
from tune.report.figures import draw_best_shares, draw_domain_heat_map, draw_laws, draw_loss_by_share
from tune.report.figures_scale import draw_share_map, draw_speed_ups, draw_words
from tune.report.figures_training import draw_training
from tune.report.format import percent
from tune.report.inputs import Study
from tune.report.panels import (
    all_shares,
    cell_panels,
    domain_heat_map,
    law_panels,
    synthetic_sources,
    training_panels,
)
from tune.report.provenance import provenance_tables
from tune.report.section import Section
from tune.report.sections_trust import trust, what_if
from tune.report.style import share_looks, source_looks


def build_sections(study: Study) -> tuple[Section, ...]:
    """Return all sections in reading order."""
    return tuple(_sections(study))


def _sections(study: Study) -> Iterator[Section]:
    yield what_if(study)
    yield _loss_by_share(study)
    yield _law(study, on_tokens=True)
    yield _law(study, on_tokens=False)
    yield _fits(study)
    yield trust(study)
    yield _best_share(study)
    yield _equal_loss(study)
    data = claim_data(study)
    yield _claims(data)
    yield _domains(study)
    yield _words(study, data.divergences)
    yield _training(study)
    yield _corpora(study)
    yield _synthetic(study)
    yield _packed(study)
    yield _cost(study)
    yield _failures(study)
    yield Section(
        "runs",
        "All runs",
        "Every run of the plan and of the searches; figures and tables above refer to the first digits of these ids.",
        tables=(tables.runs_table(study),),
        folded=True,
    )
    yield _provenance(study)


# --- results ---------------------------------------------------------------------------------------------------


def _loss_by_share(study: Study) -> Section:
    name, title = "loss-by-share", "Loss against share"
    panels = cell_panels(study)
    if not panels:
        return Section(name, title, "", absent=_no_runs(study, "two shares in one cell"))
    looks = source_looks(synthetic_sources(study))
    lead = (
        "Held-out loss at the end of training, one panel per model size N and budget D. Filled markers are runs of the "
        f"plan “{study.config.plan}”, open ones trials of a search. A solid line with a band is the smooth fit of a "
        "searched cell, the star its minimum, the thick bar the interval of the best share; dotted lines only join "
        "means. Lower is better."
    )
    return Section(name, title, lead, drawings=tuple(draw_loss_by_share(panel, looks) for panel in panels))


def _law(study: Study, on_tokens: bool) -> Section:
    name, title = (
        ("data-law", "Loss against data, L(D)") if on_tokens else ("model-law", "Loss against size, L(N)")
    )
    panels = law_panels(study, on_tokens)
    if not panels:
        varied, law = ("budgets at one size", "data") if on_tokens else ("sizes at one budget", "model")
        line = f"No {law} law was fitted: pretrain_models needs three or more {varied}, then run fit_laws."
        return Section(name, title, "", absent=line)
    looks = share_looks([*all_shares(study), *(series.share for panel in panels for series in panel.series)])
    axis = "budget at a fixed size" if on_tokens else "size at a fixed budget"
    lead = (
        f"Held-out loss against {axis}. Markers are runs; lines are the laws of the fit “{study.config.laws}”, drawn to twice "
        f"the largest value measured; bands are {percent(study.laws.file.fits[0].confidence)} intervals of the curve. A ring is "
        "what a second fit, made without the largest scale, predicted there: the closer to its marker, the better."
    )
    return Section(name, title, lead, drawings=tuple(draw_laws(panel, looks) for panel in panels))


def _fits(study: Study) -> Section:
    lead = (
        f"Fit “{study.config.laws}”, hash {study.laws.file.hash}. “Starts that reach it” is the part of all starting points "
        "that end at the optimum, estimated on a sample taken evenly from the grid and carried to the end whatever became of "
        "it; “hold-out error” the mean absolute relative error at the largest scale, predicted from the smaller ones. "
        "fits.csv has every field."
    )
    return Section(
        "fits",
        "The fitted laws",
        lead,
        tables=tuple(tables.fit_tables(study)),
        notes=study.laws.file.warnings,
    )


def _best_share(study: Study) -> Section:
    marks = share_marks(study)
    if not marks:
        line = "No search is part of this report and no cell of the plan has enough shares: run search_mixture and name it in searches."
        return Section("best-share", "Best share per cell", "", absent=line)
    looks = source_looks(synthetic_sources(study))
    lead = (
        "The best share is the minimum of a smooth fit through noisy losses, so it comes with an interval. The map shows it "
        "over model size and budget, searched cells as well as cells of the plan with enough shares for a curve."
    )
    drawings = [draw_best_shares(study.optima, looks)] if study.optima else []
    drawings += [
        draw_share_map(source, [mark for mark in marks if mark.source == source])
        for source in sorted({mark.source for mark in marks})
    ]
    found = (tables.optima_table(study),) if study.optima else ()
    return Section("best-share", "Best share per cell", lead, drawings=tuple(drawings), tables=found)


def _equal_loss(study: Study) -> Section:
    curves = speed_ups(study)
    if not study.recommendations and not curves:
        line = (
            "No recommendation is part of this report: run recommend_mixture and name it in recommendations."
        )
        return Section("equal-loss", "Tokens to equal loss", "", absent=line)
    lead = (
        "How many times fewer tokens each mixture needs for the loss that natural text alone reaches: along the data laws in the "
        "figures, at the target in the table. Above 1 it needs fewer; generation is not counted here but in the verdict "
        "above. A mixture that is not in the table does not reach that loss with any number of tokens."
    )
    looks = share_looks([*all_shares(study), *(curve.share for curve in curves)])
    sources = sorted({curve.source for curve in curves})
    drawings = tuple(
        draw_speed_ups(source, [c for c in curves if c.source == source], looks) for source in sources
    )
    return Section(
        "equal-loss",
        "Tokens to equal loss",
        lead,
        drawings=drawings,
        tables=tuple(tables.equal_loss_tables(study)),
    )


def _claims(data: ClaimData) -> Section:
    lead = (
        "What Kang et al. 2025 (arXiv 2510.01631) found, tested on these runs. Supported: the whole interval lies where the "
        "claim says; not supported: the whole interval lies elsewhere; anything else these runs cannot decide. The paper's "
        "models are thousands of times larger than a demo's: agreement here says little about it, and disagreement no more."
    )
    return Section("claims", "The paper's claims on these runs", lead, tables=(claims_table(data),))


def _domains(study: Study) -> Section:
    heat = domain_heat_map(study)
    if heat is None:
        line = _no_runs(study, "two mixtures in one cell")
        return Section("domains", "Domain by domain", "", absent=line)
    lead = (
        "Held-out bits per byte of each domain at the largest cell the mixtures share. Colour compares with natural text "
        "alone in the same row: blue is better, orange worse, the stronger the larger the difference."
    )
    return Section("domains", "Domain by domain", lead, drawings=(draw_domain_heat_map(heat),))


def _words(study: Study, divergences: Mapping[str, float]) -> Section:
    cell, points = words_points(study, dict(divergences))
    if not points:
        line = "Fewer than three mixtures have a loss in one cell, or their packed tokens are not under this root any more."
        return Section("words", "Words against loss", "", absent=line)
    lead = (
        "How far the words of each mixture are from those of the held-out text, against its loss there: KL divergence of token "
        "frequencies. If coverage of words decided the loss, the markers would rise from left to right."
    )
    drawing = draw_words(cell, points, source_looks(synthetic_sources(study)))
    return Section("words", "Words against loss", lead, drawings=(drawing,))


def _training(study: Study) -> Section:
    panels = training_panels(study)
    if not panels:
        line = "No run of the plan has metrics: pretrain_models writes them as runs/<run_id>/metrics.jsonl."
        return Section("training", "Training curves", "", absent=line)
    looks = share_looks(all_shares(study))
    lead = (
        "Training loss along each run (lines, on its own mixture, so the levels of different shares do not compare) and "
        "held-out loss (markers, on the same text for all, so they do)."
    )
    return Section(
        "training", "Training curves", lead, drawings=tuple(draw_training(panel, looks) for panel in panels)
    )


# --- data, cost, provenance ------------------------------------------------------------------------------------


def _corpora(study: Study) -> Section:
    if not study.corpora:
        line = "No corpus is part of this report: run build_corpus and name it in corpora."
        return Section("corpora", "Corpora", "", absent=line)
    lead = "Documents and characters by domain, and what was dropped on the way in. Held-out text is never trained on."
    return Section("corpora", "Corpora", lead, tables=tuple(data.corpus_tables(study)))


def _synthetic(study: Study) -> Section:
    if not study.synthetic:
        line = "No synthetic set is part of this report: run rephrase_corpus and name it in synthetic."
        return Section("synthetic", "Synthetic text", "", absent=line)
    lead = (
        "Every row asked of the generator was kept, rejected or quarantined, with a reason. The examples are the first "
        "rows by their hash, not the best."
    )
    examples = tuple(example for each in study.synthetic.values() for example in each.examples)
    cards = tuple(
        f"Data card of {name}, with histograms, verdicts and more examples: synthetic/{name}/card.html under the study's root."
        for name in sorted(study.synthetic)
    )
    return Section(
        "synthetic",
        "Synthetic text",
        lead,
        tables=tuple(data.synthetic_tables(study)),
        examples=examples,
        notes=cards,
    )


def _packed(study: Study) -> Section:
    if not study.packed:
        line = "The packed set of these runs is not under this root: pack_tokens makes it."
        return Section("packed", "Training tokens", "", absent=line)
    lead = (
        "What the runs drew from each source. Repeated tokens are tokens a run had seen before; a share that needs "
        "repeats is not compared on equal terms with one that does not."
    )
    return Section("packed", "Training tokens", lead, tables=tuple(data.packed_tables(study)))


def _cost(study: Study) -> Section:
    lead = (
        "What finding out took. Device seconds are wall seconds times workers and leave start-up out; wall seconds of a "
        "step, where the study's log has them, include everything."
    )
    return Section("cost", "Cost of this study", lead, tables=(data.cost_table(study),))


def _failures(study: Study) -> Section:
    table = tables.failures_table(study)
    if not table.rows:
        return Section("failures", "Failed and diverged runs", "", absent="None: every run has a result.")
    lead = "These runs have no loss and are in no fit, no search and no figure."
    return Section("failures", "Failed and diverged runs", lead, tables=(table,))


def _provenance(study: Study) -> Section:
    lead = "Artefacts with the hash that identifies each, and what made them. "
    if study.study_file is None:
        lead += (
            "The commands below, run in this order with the same configuration files, make everything again."
        )
        return Section("provenance", "Provenance", lead, tables=tuple(provenance_tables(study)))
    lead += (
        "The study file has every value the study ran with, defaults and flags included: saved as my.toml, "
        "“python -m rayjobs.run_study --config my.toml --root ROOT” makes everything again."
    )
    return Section(
        "provenance",
        "Provenance",
        lead,
        tables=tuple(provenance_tables(study)),
        files=(("study.toml", study.study_file),),
    )


def _no_runs(study: Study, wanted: str) -> str:
    return f"The plan “{study.config.plan}” has no {wanted} with a result yet: pretrain_models trains them."
