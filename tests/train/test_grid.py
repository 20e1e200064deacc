"""From a plan to runs: each run once, in a sensible order, refused early when it cannot be."""

import json

import pydantic
import pytest

from synth.errors import IdentityMismatch, IncompleteArtefact, UserError
from synth.storage import study_path
from tests.assets.packed_set import run_on, write_packed_set
from train.branching import in_training_order
from train.config import PretrainConfig
from train.grid import (
    claim_plan,
    finish_plan,
    mix,
    plan_pretrain,
    plan_runs,
    read_plan_records,
    summary,
)
from train.lanes.queue import failed_record
from train.record import write_record
from train.sizes import model_of
from train.tokens import PackedInfo

ROW, STEP = 32, 8 * 32
"""Tokens in a row and in a step of the packed set below."""


@pytest.fixture
def packed(tmp_path) -> PackedInfo:
    return write_packed_set(tmp_path, sources={"natural": 200, "hq": 120, "qa": 120}).info


@pytest.fixture
def config(tmp_path, packed):
    """`config(field=value, ...)`: a plan of two budgets at one size and two sizes at one budget."""

    def make(**changes):
        fields = {
            "root": str(tmp_path),
            "packed": "tiny",
            "synthetic": ("hq", "qa"),
            "shares": (0.0, 0.5, 1.0),
            "axes": (
                {"models": ("12k",), "train_tokens": (STEP, 4 * STEP)},
                {"models": ("12k", "25k"), "train_tokens": (4 * STEP,)},
            ),
        }
        return PretrainConfig.model_validate(fields | changes)

    return make


def finished(run, packed, placement, status="complete"):
    record = failed_record(
        run,
        packed.vocab_size,
        placement,
        "why",
        tokens=run.train_tokens,
        seconds=2.0,
        tokens_per_second=9.0,
        attempts=1,
    )
    reason = None if status == "complete" else "why"
    return record.model_copy(update={"status": status, "reason": reason})


def test_a_pair_in_two_blocks_and_share_zero_of_two_sources_are_one_run_each(config, packed):
    planned = plan_runs(config(), packed)
    # (12k, 1 step), (12k, 4 steps), (25k, 4 steps), each with natural alone and two sources at two shares
    assert len(planned) == 3 * (1 + 2 * 2)
    assert len({each.run.run_id for each in planned}) == len(planned)
    assert [each.run.mixture for each in planned[:5]] == [
        {"natural": 1.0},
        {"natural": 0.5, "hq": 0.5},
        {"hq": 1.0},
        {"natural": 0.5, "qa": 0.5},
        {"qa": 1.0},
    ]
    assert [(each.synthetic, each.share) for each in planned[:3]] == [(None, 0.0), ("hq", 0.5), ("hq", 1.0)]


def test_seeds_multiply_and_keep_everything_else(config, packed):
    one, two = plan_runs(config(), packed), plan_runs(config(seeds=(0, 1)), packed)
    assert len(two) == 2 * len(one)
    assert {each.run.run_id for each in one} < {each.run.run_id for each in two}


def test_the_ends_of_the_share_name_one_source_so_that_equal_runs_are_one():
    assert mix("a", "b", 0.0) == mix("a", None, 0.7) == {"a": 1.0}
    assert mix("a", "b", 1.0) == {"b": 1.0}
    third = mix("a", "b", 1 / 3)
    assert sum(third.values()) == 1.0
    assert third["b"] == 1 / 3


def in_order(config, packed):
    return in_training_order([each.run for each in plan_runs(config, packed)], packed.vocab_size)


def test_training_order_is_cheapest_first_then_longest_to_shortest(config, packed):
    runs = in_order(config(synthetic=(), shares=(0.0,)), packed)
    names = {model_of(name): name for name in ("12k", "25k")}
    assert [(names[run.model], run.train_tokens // STEP) for run in runs] == [
        ("12k", 1),
        ("25k", 4),
        ("12k", 4),
    ]


def test_training_order_does_not_depend_on_the_order_given(config, packed):
    runs = in_order(config(), packed)
    assert in_training_order(reversed(runs), packed.vocab_size) == runs
    assert in_training_order([], packed.vocab_size) == ()


@pytest.mark.parametrize("field", ["shares", "seeds"])
def test_a_plan_without_a_run_is_refused_with_its_field(config, field):
    with pytest.raises(pydantic.ValidationError, match=f"{field}\n  Tuple should have at least 1 item"):
        config(**{field: ()})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"synthetic": ("hq", "web")}, ["synthetic", "'web'", "hq, natural, qa"]),
        ({"natural": "prose"}, ["natural", "'prose'"]),
        ({"synthetic": ("natural",)}, ["synthetic", "'natural'"]),
        ({"synthetic": (), "shares": (0.5,)}, ["synthetic is empty", "share 0"]),
        ({"axes": ({"models": ("13k",), "train_tokens": (STEP,)},)}, ["'13k'", "12k, 25k"]),
        (
            {"axes": ({"models": ("12k",), "train_tokens": (STEP - 1,)},)},
            ["train_tokens = 255", "256 tokens"],
        ),
        (
            {"axes": ({"models": ("12k",), "train_tokens": (200 * ROW + STEP,)},)},
            ["passes over source", "max_epochs"],
        ),
        ({"placement": {"workers_per_lane": 3}}, ["rows_per_step = 8", "workers_per_lane = 3"]),
        ({"placement": {"workers_per_lane": 2, "gpus_per_worker": 0.5}}, ["gpus_per_worker = 0.5", "lanes"]),
        (
            {"placement": {"workers_per_lane": [1, 2], "gpus_per_worker": 0.5}},
            ["gpus_per_worker = 0.5", "lanes"],
        ),
        ({"placement": {"gpus_per_worker": 2}}, ["gpus_per_worker = 2", "workers_per_lane"]),
        ({"placement": {"workers_per_lane": [1, 3]}}, ["rows_per_step = 8", "3 workers", "[1, 3]"]),
        (
            {"placement": {"workers_per_lane": [1, 2], "zero_stage": 0, "rows_per_microbatch": 4}},
            ["zero_stage = 0", "2 microbatches in bfloat16"],
        ),
        ({"run": {"optimizer": {"warmup_fraction": 0.9, "decay_fraction": 0.5}}}, ["warmup_fraction"]),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_sentence(config, changes, words):
    with pytest.raises(UserError) as refused:
        plan_pretrain(config(**changes))
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_a_plan_needs_its_packed_set(config):
    with pytest.raises(IncompleteArtefact, match="pack_tokens"):
        plan_pretrain(config(packed="other"))


