"""An object store that goes away in the middle of a set: for a while, and for good."""

import asyncio
import contextlib
import threading
import time

import pytest

from synth import storage
from synth.errors import UserError
from synth.ledger import missing_parts, open_synthetic
from synth.rephrase import finish_work, open_work
from synth.storage import read_json, read_parquet, study_path, write_json_atomic
from synth.worker import RephraseWorker
from tests.assets.object_store import failing_store
from tests.synth.conftest import text_of


@pytest.fixture
def root(request):
    """A study of this test alone: all servers of one process share what they hold."""
    return f"s3://bucket/{request.node.name}"


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client's own attempts would only take time here
    with failing_store() as store:
        yield store


def make(work, done=lambda part: None):
    """Make the missing parts one after the other; say so when one is done."""

    async def everything():
        worker = RephraseWorker(work)
        try:
            for part in missing_parts(work.directory, work.num_parts):
                await worker.make_part(part)
                done(part)
        finally:
            await worker.close()

    asyncio.run(everything())


def test_a_store_that_is_away_for_a_while_costs_time_and_nothing_else(
    store, root, fake_config, make_corpus, natural, monkeypatch
):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (0.1,) * 100)
    make_corpus(root, [text_of(number) for number in range(12)])
    returned = []

    def comes_back():
        time.sleep(0.5)
        store.up()
        returned.append(True)

    def goes_away(part):
        if part == 0:
            store.down()
            threading.Thread(target=comes_back).start()

    work = open_work(fake_config(root=root, name="disturbed"))
    work.claim()
    make(work, goes_away)
    assert returned, "it was away while parts were made"
    finish_work(work)
    make_corpus(natural, [text_of(number) for number in range(12)], name="again")
    calm = open_work(fake_config(corpus="again"))
    calm.claim()
    make(calm)
    parts, _ = open_synthetic(root, "disturbed")
    assert [read_parquet(part) for part in parts] == [
        read_parquet(calm.directory / part.name) for part in parts
    ]


def test_a_store_that_stays_away_ends_in_one_sentence_and_what_is_done_stays_done(
    store, root, fake_config, make_corpus, monkeypatch
):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (0.0, 0.0))
    make_corpus(root, [text_of(number) for number in range(12)])
    work = open_work(fake_config(root=root))
    work.claim()

    def goes_away(part):
        if part == 1:
            store.down()

    try:
        with pytest.raises((OSError, UserError), match="the store does not answer: EndpointConnectionError"):
            make(work, goes_away)
    finally:
        with contextlib.suppress(OSError):
            store.up()
    assert missing_parts(work.directory, work.num_parts) == [2]
    make(work)
    assert finish_work(work)["rows"] == 24


def test_only_what_may_pass_is_tried_again(store, root, monkeypatch):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (10_000.0,))  # a second attempt would never come
    with pytest.raises(FileNotFoundError):
        read_json(study_path(root, "nothing.json"))
    path = study_path(root, "torn.parquet")
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(Exception, match=r"(?i)parquet"):
        read_parquet(path)
    write_json_atomic(study_path(root, "there.json"), [1])
    assert read_json(study_path(root, "there.json")) == [1]
