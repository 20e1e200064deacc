"""Jobs through `ray job submit`, on a cluster with token authentication and the dashboard on, which has no copy of us."""

import json
import re
import zipfile

import pytest

from tests.assets.ray_head import ROOT, ray_head, status_of, wait_until
from tests.assets.study_results import results_of
from tests.cluster.studies import data_study

pytestmark = pytest.mark.timeout(1500)

DONE = ("SUCCEEDED", "FAILED", "STOPPED")


@pytest.fixture(scope="module")
def cluster():
    """Start a head node on loopback, in a directory without the project."""
    with ray_head("--num-cpus=2") as head:
        yield head


@pytest.mark.slow
def test_a_stranger_without_the_token_is_turned_away(cluster):
    assert status_of(f"{cluster.dashboard}/api/jobs/") in (401, 403)


@pytest.mark.slow
def test_a_mistake_fails_the_job_with_its_sentence_in_the_log_and_exit_code_2(cluster, tmp_path):
    done = cluster.submit(
        "rayjobs.fit_laws", "--runs", str(tmp_path / "nothing.csv"), options=("--submission-id", "mistake")
    )
    assert done.returncode != 0
    assert "nothing.csv" in done.stdout
    assert "Traceback" not in done.stdout
    job = cluster.job("mistake")
    assert (job["status"], job["driver_exit_code"]) == ("FAILED", 2)


@pytest.mark.slow
def test_a_step_that_can_never_be_placed_is_refused_with_one_sentence(cluster, tmp_path):
    argv = data_study(tmp_path / "study", gpus=1, latency_seconds=0.0, documents=24)
    done = cluster.submit("rayjobs.run_study", *argv, options=("--submission-id", "too-large"))
    # Ray shows the end of a failed job's log once more.
    (sentence,) = {line.strip() for line in done.stdout.splitlines() if line.startswith("run_study: ")}
    assert sentence.startswith(
        "run_study: 2/3 rephrase_corpus rephrased: an engine takes 1 x 1 CPU + 1 GPU at once (placement.cpus_per_engine, "
        "placement.gpus_per_engine), and this cluster cannot ever hold that: its nodes are 1 x 2 CPU, and "
    )
    assert cluster.job("too-large")["driver_exit_code"] == 2
    assert (tmp_path / "study/corpora/natural/manifest.json").exists(), "what could be done was done"


@pytest.mark.slow
def test_a_detached_study_is_watched_stopped_and_resumed(cluster, tmp_path):
    """The submitter is long gone; the job says where it is, can be stopped, and goes on where it was."""
    root = tmp_path / "study"
    argv = data_study(root, latency_seconds=0.6)
    options = (
        "--metadata-json", json.dumps({"owner": "a test"}),
        "--runtime-env-json", json.dumps({"env_vars": {"OPENBLAS_NUM_THREADS": "1"}}),
    )  # fmt: skip
    job = cluster.submit_detached("rayjobs.run_study", *argv, options=options)
    ledger = lambda: sorted(root.glob("synthetic/*/ledger/*.json"))  # noqa: E731

    def shows_parts():
        assert cluster.status(job) not in DONE, cluster.logs(job)[-4000:]
        return re.fullmatch(
            r"rephrase_corpus: [1-4]/\d parts, .*accepted tokens/s",
            cluster.job(job)["metadata"].get("progress", ""),
        )

    wait_until(shows_parts, 120, lambda: f"{cluster.job(job)} {cluster.logs(job)[-3000:]}")
    metadata = cluster.job(job)["metadata"]
    assert metadata["owner"] == "a test"
    assert (metadata["study"], metadata["step"]) == (str(root), "2/3 rephrase_corpus rephrased")
    assert cluster.ray("job", "stop", job).returncode == 0
    wait_until(lambda: cluster.status(job) == "STOPPED", 60)
    done_before = {path: path.stat().st_mtime_ns for path in ledger()}
    assert done_before
    again = cluster.submit("rayjobs.run_study", *argv, options=("--submission-id", "resumed"))
    assert again.returncode == 0, again.stdout[-4000:]
    assert "[study] 1/3 build_corpus natural: finished already" in again.stdout
    assert len(ledger()) > len(done_before), "it was stopped in the middle"
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before, (
        "finished parts were made again"
    )
    assert (root / "packed/packed/manifest.json").exists()


@pytest.mark.slow
def test_a_fit_runs_as_a_job_of_its_own(cluster, tmp_path):
    """A step that needs no Ray runs under `ray job submit` too."""
    runs = tmp_path / "runs.csv"
    rows = [
        (n, d, 1.7 + 400 / n**0.34 + 410 / d**0.28) for n in (1e7, 1e8, 1e9) for d in (1e8, 1e9, 1e10, 1e11)
    ]
    runs.write_text(
        "num_params,train_tokens,loss\n" + "".join(f"{n:.0f},{d:.0f},{loss:.6f}\n" for n, d, loss in rows)
    )
    done = cluster.submit(
        "rayjobs.fit_laws", "--runs", str(runs), "--root", str(tmp_path / "study"), "--bootstrap_samples", "20",
        "--law", "chinchilla",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert list(tmp_path.glob("study/laws/*/fit.json"))


def test_what_is_uploaded_is_the_four_packages_and_small(tmp_path):
    """Lists the package Ray would make of the checkout, with the ignore files as it reads them."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(
        str(ROOT), package, logger=None, include_gitignore=True, excludes=get_runtime_env_default_excludes()
    )
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    assert package.stat().st_size < 2_000_000
    assert {"synth/job.py", "rayjobs/configs/demo.toml", "synth/recipes/hq.toml"} <= set(names)
    unwanted = (
        "tests/",
        "docs/",
        ".git/",
        ".venv",
        ".tools",
        "studies/",
        "benchmarks/",
        "requirements/",
        "deploy/",
    )
    assert not [name for name in names if name.startswith(unwanted)]


@pytest.mark.drill
def test_the_demo_study_gives_the_same_numbers_when_submitted_and_resubmitting_it_changes_nothing(
    cluster, shrunk_demo, finished_demo
):
    argv, root = shrunk_demo
    done = cluster.submit("rayjobs.run_study", *argv)
    assert done.returncode == 0, done.stdout[-4000:]
    assert (root / "report" / "index.html").exists()
    assert f"report: {root}/report/index.html" in done.stdout
    records = {path: path.stat().st_mtime_ns for path in root.glob("runs/*/record.json")}
    assert results_of(root) == results_of(finished_demo)
    again = cluster.submit("rayjobs.run_study", *argv)
    assert again.returncode == 0, again.stdout[-4000:]
    assert "write_report report: finished already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in root.glob("runs/*/record.json")} == records
