"""`fit_laws` on a study's records and on tables: what is fitted, written, refused and resumed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rayjobs.fit_laws import main
from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from synth.storage import study_path, write_json_atomic
from train.placement import TrainPlacement
from train.record import DomainLoss, Evaluation, RunRecord, read_record, write_record
from train.run import ModelConfig, RunConfig
from tune.config import LawsConfig
from tune.fitting import fit_laws, plan_laws
from tune.laws import load_directory, load_fit

SIZES = {"25k": 25_000, "98k": 98_000, "197k": 197_000, "330k": 330_000}
TOKENS = (200_000, 400_000, 800_000, 1_600_000, 3_200_000)
MIXTURES = ((None, 0.0), ("hq", 1 / 3), ("hq", 1.0))


def write_run(root, size, train_tokens, synthetic, share, status="complete"):
    """Write the record of one run whose loss follows a chinchilla law with 0.1 % noise; return its plan entry."""
    mixture = {"natural": 1.0} if synthetic is None else {"natural": 1.0 - share, synthetic: share}
    model = ModelConfig(
        num_layers=1,
        hidden_size=8 * (1 + list(SIZES).index(size)),
        num_heads=1,
        num_kv_heads=1,
        intermediate_size=8,
    )
    run = RunConfig(
        packed="packed",
        packed_hash="0" * 16,
        model=model,
        mixture=mixture,
        train_tokens=train_tokens,
        sequence_length=64,
    )
    noise = 1e-3 * np.random.default_rng(int(run.run_id[:8], 16)).normal()
    loss = (40 * SIZES[size] ** -0.3 + 90 * train_tokens**-0.32 + 2.5 - 0.1 * share) * np.exp(noise)
    domain = DomainLoss(loss_nats_per_token=loss, bits_per_byte=1.0, tokens=10, bytes=40)
    final = Evaluation(train_tokens=train_tokens, domains={"web": domain}, loss_nats_per_token=loss,
                       macro_loss_nats_per_token=loss, bits_per_byte=1.0)  # fmt: skip
    record = RunRecord(
        run_id=run.run_id, config=run, status=status, reason=None if status == "complete" else "loss is not finite at step 3",
        num_params_non_embedding=SIZES[size], num_params_total=2 * SIZES[size], train_tokens=train_tokens,
        train_flops_6nd=6.0 * SIZES[size] * train_tokens, train_flops=7.0 * SIZES[size] * train_tokens, sources={},
        final=final if status == "complete" else None, peak_learning_rate=1e-3, wall_seconds=1.0, device_seconds=1.0,
        tokens_per_second=1.0, placement=TrainPlacement(), provenance={},
    )  # fmt: skip
    write_record(root, record)
    return {"run_id": run.run_id, "model": size, "synthetic": synthetic, "share": share, "seed": 0}


def write_study(root, diverged=None):
    """Write the paper's two axes: every budget at 98k, every size at 1.6 M tokens, for each mixture."""
    cells = [("98k", tokens) for tokens in TOKENS] + [(size, 1_600_000) for size in SIZES if size != "98k"]
    entries = [
        write_run(
            root,
            size,
            tokens,
            synthetic,
            share,
            "diverged" if (size, tokens, share) == diverged else "complete",
        )
        for synthetic, share in MIXTURES
        for size, tokens in cells
    ]
    write_json_atomic(study_path(root, "plans", "grid", "plan.json"), {"runs": entries})
    return entries


