"""What a table of runs is fitted with: mixtures apart, laws in the share across them, one choice of law for job and function."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rayjobs.fit_laws import main
from synth.errors import UserError
from synth.storage import study_path
from tune.config import ColumnMapping, LawsConfig
from tune.fitting import plan_laws
from tune.law_tasks import choose_families, read_observations
from tune.laws import fit, load_directory
from tune.laws.objectives import Objective
from tune.observations import columns_of

SIZES, BUDGETS, SHARES = (1e7, 3e7, 1e8), (1e8, 1e9, 1e10), (0.0, 0.33, 0.67, 1.0)


def loss(n, d, share):
    return (1.7 + 400 / n**0.34 + 410 / d**0.28) * (1 + 0.1 * (share - 0.3) ** 2)


def rows_of(*more):
    """Return a header and a line for every size, budget and share; `more` are (name, function of n, d, share)."""
    random = np.random.default_rng(0)
    lines = [",".join(["num_params", "train_tokens", "share", "loss", *(name for name, _ in more)])]
    for n, d, share in itertools.product(SIZES, BUDGETS, SHARES):
        found = loss(n, d, share) * np.exp(1e-3 * random.standard_normal())
        lines.append(",".join(map(str, [n, d, share, found, *(of(n, d, share) for _, of in more)])))
    return lines


@pytest.fixture
def chosen(tmp_path):
    def choose(lines, **config):
        path = tmp_path / "runs.csv"
        path.write_text("\n".join(lines) + "\n")
        settings = LawsConfig(runs=str(path), bootstrap_samples=0, **config)
        return choose_families(settings, read_observations(settings))

    return choose


def families(choice):
    return {family.kind: family for family in choice.families}


def groups(family):
    return [task.group for task in family.tasks]


def test_a_table_with_a_share_is_not_taken_for_one_mixture(chosen):
    choice = chosen(rows_of())
    mixtures = ["natural", "synthetic 33 %", "synthetic 67 %", "synthetic 100 %"]
    found = families(choice)
    for kind in ("data", "model", "joint"):
        assert groups(found[kind]) == mixtures
        assert all(len(set(task.rows["share"])) == 1 for task in found[kind].tasks)
    assert groups(found["share"]) == ["all"]
    assert [law.name for law in found["share"].candidates] == ["ratio_floor", "ratio_data", "ratio_full"]
    assert len(found["share"].tasks[0].rows["loss"]) == 36
    assert any("the mixture varies" in note and "4 mixtures apart" in note for note in choice.notes)
    assert {row.synthetic for row in choice.observations.rows} == {None, "synthetic"}


def test_the_plan_says_what_is_made_of_the_rows(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(rows_of()) + "\n")
    plan = plan_laws(LawsConfig(runs=str(path), out=str(tmp_path / "out")))
    assert plan.facts["groups"] == "natural, synthetic 33 %, synthetic 67 %, synthetic 100 %"
    assert "ratio_full" in plan.facts["laws"]
    assert any("the mixture varies" in warning for warning in plan.warnings)


def test_a_law_asked_for_by_name_takes_mixtures_apart_or_together_as_it_knows_them(chosen):
    apart = chosen(rows_of(), law="chinchilla")
    assert groups(apart.families[0]) == ["natural", "synthetic 33 %", "synthetic 67 %", "synthetic 100 %"]
    assert "apart" in apart.notes[0]
    together = chosen(rows_of(), law="ratio_floor")
    assert (groups(together.families[0]), together.notes) == (["all"], ())


def test_an_empty_name_leaves_the_share_alone(chosen):
    lines = [line.replace("share", "score") for line in rows_of()]
    assert groups(families(chosen(lines))["joint"]) == ["all"]
    percents = [line if i == 0 else line.replace(",0.33,", ",33,") for i, line in enumerate(rows_of())]
    with pytest.raises(
        UserError, match=r"share of row 2 .* is 33.0: it must be a share .* --columns.share '' leaves it"
    ):
        chosen(percents)
    assert groups(families(chosen(percents, columns=ColumnMapping(share="")))["joint"]) == ["all"]


def test_a_column_that_was_mapped_must_be_there(chosen):
    with pytest.raises(UserError, match="has no column 'synthetic_share'"):
        chosen(rows_of(), columns=ColumnMapping(share="synthetic_share"))


def test_shares_of_several_groups_are_told_apart_within_each(chosen):
    lines = rows_of(("source", lambda n, d, share: "qa" if n > 2e7 else "hq"))
    choice = chosen(lines, columns=ColumnMapping(group="source"))
    assert groups(families(choice)["data"])[:4] == ["qa 0 %", "qa 33 %", "qa 67 %", "qa 100 %"]
    assert {row.synthetic for row in choice.observations.rows if row.share} == {"hq", "qa"}


def test_shares_that_look_alike_get_names_that_do_not(chosen):
    lines = [line.replace(",0.67,", ",0.332,").replace(",1.0,", ",0.3301,") for line in rows_of()]
    assert groups(families(chosen(lines))["data"]) == [
        "natural",
        "synthetic 33 %",
        "synthetic 33.2 %",
        "synthetic 33.01 %",
    ]


def test_two_shares_are_too_few_for_a_law_in_the_share_and_that_is_said(chosen):
    lines = [line for line in rows_of() if ",0.67," not in line and ",1.0," not in line]
    choice = chosen(lines)
    assert "share" not in families(choice)
    assert len(groups(families(choice)["joint"])) == 2


def test_repeated_tokens_bring_the_law_of_repetition_in(chosen):
    lines = rows_of(("unique_tokens", lambda n, d, share: min(d, 3e9)))
    joint = families(chosen(lines))["joint"]
    assert [law.name for law in joint.candidates] == ["chinchilla", "chinchilla_tied", "data_constrained"]
    once = families(chosen(rows_of(("unique_tokens", lambda n, d, share: d))))["joint"]
    assert [law.name for law in once.candidates] == ["chinchilla", "chinchilla_tied"]


def test_the_data_law_is_held_against_the_rectified_one_and_stays(chosen):
    budgets = np.geomspace(1e8, 1e11, 8)
    lines = ["num_params,train_tokens,loss", *(f"1e8,{d},{1.7 + 30 / (2e3 + d**0.4)}" for d in budgets)]
    family = families(chosen(lines))["data"]
    assert [law.name for law in family.candidates] == ["data", "rectified"]
    tasks = family.decided(Objective("mse_log", None))
    assert tasks[0].law.name == "data"  # the paper's form, which speed-ups and claims read
    assert {score.law for score in tasks[0].selection.scores} == {"data", "rectified"}


def test_shares_of_several_sources_are_fitted_at_the_cell_with_most_mixtures(chosen):
    mixtures = [(web, code) for web in (0.0, 0.3, 0.6) for code in (0.1, 0.2, 0.4)]
    lines = ["num_params,train_tokens,web,code,loss"]
    lines += [f"1e7,1e9,{web},{code},{1.8 + 1.5 * np.exp(-0.8 * web + 0.6 * code)}" for web, code in mixtures]
    lines += [f"1e8,1e9,0.0,0.1,{2.5}"]
    columns = ColumnMapping(shares=("web", "code"))
    family = families(chosen(lines, columns=columns))["mixture"]
    assert family.tasks[0].fixed == {"num_params": 1e7, "train_tokens": 1e9}
    assert len(family.tasks[0].rows["loss"]) == 9
    named = chosen(lines, law="exponential_mixing", columns=columns)
    assert "1 rows elsewhere are not in it" in named.notes[0]


def test_rows_of_one_place_are_taken_for_seeds_and_that_is_said(chosen):
    lines = ["run,num_params,train_tokens,loss"]
    lines += [f"r{d},1e7,{d},{3 - 0.1 * np.log(d)}" for d in (10, 20, 40, 80)]
    again = [*lines, "other,1e7,20,2.7", "other,1e7,40,2.6"]
    (note,) = chosen(again, columns=ColumnMapping(run_id="run")).notes
    assert note.startswith(
        "row 2 and row 5 have the same size, budget and mixture and the losses 2.70043 and 2.7"
    )
    assert "and 1 more such row: taken for runs that differ in their seed alone" in note
    (note,) = chosen([*lines, "r20,1e7,20,2.7"], columns=ColumnMapping(run_id="run")).notes
    assert "although they are of one run, which has one loss there" in note
    fitted = fit(
        "data", {"train_tokens": [10, 20, 40, 80, 20], "loss": [3, 2.8, 2.7, 2.65, 2.81]}, bootstrap_samples=0
    )
    assert "row 2 and row 5 have the same size, budget and mixture" in fitted.record.warnings[0]


def test_a_law_that_pools_mixtures_says_so():
    d = np.array([1e8, 1e9, 1e10, 1e11] * 2)
    share = np.repeat([0.0, 0.5], 4)
    rows = {"train_tokens": d, "share": share, "loss": 1.7 + 410 / d**0.28 + 0.1 * share}
    (said,) = (each for each in fit("data", rows, bootstrap_samples=0).record.warnings if "pooled" in each)
    assert "the share takes 2 values, which the data law does not know" in said


@pytest.mark.slow
def test_job_and_function_choose_the_same_law(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(rows_of()) + "\n")
    arguments = [
        "--runs",
        str(path),
        "--objective",
        "mse_log",
        "--bootstrap_samples",
        "0",
        "--no-hold_out_largest",
    ]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    laws = load_directory(study_path(str(tmp_path / "out")))
    rows = columns_of(read_observations(LawsConfig(runs=str(path))).rows)
    alone = fit("auto", rows, "mse_log", bootstrap_samples=0, hold_out_largest=False).record
    across = next(fitted.record for fitted in laws if fitted.record.group == "all")
    assert across.law == alone.law
    assert across.selection == alone.selection
    assert across.objective_value == pytest.approx(alone.objective_value)
    assert {fitted.record.group for fitted in laws if fitted.record.law == "data"} == {
        "natural", "synthetic 33 %", "synthetic 67 %", "synthetic 100 %",
    }  # fmt: skip
