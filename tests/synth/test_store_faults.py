"""An object store that goes away in the middle of a set: for a while, and for good."""

import asyncio
import contextlib
import errno
import threading
import time

import aiohttp
import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from synth import storage
from synth.config import CorpusConfig
from synth.corpus import CorpusBuild, remove_intermediates
from synth.errors import UserError
from synth.ledger import missing_parts, open_synthetic
from synth.rephrase import finish_work, open_work
from synth.storage import StoreAway, read_json, read_parquet, study_path, write_json_atomic
from synth.worker import RephraseWorker
from tests.assets.object_store import failing_store
from tests.synth.conftest import text_of

ROOT = "s3://bucket/study"


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
    store, fake_config, make_corpus, natural, monkeypatch
):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (0.1,) * 100)
    make_corpus(ROOT, [text_of(number) for number in range(12)])
    returned = []

    def comes_back():
        time.sleep(0.5)
        store.up()
        returned.append(True)

    def goes_away(part):
        if part == 0:
            store.down()
            threading.Thread(target=comes_back).start()

    work = open_work(fake_config(root=ROOT, name="disturbed"))
    work.claim()
    make(work, goes_away)
    assert returned, "it was away while parts were made"
    finish_work(work)
    make_corpus(natural, [text_of(number) for number in range(12)], name="again")
    calm = open_work(fake_config(corpus="again"))
    calm.claim()
    make(calm)
    parts, _ = open_synthetic(ROOT, "disturbed")
    assert [read_parquet(part) for part in parts] == [
        read_parquet(calm.directory / part.name) for part in parts
    ]


def test_a_corpus_is_built_through_a_store_that_goes_away_at_every_stage(store, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (0.1,) * 100)
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(text_of(number, sentences=6))
    values = {"root": ROOT, "name": "built", "held_out_fraction": 0.2}
    sources = [{"kind": "files", "paths": [str(tmp_path)]}]
    build = CorpusBuild(CorpusConfig.model_validate(values | {"sources": sources}))
    stages = []
    for stage in build.stages():
        stages.append(stage.name)
        for task in stage.todo:
            store.down()
            back = threading.Timer(0.2, store.up)
            back.start()
            stage.work(task)
            back.join()
    assert stages == ["read", "merge", "index", "compare", "write"]
    manifest = build.finish()
    assert manifest["documents_kept"] + sum(manifest["dropped"].values()) == 40
    left = study_path(ROOT, "corpora", "built", ".work")
    write_json_atomic(left / "read" / "000000.json", {})  # a kill came between the manifest and their removal
    store.down()
    back = threading.Timer(0.2, store.up)
    back.start()
    remove_intermediates(build.config)
    back.join()
    assert not left.exists()


def test_a_store_that_stays_away_ends_in_one_sentence_and_what_is_done_stays_done(
    store, fake_config, make_corpus, monkeypatch
):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (0.0, 0.0))
    make_corpus(ROOT, [text_of(number) for number in range(12)])
    work = open_work(fake_config(root=ROOT))
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


def test_a_store_without_credentials_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (10_000.0,))  # a second attempt would never come

    def read():
        raise NoCredentialsError

    with pytest.raises(StoreAway, match="asks for credentials and there are none here: NoCredentialsError"):
        storage.patiently(study_path("memory://store"), read)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "Please reduce your request rate."),
        OSError(errno.EREMOTEIO, "We encountered an internal error."),
        aiohttp.ClientOSError(errno.ECONNREFUSED, "Cannot connect to host"),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
    ],
)
def test_a_store_that_is_busy_broken_or_not_there_is_asked_again(monkeypatch, error):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (0.0,))
    answers = iter([error, "the file"])

    def read():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert storage.patiently(study_path("memory://store"), read) == "the file"


def test_only_what_may_pass_is_tried_again(store, monkeypatch):
    monkeypatch.setattr(storage, "STORE_RETRY_SECONDS", (10_000.0,))  # a second attempt would never come
    with pytest.raises(FileNotFoundError):
        read_json(study_path(ROOT, "nothing.json"))
    path = study_path(ROOT, "torn.parquet")
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(Exception, match=r"(?i)parquet"):
        read_parquet(path)
    write_json_atomic(study_path(ROOT, "there.json"), [1])
    assert read_json(study_path(ROOT, "there.json")) == [1]
