"""Jobs through `ray job submit`, on a cluster with token authentication and the dashboard on, which has no copy of us."""

import json
import pkgutil
import re
import shlex
import zipfile
from pathlib import Path

import pytest

import rayjobs
from synth.config import CorpusConfig
from tests.assets.ray_head import ROOT, ray_head, status_of, wait_until
from tests.assets.simulated_study import SMALL, simulate_study
from tests.assets.study_results import results_of
from tests.assets.written_study import build
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


@pytest.mark.slow
def test_steps_are_chosen_run_and_done_again(cluster, tmp_path):
    """`--until`, `--only` and `--force`, as the pages show them."""
    root = tmp_path / "study"
    argv = data_study(root, latency_seconds=0.0, documents=24)
    until = cluster.submit("rayjobs.run_study", *argv, "--until", "rephrase")
    assert until.returncode == 0, until.stdout[-4000:]
    assert (root / "synthetic/rephrased/manifest.json").exists()
    assert not (root / "packed").exists()
    only = cluster.submit("rayjobs.run_study", *argv, "--only", "pack")
    assert "[study] 1/1 pack_tokens packed: " in only.stdout, only.stdout[-4000:]
    again = cluster.submit("rayjobs.run_study", *argv, "--only", "pack", "--force", "pack.packed")
    assert "[study] pack_tokens packed is done again: " in again.stdout, again.stdout[-4000:]
    (aside,) = root.glob("aside/*/packed/packed/manifest.json")
    assert json.loads(aside.read_text())["hash"] == json.loads((root / "packed/packed/manifest.json").read_text())["hash"]  # fmt: skip


def every_other_job(finished, made):
    """Return job -> argv for those no other test here submits: on a finished study, and on one with a corpus alone."""
    engine = ("--engine.kind", "fake", "--engine.model", "fake")
    target = ("--target_num_params", "200000", "--target_train_tokens", "2000000")
    plans = {
        "train_generator": (made, "--corpus", "natural"),
        "tune_engine": (made, "--corpus", "natural", "--recipes", "hq", *engine),
        "rephrase_corpus": (made, "--corpus", "natural", "--recipes", "hq", *engine),
        "pack_tokens": (made, "--sources", '{"natural": {"corpus": "natural"}}', "--evaluate_on", '["natural"]'),
        "sweep_learning_rates": (finished, "--models", '["12k"]', "--train_tokens", "65536"),
        "pretrain_models": (finished, "--name", "other", "--axes", '[{"models": ["12k"], "train_tokens": [65536]}]'),
        "search_mixture": (finished, "--name", "other", "--synthetic", '["hq"]', "--cells", '[{"model": "25k", "train_tokens": 524288}]'),
    }  # fmt: skip
    return {name: ("--root", *argv, "--dry-run") for name, argv in plans.items()} | {
        "build_corpus": ("--root", made, "--sources", '[{"kind": "docstrings", "packages": ["optuna"]}]', "--name", "other", "--max_documents", "24"),
        "recommend_mixture": ("--root", finished, "--name", "other", *target),
        "write_report": ("--root", finished, "--name", "other"),
        "compare_studies": (finished, finished, "--pairs", '{"hq": "qa"}', "--root", made),
        "study_status": tuple(data_study(f"{made}-not-begun")),
    }  # fmt: skip


@pytest.mark.slow
def test_every_other_job_runs_under_ray_job_submit(cluster, tmp_path):
    finished, made = tmp_path / "finished", tmp_path / "made"
    simulate_study(str(finished), SMALL | {"shares": (0.0, 1 / 3, 2 / 3, 1.0)}, bootstrap_samples=20)
    build(CorpusConfig.model_validate({"root": str(made), "sources": [{"kind": "docstrings", "packages": ["optuna"]}], "max_documents": 48}))  # fmt: skip
    jobs = every_other_job(str(finished), str(made))
    commands = [shlex.join(["python", "-m", f"rayjobs.{name}", *argv]) for name, argv in jobs.items()]
    script = tmp_path / "all.sh"  # one submission: each costs more than what most of these do
    script.write_text("\n".join(["set -e", *commands]))
    done = cluster.ray("job", "submit", "--working-dir", str(ROOT), "--", "bash", str(script))
    assert done.returncode == 0, done.stdout[-4000:]
    made_here = ("finished/recommendations/other.json", "finished/other/index.html", "made/comparison/comparison.json", "made/corpora/other/manifest.json")  # fmt: skip
    assert all((tmp_path / path).exists() for path in made_here)


def test_every_job_is_submitted_by_a_test_of_this_file():
    jobs = {name for _, name, _ in pkgutil.iter_modules(rayjobs.__path__) if "_" in name}
    text = Path(__file__).read_text()
    alone = {name for name in jobs if f'"rayjobs.{name}"' in text}
    # The one needs a generator that can answer recipes, the other a harness that is not installed; neither needs Ray for that.
    left = jobs - alone - every_other_job("finished", "made").keys()
    assert left == {"assess_generator", "evaluate_models"}


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
    assert package.stat().st_size < 14_500_000  # of which 12 MB are the weights of the shipped generator
    shipped = "synth/generators/docstrings-6m/model-00001-of-00002.safetensors"
    assert {"synth/job.py", "rayjobs/configs/demo.toml", "synth/recipes/hq.toml", shipped} <= set(names)
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
