"""What a person sees on the command line: help with units, one sentence for a mistake, exit code 2, flags that win."""

import errno
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow as pa
import pytest

import rayjobs
from rayjobs import cli, run_study, study
from synth.config import RephraseConfig
from synth.corpus import corpus_directory
from synth.documents import DOCUMENT_SCHEMA, document_id
from synth.identity import claim_directory, finish
from synth.model_source import write_card
from synth.storage import StoreAway, check_credentials, study_path, write_parquet_atomic

ROOT = Path(__file__).parent.parent.parent
JOBS = [name for _, name, _ in pkgutil.iter_modules(rayjobs.__path__) if "_" in name]
MINIMAL = ["--corpus", "natural", "--recipes", "hq", "--engine.model", "m"]


def job(name):
    return importlib.import_module(f"rayjobs.{name}").JOB


@pytest.mark.parametrize("name", JOBS)
def test_every_job_explains_every_field(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(f"rayjobs.{name}").main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for field in job(name).config.model_fields:
        assert f"--{field}" in text
    assert "--dry-run" in text


@pytest.mark.parametrize("name", JOBS)
def test_every_function_a_job_names_exists(name):
    for function in (job(name).plan, job(name).run):
        if ":" in function.__name__:
            assert callable(pkgutil.resolve_name(function.__name__))


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--corpous", "x"], "--corpous is not a flag of this job; did you mean --corpus?"),
        (["--config", "nowhere.toml"], "--config nowhere.toml: there is no such file."),
        (
            ["--config", f"{__file__}/nowhere.toml"],
            f"--config {__file__}/nowhere.toml: there is no such file.",
        ),
        (
            [*MINIMAL, "--max_reject_fraction", "1.5"],
            "max_reject_fraction: Input should be less than or equal to 1 (it is '1.5').",
        ),
        (
            [*MINIMAL, "--placement.engines", "0"],
            "placement.engines: Input should be greater than or equal to 1 (it is '0').",
        ),
        (
            ["--recipes", "hq", "--engine.model", "m"],
            "corpus is missing: give it in the file of --config or as --corpus.",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(argv, sentence, capsys):
    assert importlib.import_module("rayjobs.rephrase_corpus").main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"rephrase_corpus: {sentence}")


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.ENOSPC, "No space left on device"), StoreAway("the store does not answer")]
)  # fmt: skip
def test_a_disk_or_a_store_that_will_not_is_one_sentence_and_exit_code_2(error, capsys):
    def action():
        raise error

    assert cli.guarded("build_corpus", action) == 2
    assert capsys.readouterr().err == (
        f"build_corpus: {error}: mend the disk or the store, then run it again; what is done stays done.\n"
    )


def test_a_root_in_googles_store_without_credentials_is_refused_at_once(tmp_path, monkeypatch, capsys):
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert (
        importlib.import_module("rayjobs.rephrase_corpus").main([*MINIMAL, "--root", "gs://bucket/study"])
        == 2
    )
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("rephrase_corpus: root = 'gs://bucket/study' needs Google's credentials")


def test_an_address_of_a_stand_in_for_googles_store_needs_no_credentials(monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:4443")
    check_credentials("gs://bucket/study")


def test_a_file_of_ours_that_is_not_there_is_our_mistake():
    def action():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "templates/page.j2")

    with pytest.raises(FileNotFoundError):
        cli.guarded("write_report", action)


def test_an_unknown_key_in_a_file_is_named_with_its_path(tmp_path, capsys):
    file = tmp_path / "job.toml"
    file.write_text('corpus = "natural"\nrecipes = ["hq"]\nengine = {model = "m", modle = "x"}\nsede = 3\n')
    assert importlib.import_module("rayjobs.rephrase_corpus").main(["--config", str(file)]) == 2
    complaint = capsys.readouterr().err
    assert "engine.modle is not a field that exists" in complaint
    assert "sede is not a field that exists" in complaint