def settings(root, **changes):
    return LawsConfig(root=str(root), **{"bootstrap_samples": 40, "objective": "mse_log", **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("study"))
    return root, write_study(root), fit_laws(settings(root))


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["N,D,loss,mix"]
    for mix in "ab":
        lines += [
            f"{n},{d},{(40 * n**-0.3 + 90 * d**-0.32 + 2.5) * np.exp(0.001 * rng.normal())},{mix}"
            for n in (1e5, 2e5, 4e5)
            for d in (1e6, 2e6, 4e6)
        ]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def flags(table, *more):
    return ["--runs", str(table), "--columns.num_params", "N", "--columns.train_tokens", "D", "--bootstrap_samples", "30",
            "--no-hold_out_largest", "--out", str(table.parent / "out"), *more]  # fmt: skip


# --- a study ---------------------------------------------------------------------------------------------------


def test_a_study_gives_both_axes_and_the_joint_law_for_every_mixture(study):
    _, _, file = study
    assert [(fit.law, fit.group) for fit in file.fits] == [
        *(
            (law, group)
            for law in ("data", "model", file.fits[6].law)
            for group in ("natural", "hq 33 %", "hq 100 %")
        ),
        (file.fits[-1].law, "hq"),
    ]
    for fit, laws in (
        (file.fits[6], {"chinchilla", "chinchilla_tied"}),
        (file.fits[-1], {"ratio_floor", "ratio_data", "ratio_full"}),
    ):
        assert {score.law for score in fit.selection.scores} == laws
        assert fit.law == fit.selection.scores[0].law
    scores = file.fits[6].selection.scores
    assert np.mean(list(scores[0].held_out.values())) <= np.mean(list(scores[1].held_out.values()))
    data, model = file.fits[0], file.fits[3]
    assert data.fixed == {"num_params": 98_000.0}
    assert data.ranges == {"train_tokens": (200_000.0, 3_200_000.0)}
    assert model.fixed == {"train_tokens": 1_600_000.0}
    assert (len(data.rows_used), len(model.rows_used), len(file.fits[6].rows_used)) == (5, 4, 8)
    assert all(fit.converged for fit in file.fits)
    assert file.warnings == ()


def test_the_largest_scale_is_predicted(study):
    _, entries, file = study
    held = file.fits[0].hold_out
    assert [(point.num_params, point.train_tokens) for point in held.points] == [(98_000.0, 3_200_000.0)]
    assert held.points[0].run_id in {entry["run_id"] for entry in entries}
    assert held.mean_absolute_relative_error < 0.01


def test_every_row_is_listed_with_its_mixture(study):
    _, entries, file = study
    assert {row["run_id"] for row in file.rows} == {entry["run_id"] for entry in entries}
    assert {(row["group"], row["synthetic"], row["share"]) for row in file.rows} == {
        ("natural", None, 0.0),
        ("hq 33 %", "hq", 1 / 3),
        ("hq 100 %", "hq", 1.0),
    }
    assert all(row["used"] for row in file.rows)


def test_what_was_written_predicts_as_the_fit_did(study):
    root, _, file = study
    laws = load_fit(root)
    assert laws.groups == ("natural", "hq 33 %", "hq 100 %", "hq")
    written = next(fit for fit in file.fits if (fit.axis, fit.group) == ("both", "hq 33 %"))
    assert written.law in ("chinchilla", "chinchilla_tied")
    fitted = laws.find(written.law, "hq 33 %")
    assert fitted.record == written
    assert fitted.samples.shape == (40, len(written.parameters))
    inside = fitted.predict(num_params=98_000, train_tokens=800_000)
    truth = 40 * 98_000**-0.3 + 90 * 800_000**-0.32 + 2.5 - 0.1 / 3
    assert inside.value == pytest.approx(truth, rel=0.01)
    assert inside.low < inside.value < inside.high
    assert laws.find(written.law, "qa 33 %") is None


def test_figures_say_which_runs_they_show(study):
    root, entries, file = study
    directory = study_path(root, "laws", "laws")
    joint = next(fit.law for fit in file.fits if fit.axis == "both").replace("_", "-")
    for name in ("data-law.svg", "model-law.svg", f"{joint}-law.svg", "residuals.svg"):
        assert name in json.loads((directory / "manifest.json").read_text())["figures"]
        figure = (directory / name).read_text()
        assert figure.startswith("<svg")
        assert "hq 33 %" in figure
    run_id = next(e["run_id"] for e in entries if e["model"] == "330k")
    assert run_id in (directory / "model-law.svg").read_text()


def test_a_second_run_only_reads(study):
    root, _, file = study
    before = {path.name: path.stat().st_mtime_ns for path in study_path(root, "laws", "laws").iterdir()}
    assert plan_laws(settings(root)).finished
    assert fit_laws(settings(root)) == file
    assert {
        path.name: path.stat().st_mtime_ns for path in study_path(root, "laws", "laws").iterdir()
    } == before


def test_after_a_kill_the_same_bytes_are_written(study, tmp_path):
    root, _, _ = study
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    fit_laws(settings(root, law="data", out=str(whole)))
    killed.mkdir()
    (killed / "recipe.json").write_bytes((whole / "recipe.json").read_bytes())
    (killed / "bootstrap.npz").write_bytes(b"half")
    fit_laws(settings(root, law="data", out=str(killed)))
    for path in whole.iterdir():
        if path.name not in ("manifest.json", "fit.json"):
            assert (killed / path.name).read_bytes() == path.read_bytes(), path.name
    one, two = (json.loads((each / "fit.json").read_text()) for each in (whole, killed))
    assert {**one, "provenance": 0} == {**two, "provenance": 0}


def test_a_diverged_run_is_listed_with_its_reason(tmp_path):
    entries = write_study(str(tmp_path), diverged=("98k", 400_000, 1.0))
    lost = next(e["run_id"] for e in entries if read_record(str(tmp_path), e["run_id"]).status == "diverged")
    file = fit_laws(settings(tmp_path, law="data", bootstrap_samples=0))
    fit = next(fit for fit in file.fits if fit.group == "hq 100 %")
    assert [(row.run_id, row.reason) for row in fit.rows_excluded] == [
        (lost, "diverged: loss is not finite at step 3")
    ]
    assert lost not in fit.rows_used
    assert [(row["loss"], row["used"]) for row in file.rows if row["run_id"] == lost] == [(None, False)]


def test_other_losses_do_not_overwrite_a_fit(tmp_path):
    write_study(str(tmp_path))
    fit_laws(settings(tmp_path, law="data", bootstrap_samples=0))
    with pytest.raises(IdentityMismatch, match="bootstrap_samples: there 0, asked for 10"):
        fit_laws(settings(tmp_path, law="data", bootstrap_samples=10))
    write_study(str(tmp_path), diverged=("98k", 400_000, 1.0))
    with pytest.raises(IdentityMismatch, match=r"parents\.runs"):
        fit_laws(settings(tmp_path, law="data", bootstrap_samples=0))


def test_two_shares_that_would_be_taken_for_one_mixture_are_refused(tmp_path):
    entries = [write_run(str(tmp_path), "98k", 200_000, "hq", share) for share in (0.12, 0.123)]
    write_json_atomic(study_path(str(tmp_path), "plans", "grid", "plan.json"), {"runs": entries})
    with pytest.raises(
        UserError, match=r"shares 0\.12 and 0\.123 of hq, which laws would take for one mixture, 'hq 12 %'"
    ):
        plan_laws(LawsConfig(root=str(tmp_path)))


def test_missing_plans_and_records_name_the_job_to_run(tmp_path):
    with pytest.raises(IncompleteArtefact, match="run pretrain_models first"):
        plan_laws(settings(tmp_path))
    entries = write_study(str(tmp_path))
    (tmp_path / "runs" / entries[3]["run_id"] / "record.json").unlink()
    with pytest.raises(
        IncompleteArtefact, match=f"1 of its 24 runs have no record yet, the first is {entries[3]['run_id']}"
    ):
        plan_laws(settings(tmp_path))


def test_a_group_with_too_few_runs_is_named(tmp_path):
    entries = write_study(str(tmp_path))
    kept = [e for e in entries if e["share"] == 0] + [e for e in entries if e["share"] == 1.0][:2]
    write_json_atomic(tmp_path / "plans" / "grid" / "plan.json", {"runs": kept})
    assert (
        "no data law for 'hq 100 %': train_tokens takes 2 different values"
        in plan_laws(settings(tmp_path)).warnings[0]
    )
    with pytest.raises(UserError, match="too few runs for the data law of 'hq 100 %': train_tokens takes 2"):
        plan_laws(settings(tmp_path, law="data"))


def test_a_law_in_the_share_takes_a_source_with_the_natural_runs(study):
    root, _, _ = study
    file = fit_laws(settings(root, law="ratio_floor", name="ratio", bootstrap_samples=20))
    assert [(fit.law, fit.group, len(fit.rows_used)) for fit in file.fits] == [("ratio_floor", "hq", 24)]
    assert len(file.rows) == 24
    fitted = load_fit(root, "ratio").find("ratio_floor", "hq")
    assert fitted.best_share(num_params=98_000, train_tokens=1_600_000).value == 1.0
    without = fitted.predict(num_params=98_000, train_tokens=1_600_000, share=0.0).value
    assert without - fitted.predict(
        num_params=98_000, train_tokens=1_600_000, share=1.0
    ).value == pytest.approx(0.1, abs=0.02)


# --- a table, through the command line -------------------------------------------------------------------------


def test_a_table_is_fitted_from_the_command_line(table, capsys):
    assert main(flags(table, "--law", "chinchilla", "--objective", "huber_log")) == 0
    out = table.parent / "out"
    file = json.loads((out / "fit.json").read_text())
    fit = file["fits"][0]
    assert set(fit["parameters"]) == {"A", "B", "E", "alpha", "beta"}
    assert fit["objective"] == "huber_log"
    assert fit["gradient_norm"] < 1e-6
    assert fit["starts_at_optimum_fraction"] > 0.5
    assert len(fit["rows_used"]) == 18
    assert load_directory(study_path(str(out))).find("chinchilla", "all").parameters[
        "alpha"
    ] == pytest.approx(0.3, abs=0.2)
    assert (out / "chinchilla-law.svg").exists()
    assert "chinchilla law, all" in capsys.readouterr().err


def test_groups_of_a_table_are_fitted_apart(table):
    assert main(flags(table, "--law", "auto", "--columns.group", "mix")) == 0
    file = json.loads((table.parent / "out" / "fit.json").read_text())
    assert [(fit["law"], fit["group"]) for fit in file["fits"]] == [
        (law, group) for law in ("data", "model", file["fits"][-1]["law"]) for group in "ab"
    ]
    assert file["fits"][0]["fixed"] == {"num_params": 4e5}


def test_a_mixing_law_is_fitted_to_shares_alone(tmp_path):
    shares = [(web, code) for web in (0.0, 0.2, 0.4, 0.6) for code in (0.1, 0.2, 0.4)]
    lines = [f"{web},{code},{1.8 + 1.5 * np.exp(-0.8 * web + 0.6 * code)}" for web, code in shares]
    path = tmp_path / "mixtures.csv"
    path.write_text("\n".join(["web,code,loss", *lines]) + "\n")
    arguments = ["--runs", str(path), "--law", "exponential_mixing", "--columns.shares", '["web", "code"]']
    assert main([*arguments, "--bootstrap_samples", "20", "--out", str(tmp_path / "out")]) == 0
    fitted = load_directory(study_path(str(tmp_path / "out"))).fits[0]
    assert fitted.parameters == pytest.approx({"c": 1.8, "k": 1.5, "t_web": -0.8, "t_code": 0.6}, rel=1e-3)
    predicted = fitted.predict(web=0.3, code=0.3).value
    assert predicted == pytest.approx(1.8 + 1.5 * np.exp(-0.24 + 0.18), rel=1e-5)
    assert (tmp_path / "out" / "exponential-mixing-law.svg").exists()


def test_where_a_table_lies_is_not_what_it_is(table, tmp_path):
    assert main(flags(table, "--law", "chinchilla")) == 0
    moved = tmp_path / "moved.csv"
    moved.write_bytes(table.read_bytes())
    arguments = flags(table, "--law", "chinchilla")
    arguments[1] = str(moved)
    assert main(arguments) == 0
    moved.write_text(table.read_text().replace(",b\n", ",c\n"))
    assert main(arguments) == 2


def test_a_dry_run_writes_nothing(table, capsys):
    assert main(flags(table, "--law", "chinchilla", "--dry-run")) == 0
    assert not (table.parent / "out").exists()
    assert "18" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("N,D", "params,D"), "no column 'N'; it has params, D, loss, mix"),
        (
            lambda text: "\n".join(text.splitlines()[:4]) + "\n",
            "too few runs for the chinchilla law of 'all'",
        ),
        (
            lambda text: text.replace("200000.0,", "100000.0,").replace("400000.0,", "100000.0,"),
            "num_params takes 1 different value",
        ),
        (lambda text: text.splitlines()[0] + "\n", "has no row to fit"),
    ],
)
def test_tables_that_cannot_be_fitted_exit_with_2_and_a_sentence(table, capsys, change, message):
    table.write_text(change(table.read_text()))
    assert main(flags(table, "--law", "chinchilla")) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (table.parent / "out").exists()
