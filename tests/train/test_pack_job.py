"""`pack_tokens` on a real Ray: the same bytes as piece by piece, kills survived, a broken input told in one sentence."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from synth.errors import UserError
from train.config import PackConfig
from train.job import pack_tokens

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
# On a busy machine Ray's agents need longer than the 30 s after which the raylet gives up on itself.
PATIENT_RAY = {"RAY_agent_register_timeout_ms": "300000", "RAY_raylet_start_wait_time_s": "300"}
DRIVER = """
import sys
import ray
from train.config import PackConfig
from train.job import pack_tokens

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    pack_tokens(PackConfig.model_validate_json(sys.argv[1]))
"""


def config_of(root: Path) -> PackConfig:
    return PackConfig(
        root=str(root),
        tokenizer={"vocab_size": 400},
        sources={"natural": {"corpus": "natural"}},
        evaluate_on=("natural",),
        sequence_length=32,
    )


def files_of(root: Path) -> dict[str, bytes]:
    directory = root / "packed" / "packed"
    found = {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
    manifest = json.loads(found["manifest.json"])
    del manifest["provenance"]
    return found | {"manifest.json": json.dumps(manifest).encode()}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [
        f"document {number} " + f"says {number * 7} words about {number % 13}, " * (number % 90)
        for number in range(4000)
    ]


@pytest.fixture
def study(tmp_path, texts, write_corpus) -> Path:
    write_corpus(
        str(tmp_path), "natural", texts[200:], {"a": texts[:100], "b": texts[100:200]}, documents_per_part=40
    )
    return tmp_path


@pytest.fixture
def reference(tmp_path_factory, texts, write_corpus, pack) -> dict[str, bytes]:
    """The files of the same set, packed piece by piece in this process."""
    root = tmp_path_factory.mktemp("reference")
    write_corpus(
        str(root), "natural", texts[200:], {"a": texts[:100], "b": texts[100:200]}, documents_per_part=40
    )
    pack(config_of(root))
    return files_of(root)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT_RAY.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False)
        yield
        ray.shutdown()


def test_a_set_packed_on_ray_has_the_same_bytes(study, reference, cluster, capfd, monkeypatch):
    monkeypatch.chdir(study.parent)
    config = config_of(study).model_copy(
        update={"root": study.name}
    )  # relative to the driver, not to the workers
    manifest = pack_tokens(config)
    assert files_of(study) == reference
    assert manifest["sources"]["natural"]["num_documents"] == 3800
    assert "[pack_tokens] 95/95 shards, 100 %" in capfd.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    assert pack_tokens(config) == manifest
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before


def test_a_damaged_input_is_one_sentence_and_mended_it_goes_on(study, reference, cluster):
    path = sorted((study / "corpora" / "natural" / "train").iterdir())[50]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"part-00050-of-00095\.parquet cannot be read") as caught:
        pack_tokens(config_of(study))
    assert type(caught.value) is UserError
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    pack_tokens(config_of(study))
    assert files_of(study) == reference


def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(study, reference):
    ledger = study / "packed" / "packed" / "sources" / "natural" / "ledger"
    done: dict[str, int] = {}
    for moment in (10, 60):
        now = ledgers_after_kill(
            study, lambda moment=moment: ledger.exists() and len(list(ledger.glob("*.json"))) >= moment
        )
        assert done.items() <= now.items()  # no shard done was done again
        done = now
    assert 10 <= len(done) < 95
    assert start(study).wait(timeout=300) == 0
    assert files_of(study) == reference
    assert done.items() <= stamps(ledger).items()


def start(study: Path) -> subprocess.Popen[bytes]:
    script = study.parent / "driver.py"
    script.write_text(DRIVER)
    environment = os.environ | PATIENT_RAY | {"PYTHONPATH": str(REPOSITORY)}
    with (study.parent / "driver.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, script, config_of(study).model_dump_json()],
            env=environment,
            stderr=log,
            stdout=log,
        )


def stamps(ledger: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}


def ledgers_after_kill(study: Path, moment: Callable[[], bool]) -> dict[str, int]:
    """Run the job, SIGKILL it and its Ray when `moment()` comes, and return its ledger entries with their times."""
    driver = start(study)
    deadline = time.monotonic() + 300
    while not moment() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    processes = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    driver.wait()
    psutil.wait_procs(processes, timeout=60)
    return stamps(study / "packed" / "packed" / "sources" / "natural" / "ledger")