def test_the_plan_counts_what_is_missing_and_writes_nothing(config, packed, tmp_path):
    plan = plan_pretrain(config(synthetic=(), shares=(0.0,)))
    assert not plan.finished
    assert plan.facts["runs"] == plan.facts["runs missing"] == 3
    assert plan.facts["tokens missing"] == 9 * STEP
    assert plan.facts["steps missing"] == 9
    assert plan.facts["most passes over natural"] == round(4 * 8 / 200, 3)
    assert "unknown" in plan.facts["device-hours, estimated"]
    assert not (tmp_path / "plans").exists()
    assert not (tmp_path / "runs").exists()


def test_bf16_on_a_cpu_that_emulates_it_is_warned_about(config, packed, tmp_path, monkeypatch):
    flags = tmp_path / "cpuinfo"
    monkeypatch.setattr("train.grid.CPU_FLAGS", flags)
    flags.write_text("flags\t\t: fpu sse2 avx avx2 fma\n")
    warned = " ".join(plan_pretrain(config()).warnings)
    assert "precision = 'bf16' on a CPU without AVX-512" in warned
    assert "bf16" not in " ".join(plan_pretrain(config(run={"precision": "fp32"})).warnings)
    assert "bf16" not in " ".join(plan_pretrain(config(placement={"gpus_per_worker": 1})).warnings)
    flags.write_text("flags\t\t: fpu sse2 avx2 avx512f avx512_bf16\n")
    assert "bf16" not in " ".join(plan_pretrain(config()).warnings)


def test_device_hours_come_from_finished_runs_of_the_same_models(config, packed):
    asked = config(synthetic=(), shares=(0.0,))
    runs = [each.run for each in plan_runs(asked, packed)]
    for run in (runs[0], runs[2]):  # 12k with one step, 25k with four: 2 s each
        write_record(asked.root, finished(run, packed, asked.placement))
    plan = plan_pretrain(asked)
    assert plan.facts["runs missing"] == 1
    assert plan.facts["device-hours, estimated"] == pytest.approx(8.0 / 3600, rel=0.05)


def test_a_finished_plan_is_finished_until_a_record_is_taken_away(config, packed):
    asked = config()
    planned = plan_runs(asked, packed)
    identity = claim_plan(asked, packed, planned)
    statuses = ["failed", "diverged", *["complete"] * (len(planned) - 2)]
    records = [
        finished(each.run, packed, asked.placement, status)
        for each, status in zip(planned, statuses, strict=True)
    ]
    for record in records:
        write_record(asked.root, record)
    assert not plan_pretrain(asked).finished
    manifest = finish_plan(asked, identity, records)
    plan = plan_pretrain(asked)
    assert plan.finished
    assert (plan.facts["runs failed"], plan.facts["runs diverged"]) == (1, 1)
    assert (manifest["complete"], manifest["diverged"], manifest["failed"]) == (len(planned) - 2, 1, 1)
    assert manifest["runs"][records[0].run_id] == "failed"
    assert list(read_plan_records(asked.root, planned).values()) == records

    study_path(asked.root, "runs", records[0].run_id, "record.json").unlink()
    plan = plan_pretrain(asked)
    assert not plan.finished
    assert plan.facts["runs missing"] == 1


def test_plan_json_says_where_each_run_lies(config, packed, tmp_path):
    asked = config(seeds=(3,))
    planned = plan_runs(asked, packed)
    claim_plan(asked, packed, planned)
    rows = json.loads((tmp_path / "plans" / "grid" / "plan.json").read_text())["runs"]
    assert [row["run_id"] for row in rows] == [each.run.run_id for each in planned]
    assert rows[1] == {
        "run_id": planned[1].run.run_id,
        "model": "12k",
        "num_params_non_embedding": rows[0]["num_params_non_embedding"],
        "num_params_total": rows[0]["num_params_total"],
        "train_tokens": STEP,
        "synthetic": "hq",
        "share": 0.5,
        "seed": 3,
    }
    assert rows[0]["synthetic"] is None


def test_another_plan_under_the_same_name_is_refused_with_what_differs(config, packed):
    claim_plan(config(), packed, plan_runs(config(), packed))
    changed = config(seeds=(0, 1))
    with pytest.raises(IdentityMismatch) as refused:
        plan_pretrain(changed)
    assert list(refused.value.differences) == ["recipe.seeds"]
    plan_pretrain(config(placement={"lanes": 7}))


def test_the_summary_counts_every_end_and_gives_a_reason(packed, config):
    run = run_on(packed)
    good = finished(run, packed, config().placement)
    assert summary([good]) == "runs: 1 complete"
    bad = finished(run, packed, config().placement, "diverged")
    assert "1 complete, 1 diverged" in summary([good, bad])
    assert "why" in summary([good, bad])
