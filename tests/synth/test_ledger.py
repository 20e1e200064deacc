import json

import pytest

from synth.errors import IncompleteArtefact, UserError
from synth.identity import claim_directory, finish
from synth.ledger import (
    LedgerEntry,
    Tally,
    entry_path,
    missing_parts,
    open_synthetic,
    read_entries,
    read_entry,
    summarise,
    synthetic_directory,
    write_entry,
)
from synth.storage import write_bytes_atomic


def tally(**counts):
    values = {
        "rows": 10,
        "kept": 6,
        "rejected": 3,
        "quarantined": 1,
        "reasons": {"refusal": 3, "killed_engine": 1},
    }
    return Tally(
        **values | {"completion_tokens": 1000, "accepted_tokens": 600, "prompt_tokens": 5000} | counts
    )


def entry(part, **fields):
    values = {
        "part": part, "documents": 5, "recipes": {"hq": tally(), "qa": tally(reasons={"refusal": 4})}, "sha256": "0" * 64, "bytes": 100,
        "prompt_format": "plain", "engine_version": "fake 1", "device_seconds": 30.0, "engine_start_seconds": 0.5,
        "engine_deaths": 1, "retries": 2, "lost_attempts": 3, "lost_device_seconds": 4.0, "wall_seconds": 31.0, "quarantined": [],
    }  # fmt: skip
    return LedgerEntry(**values | fields)


@pytest.fixture
def directory(tmp_path):
    return synthetic_directory(str(tmp_path), "rephrased")


def test_what_is_missing_is_what_has_no_entry(directory):
    assert missing_parts(directory, 3) == [0, 1, 2]
    write_entry(directory, 3, entry(1))
    assert missing_parts(directory, 3) == [0, 2]
    assert entry_path(directory, 1, 3).name == "part-00001-of-00003.json"
    assert missing_parts(directory, 4) == [0, 1, 2, 3], "entries of another division do not count"


def test_an_entry_comes_back_as_it_was_written(directory):
    write_entry(
        directory, 2, entry(1, quarantined=[{"row": "d/0/hq/0", "reason": "killed_engine", "detail": "x"}])
    )
    assert read_entry(directory, 1, 2) == entry(
        1, quarantined=[{"row": "d/0/hq/0", "reason": "killed_engine", "detail": "x"}]
    )
    assert read_entry(directory, 0, 2) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"part": 0}', b"\xff\xfe"])
def test_an_entry_that_cannot_be_read_is_named(directory, content):
    write_bytes_atomic(entry_path(directory, 0, 1), content)
    with pytest.raises(
        UserError,
        match=r"part-00000-of-00001.json is not a ledger entry .*delete it and run rephrase_corpus again",
    ):
        list(read_entries(directory, 1))


def test_totals_are_sums_over_entries_and_rates_follow_from_them():
    summary = summarise([entry(0), entry(1, device_seconds=90.0, engine_version="fake 2")])
    assert (
        summary["documents"],
        summary["rows"],
        summary["kept"],
        summary["rejected"],
        summary["quarantined"],
    ) == (10, 40, 24, 12, 4)
    assert summary["recipes"]["hq"]["rows"] == 20
    assert summary["reasons"] == {"refusal": 14, "killed_engine": 2}
    assert summary["device_seconds"] == 120.0
    assert summary["accepted_tokens_per_device_second"] == pytest.approx(2400 / 120)
    assert summary["device_hours_per_billion_accepted_tokens"] == pytest.approx(120 / 3600 / (2400 / 1e9))
    assert summary["engine_versions"] == ["fake 1", "fake 2"]
    assert (summary["engine_deaths"], summary["retries"]) == (2, 4)


def test_rates_nobody_measured_are_absent_not_zero():
    nothing = summarise([entry(0, recipes={"hq": tally(accepted_tokens=0)})])
    assert nothing["accepted_tokens_per_device_second"] is None
    assert nothing["device_hours_per_billion_accepted_tokens"] is None


def test_tallies_add_up_field_by_field():
    total = tally() + tally(reasons={"refusal": 1, "truncated": 2}, rows=5, kept=5)
    assert (total.rows, total.kept) == (15, 11)
    assert total.reasons == {"refusal": 4, "killed_engine": 1, "truncated": 2}
    assert tally() + Tally() == tally()


def test_a_set_opens_when_it_is_finished_and_whole(directory, tmp_path):
    identity = claim_directory(directory, "synthetic", {}, {})
    for part in range(2):
        write_bytes_atomic(directory / f"part-0000{part}-of-00002.parquet", b"x")
    with pytest.raises(IncompleteArtefact, match="run rephrase_corpus first"):
        open_synthetic(str(tmp_path), "rephrased")
    finish(directory, identity, parts=2)
    parts, manifest = open_synthetic(str(tmp_path), "rephrased")
    assert [part.name for part in parts] == ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"]
    assert manifest["parts"] == 2
    parts[1].unlink()
    with pytest.raises(UserError, match=r"has lost 1 of 2 parts \(part-00001-of-00002.parquet\)"):
        open_synthetic(str(tmp_path), "rephrased")


def test_ten_thousand_finished_parts_are_listed_in_no_time(directory, tmp_path):
    import time

    ledger = tmp_path / "synthetic" / "rephrased" / "ledger"
    ledger.mkdir(parents=True)
    content = json.dumps(entry(0).model_dump(mode="json"))
    for part in range(10_000):
        (ledger / f"part-{part:05d}-of-10001.json").write_text(content)
    began = time.monotonic()
    assert missing_parts(directory, 10_001) == [10_000]
    assert time.monotonic() - began < 10
