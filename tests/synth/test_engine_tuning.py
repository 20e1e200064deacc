"""The tuner without Ray: what is tried, what is chosen, where it is kept and who takes it."""

import asyncio

import pytest
from upath import UPath

from synth.config import RephrasePlacement
from synth.engines.search import EngineSearch, TuneEngineConfig
from synth.engines.tuning import (
    SettingsSearch,
    choose,
    failed_trial,
    make_tunings,
    plan_tuning,
    run_trial,
    sample_of,
)
from synth.engines.tunings import (
    EngineSettings,
    Trial,
    find_tuning,
    length_distance,
    length_histogram,
    tuned_placement,
    write_tuning,
)
from synth.errors import UserError
from synth.ledger import open_synthetic
from synth.rephrase import finish_work, open_work
from synth.worker import RephraseWorker, most_parts_at_a_time, parts_at_a_time

GPU = RephrasePlacement(gpus_per_engine=1.0)
SEARCH = EngineSearch(
    trials=100,
    max_num_seqs=(64, 128, 256, 512),
    max_num_batched_tokens=(2048, 4096, 8192),
    gpu_memory_utilization=(0.8, 0.9),
)


def settings(seqs=256, tokens=4096, memory=0.9, speculative=None, tensor_parallel=1):
    return EngineSettings(
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        gpu_memory_utilization=memory,
        tensor_parallel=tensor_parallel,
        speculative=speculative,
    )


def measured(rate, **fields):
    return Trial(settings=settings(**fields), status="measured", accepted_tokens_per_device_second=rate)


def rate_of(chosen):
    """A device on which more sequences pay up to 256 and more tokens always do a little."""
    return 1000 * min(chosen.max_num_seqs, 256) / 256 + chosen.max_num_batched_tokens / 100


def searched(search, runs_out=lambda chosen: False):
    study, asked = SettingsSearch(search, GPU, seed=0), []
    while (chosen := study.ask()) is not None:
        asked.append(chosen)
        status = "out_of_memory" if runs_out(chosen) else "measured"
        rate = None if status == "out_of_memory" else rate_of(chosen)
        study.tell(Trial(settings=chosen, status=status, accepted_tokens_per_device_second=rate))
    return study, asked


def test_every_setting_is_tried_once_when_there_is_time_for_all():
    study, asked = searched(SEARCH)
    assert len(asked) == len({each.model_dump_json() for each in asked}) == 4 * 3 * 2
    assert len(study.trials) == 24


def test_the_usual_settings_come_first_and_a_short_search_finds_most_of_the_speed():
    study, asked = searched(SEARCH.model_copy(update={"trials": 8}))
    assert asked[0] == settings(256, 4096, 0.9)
    assert len(asked) == 8
    best = max(trial.accepted_tokens_per_device_second for trial in study.trials)
    assert best >= 0.9 * rate_of(settings(256, 8192))


def test_what_needs_more_than_settings_that_ran_out_is_not_tried():
    def runs_out(chosen):
        return chosen.max_num_seqs >= 256 and chosen.max_num_batched_tokens >= 8192

    study, asked = searched(SEARCH, runs_out)
    skipped = [trial for trial in study.trials if trial.status == "skipped"]
    assert skipped
    assert all(runs_out(trial.settings) for trial in skipped)
    assert len(asked) + len(skipped) == 24
    assert {trial.settings for trial in study.trials if trial.status == "measured"} == {
        each for each in asked if not runs_out(each)
    }


def test_of_nearly_equal_settings_the_one_that_needs_least_memory_is_kept():
    trials = [
        measured(1000, seqs=1024, memory=0.95),
        measured(990, seqs=256, memory=0.9),
        measured(900, seqs=64, memory=0.8),
    ]
    chosen, fastest = choose(trials, tolerance=0.02)
    assert (chosen.settings.max_num_seqs, fastest.settings.max_num_seqs) == (256, 1024)
    assert choose(trials, tolerance=0.0)[0].settings.max_num_seqs == 1024
    assert choose([Trial(settings=settings(), status="failed")], tolerance=0.02) is None


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (
            "vLLM did not start: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "out_of_memory",
        ),
        ("vLLM did not start: ValueError: No available memory for the cache blocks.", "out_of_memory"),
        ("Task was killed due to the node running low on memory.", "out_of_memory"),
        ("vLLM did not start: ValueError: there is no such argument", "failed"),
        ("The worker died unexpectedly while executing this task.", "failed"),
    ],
)
def test_running_out_of_memory_is_told_from_other_failures(said, status):
    trial = failed_trial(settings(), said)
    assert (trial.status, trial.detail) == (status, said)


