"""Engines that fail for a while: what waits, what ends the job, and what is asked again the next time."""

import asyncio

import pytest

from synth.engines import outage, retries
from synth.engines.factory import open_engine
from synth.errors import UserError
from synth.estimate import plan_rephrase
from synth.ledger import entry_path, missing_parts, open_synthetic, parts_to_retry, read_entries
from synth.rephrase import finish_work, open_work
from synth.storage import read_parquet
from synth.worker import RephraseWorker


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    for name in ("RETRY_SECONDS", "SERVER_RETRY_SECONDS", "TIMED_OUT_RETRY_SECONDS"):
        monkeypatch.setattr(retries, name, (0.0,))
    monkeypatch.setattr(outage, "PROBE_SECONDS", (0.02,))


def make(config, parts=None, engine=None):
    """Make parts of a set as an actor does; return (its work, the engine)."""
    work = open_work(config)
    work.claim()
    engine = engine or open_engine(config.engine, config.placement, work.model)

    async def everything():
        worker = RephraseWorker(work, engine)
        todo = (
            [*missing_parts(work.directory, work.num_parts), *parts_to_retry(work.directory, work.num_parts)]
            if parts is None
            else parts
        )
        try:
            await worker.make_parts(todo)
        finally:
            await worker.close()

    asyncio.run(everything())
    return work, engine


def mended(engine):
    """The same engine, of the same name and identity, after somebody has mended it."""
    engine.behaviour = engine.behaviour.model_copy(update={"hopeless_fraction": 0.0, "outage_after": None})
    return engine


def rows_of(work):
    names = [f"part-{at:05d}-of-{work.num_parts:05d}.parquet" for at in range(work.num_parts)]
    return [row for name in names for row in read_parquet(work.directory / name).to_pylist()]


def test_a_server_that_is_away_for_a_while_costs_time_and_no_row(fake_config):
    disturbed = {"outage_after": 10, "outage_seconds": 0.3, "latency_seconds": 0.002}
    work, _ = make(fake_config(disturbed, name="disturbed", placement={"max_num_seqs": 4}))
    assert finish_work(work)["quarantined"] == 0
    calm, _ = make(fake_config(name="calm"))
    different = {"engine_version", "model_hash"}
    assert [{k: v for k, v in row.items() if k not in different} for row in rows_of(work)] == [
        {k: v for k, v in row.items() if k not in different} for row in rows_of(calm)
    ]


def test_a_server_that_stays_away_ends_the_job_and_leaves_no_half_part(fake_config):
    behaviour = {"outage_after": 20, "outage_seconds": 60.0, "latency_seconds": 0.002}
    config = fake_config(
        behaviour, placement={"max_num_seqs": 2, "parts_in_flight": 2, "outage_seconds": 0.1}
    )
    with pytest.raises(UserError, match=r"answered nobody for placement.outage_seconds = 0.1 s"):
        make(config)
    work = open_work(config)
    done = work.num_parts - len(missing_parts(work.directory, work.num_parts))
    assert 1 <= done < work.num_parts
    assert len(list(work.directory.glob("part-*"))) == done
    make(config, engine=mended(open_engine(config.engine, config.placement, work.model)))
    assert finish_work(work)["quarantined"] == 0


