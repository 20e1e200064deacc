"""What to train next: runs that narrow the interval of the answer, as a plan that can be run."""

import json
import shutil
import tomllib

from synth.storage import read_json, study_path, write_json_atomic
from tests.assets.known_truth import BUDGETS, MODELS, PLACEMENT, TARGET_D, TARGET_N, asked, write_search
from train.config import PretrainConfig
from train.grid import plan_directory, plan_runs
from train.tokens import PackedInfo
from tune.answer import answer_at
from tune.evidence import read_evidence
from tune.next_runs import next_cells
from tune.recommendation import recommend_mixture
from tune.results import Interval


def test_what_to_train_next_narrows_the_interval_and_its_plan_can_be_run(study):
    found = recommend_mixture(asked(study, name="next", next_cells=4))
    widths = [each.expected_interval_width for each in found.next_cells]
    assert len(widths) == 4
    now = found.best_share.high - found.best_share.low
    assert [now, *widths] == sorted([now, *widths], reverse=True)
    text = study_path(study, "recommendations", "next.next.toml").read_text()
    assert "--config THIS FILE --run.max_epochs null\n" in text  # which TOML cannot say
    values = {**tomllib.loads(text), "root": study}
    own = PretrainConfig.model_validate({**values, "run": {**values["run"], "max_epochs": None}})
    packed = PackedInfo.read(study, "tiny")
    records = {each["run_id"] for each in read_json(plan_directory(study, "grid") / "plan.json")["runs"]}
    planned = {each.run.run_id for each in plan_runs(own, packed)}
    assert records < planned
    assert len(planned - records) == sum(each.runs for each in found.next_cells)
    assert own.placement == PLACEMENT  # on GPUs, side by side, as the plan was
    trained = {*(("98k", d) for d in BUDGETS), *((m, 131_072) for m in MODELS)}
    assert not {(each.model, each.train_tokens) for each in found.next_cells} & trained


def test_a_new_share_where_the_curve_is_a_guess_and_a_larger_size_for_a_far_target_are_proposed(study):
    here = recommend_mixture(asked(study, name="next-here", next_cells=6)).next_cells
    new = [each.share for each in here if each.what == "share"]
    assert new
    assert all(0.0 < share < 2 / 3 and abs(share - 1 / 3) > 0.04 for share in new)
    sizes = {each.model for each in here if each.what == "cell"}
    assert sizes & {"197k", "330k"}  # at most four times the largest trained


def test_what_to_train_next_goes_by_the_interval_of_the_answer_searches_included(study):
    (alone,) = recommend_mixture(asked(study, name="next-alone", next_cells=1)).next_cells
    write_search(study, "sure", Interval(value=0.4, standard_error=0.02), TARGET_N, TARGET_D)
    found = recommend_mixture(asked(study, name="next-sure", searches=("sure",), next_cells=1))
    width = found.best_share.high - found.best_share.low
    assert found.next_cells[0].expected_interval_width <= width < alone.expected_interval_width


def test_every_seed_of_the_plan_is_counted_in_what_to_train_next(study, tmp_path):
    root = str(tmp_path / "study")
    shutil.copytree(study, root)
    evidence = read_evidence(asked(root))
    answer = answer_at(evidence.target, evidence)
    one = next_cells(root, "grid", answer, 8)
    recipe = study_path(root, "plans", "grid", "recipe.json")
    told = json.loads(recipe.read_text())
    told["recipe"]["seeds"] = [0, 1]
    write_json_atomic(recipe, told)
    two = next_cells(root, "grid", answer, 8)
    first_one, first_two = (next(each for each in some if each.what == "cell") for some in (one, two))
    per_run = 6 * first_two.num_params * first_two.train_tokens
    assert first_two.runs % 2 == 0
    assert first_two.flops == first_two.runs * per_run
    assert first_one.flops == first_one.runs * 6 * first_one.num_params * first_one.train_tokens
    assert {each.seed for each in two if each.what == "seed"} <= {2}