# --- on the fake engine -------------------------------------------------------------------------------------------


@pytest.fixture
def tune_config(fake_config):
    def config(behaviour=None, **fields):
        base = fake_config({"latency_seconds": 0.02} | (behaviour or {}), **fields)
        return TuneEngineConfig.model_validate(base.model_dump())

    return config


def on_fake(seqs):
    return EngineSettings(
        max_num_seqs=seqs,
        max_num_batched_tokens=4096,
        gpu_memory_utilization=None,
        tensor_parallel=1,
        speculative=None,
    )


def test_a_trial_measures_accepted_tokens_on_a_sample_from_all_of_the_corpus(tune_config):
    work = open_work(tune_config({"refusal_fraction": 0.3}))
    sample = sample_of(work, 12)
    assert [sample.read_part(part).num_rows for part in range(sample.num_parts)] == [2] * 6
    slow = run_trial(sample, on_fake(1), 60)
    fast = run_trial(sample_of(work, 12), on_fake(16), 60)
    assert slow.status == fast.status == "measured"
    assert min(fast.accepted_tokens_per_device_second, slow.accepted_tokens_per_device_second) > 0
    assert fast.accepted_tokens_per_device_second < fast.output_tokens_per_device_second
    assert not work.directory.exists(), "a trial leaves the set itself alone"


def test_a_trial_that_fails_says_how(tune_config):
    def status(behaviour, timeout_seconds=60.0):
        work = open_work(tune_config(behaviour))
        trial = run_trial(sample_of(work, 4), on_fake(4), timeout_seconds)
        return trial.status, trial.detail

    assert status({"start_failure": "CUDA out of memory"})[0] == "out_of_memory"
    assert status({"start_failure": "no weights"})[0] == "failed"
    assert status({"latency_seconds": 30.0}, 0.2) == ("failed", "not done within 0.2 s")
    bug = {"dies_every": 3, "last_words": "RuntimeError: illegal instruction"}
    assert status(bug) == ("failed", "the engine died at work: RuntimeError: illegal instruction")
    assert status({"dies_every": 3, "last_words": "CUDA out of memory"})[0] == "out_of_memory"
    assert status({"dies_every": 1, "last_words": "CUDA out of memory"})[0] == "out_of_memory"


def test_a_damaged_part_is_no_want_of_memory_and_rules_no_setting_out(tune_config):
    work = open_work(tune_config())
    UPath(work.sources[0]).write_bytes(b"nothing")
    trial = run_trial(sample_of(work, 12), on_fake(4), 60)
    assert trial.status == "failed"
    assert "cannot be read" in trial.detail


def test_what_was_found_is_taken_where_the_job_leaves_it_open_and_noted(tune_config, fake_config):
    work = open_work(tune_config())
    trials = [Trial(settings=on_fake(7), status="measured", accepted_tokens_per_device_second=10.0)]
    (tuning,) = make_tunings(work, "fake", trials, 0.02)
    write_tuning(work.config.root, tuning)
    behaviour = {"latency_seconds": 0.02}
    assert _tuned(fake_config(behaviour, name="open")) == (7, tuning.name)
    assert _tuned(fake_config(behaviour, name="set", placement={"max_num_seqs": 3})) == (3, tuning.name)
    assert _tuned(fake_config(behaviour, name="off", placement={"use_tuning": False})) == (256, None)
    assert _tuned(fake_config(behaviour, name="other", recipes=("hq",))) == (256, None)
    assert _tuned(fake_config({"latency_seconds": 0.01}, name="another")) == (256, None)


def test_engines_that_share_a_gpu_take_no_tuning_and_cannot_be_tuned(tune_config, fake_config):
    work = open_work(tune_config())
    trials = [Trial(settings=on_fake(7), status="measured", accepted_tokens_per_device_second=10.0)]
    (tuning,) = make_tunings(work, "fake", trials, 0.02)
    write_tuning(work.config.root, tuning)
    shared = fake_config({"latency_seconds": 0.02}, placement={"gpus_per_engine": 0.5})
    assert _tuned(shared) == (256, None)
    with pytest.raises(ValueError, match="a trial has its GPU to itself"):
        tune_config(placement={"gpus_per_engine": 0.5})


def test_an_engine_on_a_server_has_no_gpu_here_and_no_settings_to_tune(fake_config):
    http = {"kind": "http", "model": "m", "endpoint": "http://node:8000/v1"}
    with pytest.raises(ValueError, match="kind 'http' computes on its server, and would keep GPUs idle"):
        fake_config(engine=http, placement={"gpus_per_engine": 1})
    with pytest.raises(ValueError, match="a server has its own"):
        TuneEngineConfig.model_validate(fake_config(engine=http).model_dump())