def test_rows_without_an_answer_are_asked_again_and_no_other_row_is_touched(fake_config):
    config = fake_config({"hopeless_fraction": 0.1, "refusal_fraction": 0.2}, samples_per_chunk=2)
    work, engine = make(config)
    before, first = rows_of(work), finish_work(work)
    lost = [at for at, row in enumerate(before) if row["verdict"] == "quarantined"]
    assert {tuple(before[at]["reject_reasons"]) for at in lost} == {("request_failed",)}
    entries = list(read_entries(work.directory, work.num_parts))
    again = parts_to_retry(work.directory, work.num_parts)
    assert 1 <= len(again) < work.num_parts, "a part without such rows is left alone"
    untouched = {
        part: entry_path(work.directory, part, 6).stat().st_mtime_ns for part in range(6) if part not in again
    }

    retrying = config.model_copy(update={"retry_quarantined": True})
    plan = plan_rephrase(retrying)
    assert (plan.finished, plan.facts["parts with rows to ask for again"]) == (False, len(again))
    assert plan_rephrase(config).finished, "it must be asked for"
    answered = engine._answered_in_all
    make(retrying, again, mended(engine))
    assert engine._answered_in_all == answered + len(lost), "rows that had an answer are not asked for again"
    after, second = rows_of(work), finish_work(work)
    assert [row for at, row in enumerate(after) if at not in lost] == [
        row for at, row in enumerate(before) if at not in lost
    ]
    assert not any(row["verdict"] == "quarantined" for row in after)
    assert {part: entry_path(work.directory, part, 6).stat().st_mtime_ns for part in untouched} == untouched
    assert (second["rows"], second["quarantined"], second["hash"]) == (first["rows"], 0, first["hash"])
    assert second["finish_reasons"] == {"stop": len(after)}
    assert second["device_seconds"] >= first["device_seconds"], "what was spent before is still counted"
    assert second["retries"] == first["retries"] == sum(entry.retries for entry in entries)
    assert parts_to_retry(work.directory, work.num_parts) == []


def test_a_row_that_kills_is_not_asked_again(fake_config, make_corpus, tmp_path):
    root = str(tmp_path / "poisoned")
    make_corpus(root, [f"Buoy number {n} is red and lit. {'☠' if n == 3 else ''}" for n in range(8)])
    work, engine = make(fake_config({"poison": "☠"}, root=root, recipes=("hq",)))
    assert finish_work(work)["reasons"] == {"killed_engine": 1}
    starts = engine.starts
    make(fake_config({"poison": "☠"}, root=root, recipes=("hq",), retry_quarantined=True), range(2), engine)
    assert engine.starts == starts


def test_a_part_that_is_not_what_its_entry_says_is_not_built_upon(fake_config):
    config = fake_config({"hopeless_fraction": 0.2}, retry_quarantined=True)
    work, engine = make(config.model_copy(update={"retry_quarantined": False}))
    part = parts_to_retry(work.directory, work.num_parts)[0]
    path = work.directory / f"part-0000{part}-of-00006.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"is not what its ledger entry says: delete both"):
        make(config, [part], mended(engine))


def test_a_kill_while_a_part_is_replaced_leaves_it_missing_and_not_wrong(fake_config, monkeypatch):
    config = fake_config({"hopeless_fraction": 0.2})
    work, engine = make(config)
    finish_work(work)
    part = parts_to_retry(work.directory, work.num_parts)[0]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("synth.part_writer.write_fingerprints", killed)
        with pytest.raises(KeyboardInterrupt):
            make(config.model_copy(update={"retry_quarantined": True}), [part], mended(engine))
    assert missing_parts(work.directory, work.num_parts) == [part]
    make(config, engine=engine)
    assert finish_work(work)["rows"] == 48
    open_synthetic(config.root, config.name)


def test_one_killer_in_a_hundred_rows_is_borne_in_a_part_of_any_size(fake_config):
    config = fake_config()
    assert [config.allowed_engine_deaths(rows) for rows in (10, 256, 4096, 8192)] == [32, 32, 512, 1024]
    assert fake_config(max_engine_deaths_per_part=5).allowed_engine_deaths(8192) == 5


def test_a_part_of_the_recommended_size_with_forty_killers_is_made(fake_config, make_corpus, tmp_path):
    root = str(tmp_path / "poisoned")
    texts = [f"Buoy number {n} is red. {'☠' if n % 100 == 17 else ''}" for n in range(4096)]
    make_corpus(root, texts, documents_per_part=4096)
    config = fake_config({"poison": "☠"}, root=root, recipes=("hq",))
    work, _ = make(config)
    (entry,) = read_entries(work.directory, 1)
    assert (entry.total.rows, entry.total.quarantined) == (4096, 41)
    assert 82 <= entry.engine_deaths <= 512 * 0.9, "the default leaves some room"
    assert entry.lost_attempts > 41