def test_flags_win_over_the_file_and_leave_its_neighbours(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text(
        'corpus = "a"\nrecipes = ["hq"]\n[engine]\nmodel = "m"\nmax_model_len = 64\n[placement]\nengines = 3\nthreads = 2\n'
    )
    config, options = cli.parse(
        job("rephrase_corpus"), ["--config", str(file), "--placement.engines", "5", "--corpus=b"]
    )
    assert isinstance(config, RephraseConfig)
    assert (config.corpus, config.placement.engines, config.placement.threads) == ("b", 5, 2)
    assert config.engine.max_model_len == 64
    assert not options.dry_run


def test_a_negative_number_is_a_value_not_a_flag():
    config, _ = cli.parse(job("pretrain_models"), [
        "--axes", '[{"models": ["98k"], "train_tokens": [1000]}]', "--run.optimizer.learning_rate_exponent", "-0.5",
    ])  # fmt: skip
    assert config.run.optimizer.learning_rate_exponent == -0.5


def test_the_environment_is_not_a_configuration(monkeypatch):
    monkeypatch.setenv("CORPUS", "from-the-environment")
    monkeypatch.setenv("SEED", "99")
    config, _ = cli.parse(job("rephrase_corpus"), MINIMAL)
    assert (config.corpus, config.seed) == ("natural", 0)


SHIPPED = sorted((ROOT / "rayjobs/configs").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_study_dry_runs_without_ray_and_says_what_it_takes(path, tmp_path):
    block = "import sys, runpy; sys.modules['ray'] = None; sys.argv = sys.argv[1:]; runpy.run_module('rayjobs.run_study', run_name='__main__')"
    argv = ["run_study", "--config", str(path), "--root", str(tmp_path / "study"), "--dry-run"]
    done = subprocess.run([sys.executable, "-c", block, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = tomllib.loads(path.read_text())
    config, _ = cli.parse(run_study.JOB, ["--config", str(path)])  # with every round spelled out
    for name, job in study.SECTIONS.items():
        assert (
            done.stdout.count(f"\n{job.name} -> ") == len(getattr(config, name)) >= len(written.get(name, {}))
        )
    total = done.stdout[done.stdout.index("\nall steps that are left -> ") :]
    for amount in ("tokens generated", "tokens trained on", "FLOP of generation", "FLOP of training",
                   "device-hours of generation", "device-hours of training"):  # fmt: skip
        assert re.search(rf"  {amount} +[0-9]", total), f"{amount} is not known"
    assert ("price, USD" in total) == ("prices" in written)
    assert "unknown" not in total
    assert not (tmp_path / "study").exists(), "a dry run leaves nothing behind"


def test_there_is_a_study_for_each_purpose():
    assert {path.stem for path in SHIPPED} >= {
        "demo",
        "single_gpu",
        "paper",
        "generator_ablation",
        "collapse",
    }


def test_the_papers_study_has_the_papers_conditions():
    config, _ = cli.parse(run_study.JOB, ["--config", "rayjobs/configs/paper.toml"])
    grid = config.pretrain["grid"]
    mixtures = {(source, share) if share else None for source in grid.synthetic for share in grid.shares}
    assert len(mixtures) == 10
    budgets, sizes = grid.axes
    assert (budgets.models, budgets.train_tokens[0], budgets.train_tokens[-1]) == (("1b",), 10**9, 2 * 10**11)
    assert (sizes.train_tokens, sizes.models[0], sizes.models[-1]) == ((5 * 10**10,), "100m", "3b")
    assert config.laws["laws"].hold_out_largest
    assert config.rephrase["hq"].engine.model == "mistralai/Mistral-7B-Instruct-v0.1"


def test_a_curve_has_the_same_bits_however_many_threads_there_are():
    script = (
        "import rayjobs, hashlib, numpy as np; from tune.optimum import fit_curve\n"
        "fits = [fit_curve([0, 1 / 3, 2 / 3, 1], 5 + np.random.default_rng(n).random(4)) for n in range(4)]\n"
        "print(hashlib.sha256(b''.join(fit.draws.tobytes() for fit in fits)).hexdigest())"
    )
    bits = {
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": threads}, cwd=ROOT,
            capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "2", "4")
    }  # fmt: skip
    assert len(bits) == 1


def test_a_model_that_is_not_as_its_card_says_is_refused_before_ray_starts(tmp_path, capsys, monkeypatch):
    corpus = corpus_directory(str(tmp_path), "docs")
    table = {"doc_id": [document_id("Text.")], "text": ["Text."], "domain": ["web"], "source": ["test"]}
    write_parquet_atomic(
        corpus / "train" / "part-00000-of-00001.parquet", pa.table(table, schema=DOCUMENT_SCHEMA)
    )
    identity = claim_directory(corpus, "corpus", {}, {})
    finish(corpus, identity, splits={"train": {"parts": 1}, "held_out": {"parts": 0}})
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    write_card(study_path(str(model)))
    (model / "model.safetensors").write_bytes(b"veights")
    monkeypatch.setitem(sys.modules, "ray", None)
    argv = ["--root", str(tmp_path), "--corpus", "docs", '--recipes=["hq"]', "--engine.model", str(model)]
    assert importlib.import_module("rayjobs.rephrase_corpus").main(argv) == 2
    complaint = capsys.readouterr().err.strip()
    assert complaint.count("\n") == 0
    assert "model.safetensors is not the file that the model's card describes" in complaint