def test_an_engine_tuned_to_more_sequences_is_handed_more_parts_whatever_device_it_lies_on(tune_config):
    """A device tuned to 1,024 sequences and given the parts that fill 256 would stand three quarters idle."""
    work = open_work(tune_config())
    usual = parts_at_a_time(work, work.config.placement)
    assert most_parts_at_a_time(work) == usual
    for device, seqs in (("H200", 1024), ("L4", 64)):
        trials = [Trial(settings=on_fake(seqs), status="measured", accepted_tokens_per_device_second=10.0)]
        write_tuning(work.config.root, *make_tunings(work, device, trials, 0.02))
    assert most_parts_at_a_time(work) == 4 * (usual - 1) + 1
    off = open_work(tune_config(placement={"use_tuning": False}))
    assert most_parts_at_a_time(off) == usual
    as_set = open_work(tune_config(placement={"parts_in_flight": 2}))
    assert most_parts_at_a_time(as_set) == 2


def _tuned(config):
    """Make a set and return (sequences at once, the tuning its manifest names)."""
    work = open_work(config)
    work.claim()

    async def everything():
        worker = RephraseWorker(work)
        try:
            await asyncio.gather(*(worker.make_part(part) for part in range(work.num_parts)))
        finally:
            await worker.close()
        return worker

    worker = asyncio.run(everything())
    finish_work(work)
    _, manifest = open_synthetic(config.root, config.name)
    assert manifest["tunings"] == ([worker.tuning] if worker.tuning else [])
    return worker.placement.num_seqs, worker.tuning


def test_documents_of_other_lengths_have_other_settings(tune_config, make_corpus):
    work = open_work(tune_config())
    trials = [Trial(settings=on_fake(7), status="measured", accepted_tokens_per_device_second=10.0)]
    (tuning,) = make_tunings(work, "fake", trials, 0.02)
    root = work.config.root
    write_tuning(root, tuning)
    make_corpus(root, ["short text of few words " * 200] * 8, name="long")
    other = open_work(tune_config(corpus="long"))
    found = [
        find_tuning(root, each.config.engine, each.model.hash, "fake", 1, each.recipes, each.sources[0])
        for each in (work, other)
    ]
    assert found == [tuning, None]
    assert length_distance(length_histogram(work.sources[0]), length_histogram(other.sources[0])) == 1.0


def test_settings_of_two_gpus_are_not_taken_for_one(tune_config):
    """Twice the memory holds sequences that one GPU does not."""
    work = open_work(tune_config())
    trials = [measured(20.0, seqs=1024, tensor_parallel=2), measured(10.0, seqs=256, tensor_parallel=1)]
    tunings = make_tunings(work, "fake", trials, 0.02)
    assert [tuning.settings.max_num_seqs for tuning in tunings] == [1024, 256]
    for tuning in tunings:
        write_tuning(work.config.root, tuning)
    found = [
        find_tuning(work.config.root, work.config.engine, work.model.hash, "fake", gpus, work.recipes, work.sources[0])
        for gpus in (1, 2, 4)
    ]  # fmt: skip
    assert found == [tunings[1], tunings[0], None]


def test_nothing_that_works_is_one_sentence_with_the_engines_words(tune_config):
    trials = [
        Trial(settings=on_fake(7), status="failed", detail="no weights"),
        Trial(settings=on_fake(8), status="skipped", detail="settings that need less ran out of memory"),
    ]
    with pytest.raises(UserError, match=r"none of 2 settings worked \(no weights\)"):
        make_tunings(open_work(tune_config()), "fake", trials, 0.02)


def test_a_file_that_is_no_tuning_is_named(tune_config, tmp_path):
    work = open_work(tune_config())
    (tmp_path / "tunings").mkdir()
    (tmp_path / "tunings" / "x.json").write_text("{}")
    with pytest.raises(UserError, match=r"x.json is no tuning"):
        RephraseWorker(work)


def test_what_a_person_has_set_stays():
    placement = RephrasePlacement(gpus_per_engine=1, max_num_batched_tokens=1024)
    tuned = tuned_placement(placement, settings(512, 8192, 0.85))
    assert (tuned.max_num_seqs, tuned.max_num_batched_tokens, tuned.gpu_memory_utilization) == (
        512,
        1024,
        0.85,
    )


def test_the_plan_counts_trials(tune_config):
    plan = plan_tuning(tune_config())
    assert (plan.facts["trials"], plan.finished) == (15, False)
