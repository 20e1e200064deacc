"""`build_corpus` on a real Ray: the same bytes as without it, kills survived, a broken input told in one sentence."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from synth.config import CorpusConfig
from synth.corpus import CorpusBuild, open_corpus
from synth.errors import UserError
from synth.job import build_corpus

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("numpy", "hypothesis", "yaml")


def docstrings_config(root) -> CorpusConfig:
    return CorpusConfig(
        root=str(root), sources=({"kind": "docstrings", "packages": PACKAGES},), documents_per_part=32
    )


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The corpus built task by task in this process."""
    config = docstrings_config(tmp_path_factory.mktemp("reference"))
    build = CorpusBuild(config)
    for stage in build.stages():
        for task in stage.todo:
            stage.work(task)
    build.finish()
    return Path(config.root) / "corpora" / "natural"


@pytest.fixture(scope="module")
def cluster():
    start_ray()
    yield
    ray.shutdown()


def start_ray() -> None:
    # On a busy machine a raylet gives its agents 15 s to start, then ends itself, whatever Ray is told to wait for.
    for _ in range(10):
        try:
            ray.init(num_cpus=2, include_dashboard=False)
        except Exception as error:  # Ray raises nothing narrower
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
        else:
            return
    raise RuntimeError("Ray did not start")


def test_a_corpus_built_on_ray_has_the_same_bytes(tmp_path, reference, cluster, capfd):
    config = docstrings_config(tmp_path)
    manifest = build_corpus(config)
    directory = tmp_path / "corpora" / "natural"
    assert files_of(directory) == files_of(reference)
    assert json.loads((reference / "manifest.json").read_text())["hash"] == manifest["hash"]
    assert "[build_corpus: read]" in capfd.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    (directory / ".work" / "read").mkdir(parents=True)  # as after a kill just behind the manifest
    assert build_corpus(config) == manifest
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} | {directory: 0} == before | {
        directory: 0
    }


def test_a_broken_input_is_the_same_sentence_on_a_worker(tmp_path, cluster):
    (tmp_path / "good.jsonl").write_text(json.dumps({"text": "The quick reader of the row. " * 20}) + "\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    sources = ({"kind": "files", "paths": [str(tmp_path / "*.jsonl*")]},)
    with pytest.raises(
        UserError, match=r"^\S+/cut\.jsonl\.gz cannot be read to its end \(.*\): replace the file"
    ) as caught:
        build_corpus(CorpusConfig(root=str(tmp_path), sources=sources))
    assert type(caught.value) is UserError
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(1800)  # three starts of Ray
def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(tmp_path, reference):
    config = docstrings_config(tmp_path)
    directory = tmp_path / "corpora" / "natural"
    kill_in_read = ledgers_after_kill(tmp_path, config, lambda: any(directory.glob(".work/read/*.json")))
    kill_in_write = ledgers_after_kill(tmp_path, config, lambda: any(directory.glob("train/*.parquet")))
    assert kill_in_read
    if not (directory / "manifest.json").exists():
        assert kill_in_read.items() <= kill_in_write.items()  # no task done was done again
    assert start(tmp_path, config).wait() == 0
    assert files_of(directory) == files_of(reference)
    assert open_corpus(config.root, config.name)[1]["documents_kept"] > 1000


def start(scratch: Path, config: CorpusConfig) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, __file__, config.model_dump_json()]
    with (scratch / "driver.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stderr=log, stdout=log)


def ledgers_after_kill(scratch: Path, config: CorpusConfig, moment) -> dict[str, int]:
    """Run the job, SIGKILL it when `moment()` comes, and return its ledger entries with their times."""
    driver = start(scratch, config)
    while not moment() and driver.poll() is None:
        time.sleep(0.005)
    assert moment() or not driver.poll(), (scratch / "driver.log").read_text()[-3000:]
    processes = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
    driver.kill()
    driver.wait()
    for process in psutil.wait_procs(processes, timeout=20)[1]:
        process.kill()  # an agent of Ray's that has not yet noticed that its driver has gone
    ledgers = (scratch / "corpora" / "natural" / ".work").rglob("*.json")
    return {path.as_posix(): path.stat().st_mtime_ns for path in ledgers}


if __name__ == "__main__":  # the driver that the test above kills
    start_ray()
    build_corpus(CorpusConfig.model_validate_json(sys.argv[1]))
