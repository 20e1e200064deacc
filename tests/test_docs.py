"""The documentation: links lead somewhere, commands parse, worked examples run, every page is in the site."""

import asyncio
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

from rayjobs import cli
from synth.config import CorpusConfig
from synth.corpus import CorpusBuild
from synth.identity import read_manifest
from synth.recipe import Sampling, load_recipe
from synth.storage import study_path

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CONTRIBUTOR = ROOT / "docs/tutorials/contributor.md"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")

NEEDS_A_CLUSTER = {
    "ray",
    "kubectl",
    "helm",
    "kind",
    "docker",
    "terraform",
    "aws",
    "gcloud",
    "gsutil",
    "export",
}
"""First words of commands that a cluster or a cloud account is needed for: read, not run."""
OF_THE_CHECKOUT = {"bash", "source", "cd", "cp", "tensorboard", ".venv/bin/pre-commit", "curl", "watch", "jq"}
"""Commands of the shell and of tools, nothing of ours to parse."""


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def prose_of(path):
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors_of(path):
    headings = re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(prose_of(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)} links {target}, which is not there"
        assert not anchor or anchor in anchors_of(there), f"{name_of(page)} links {target}: no such heading"


def test_every_page_is_in_the_site_once():
    def pages_in(entry):
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages_in(value)]

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(pages_in(site["nav"])) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))  # fmt: skip


def test_pictures_are_small_and_described():
    pictures = list((ROOT / "docs/images").iterdir())
    assert pictures
    assert all(picture.stat().st_size < 300_000 for picture in pictures)
    for page in PAGES:
        assert not re.search(r"!\[\s*\]\(", page.read_text()), f"{name_of(page)} has a picture without words"


# --- commands --------------------------------------------------------------------------------------------------


def commands_in(page):
    """Yield every command of the shell blocks of a page, continuation lines joined, comments taken off."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in ("sh", "bash", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    yield words


COMMANDS = [(page, words) for page in PAGES for words in commands_in(page)]


def named_files(page):
    """Return the TOML files a page spells out, by name: a line with `name.toml`: and then a fenced block."""
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w.-]+\.toml)`.*?:\n+```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{name_of(page)}: {' '.join(words)[:70]}" for page, words in COMMANDS]
)
def test_every_command_is_one_a_person_can_give(page, words, tmp_path, monkeypatch):
    """Jobs are parsed and validated as they would be, make targets must exist, the rest must be known tools."""
    if words[0] == "ray" and "--" in words:
        words = words[words.index("--") + 1 :]
    program = Path(words[0]).name
    if program.startswith("python") and words[1:2] == ["-m"] and words[2].startswith("rayjobs."):
        for each in (*PAGES, page):  # a page may go on with another's file; its own comes first
            for name, text in named_files(each).items():
                (tmp_path / name).write_text(text)
        (tmp_path / "rayjobs").symlink_to(ROOT / "rayjobs")
        monkeypatch.chdir(tmp_path)
        check_job(words[2], words[3:])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif program.startswith("python"):
        assert (ROOT / words[1]).exists(), words
    else:
        assert (
            program in NEEDS_A_CLUSTER | OF_THE_CHECKOUT or words[0] in OF_THE_CHECKOUT or "=" in words[0]
        ), words


def check_job(module, argv):
    job = importlib.import_module(module)
    if module == "rayjobs.compare_studies":
        argv = job.with_names(argv)
    looks = {look.flag for look in job.JOB.looks if not look.needs_config}
    if not looks & set(argv):
        cli.parse(job.JOB, argv)


def test_the_check_of_commands_sees_a_wrong_one(tmp_path, monkeypatch):
    with pytest.raises(Exception, match="--confg is not a flag"):
        check_job("rayjobs.run_study", ["--confg", "my.toml"])
    page = tmp_path / "page.md"
    page.write_text("```sh\nmake demo  # comment\npython -m rayjobs.run_study \\\n  --dry-run\n```\n")
    assert list(commands_in(page)) == [["make", "demo"], ["python", "-m", "rayjobs.run_study", "--dry-run"]]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_of_toml_and_python_are_what_they_say(page):
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "toml":
            tomllib.loads(block)
        elif language == "python":
            compile(block, name_of(page), "exec")


# --- worked examples -------------------------------------------------------------------------------------------


def example(name):
    text = CONTRIBUTOR.read_text(encoding="utf-8")
    found = re.search(rf"^`{re.escape(name)}`:\n+```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, f"the tutorial has no {name}"
    return found.group(1)


def load_example(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_text(example(name))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def test_the_example_recipe_loads_and_asks_for_the_document(tmp_path):
    path = tmp_path / "bullets.toml"
    path.write_text(example("bullets.toml"))
    recipe = load_recipe(str(path))
    assert recipe.placeholders == {"document"}
    assert (recipe.thresholds.format, recipe.thresholds.min_format_items) == ("list", 3)


def test_the_example_law_recovers_its_parameters(tmp_path):
    path = tmp_path / "compute_law.py"
    path.write_text(example("compute_law.py"))
    done = subprocess.run([sys.executable, str(path)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout)  # the dict it prints
    assert found["gamma"] == pytest.approx(0.2, rel=1e-3)
    assert found["E"] == pytest.approx(1.9, rel=1e-3)
    assert found["A"] == pytest.approx(900, rel=1e-2)


def test_the_example_engine_answers_and_refuses_what_is_too_long(tmp_path, monkeypatch):
    module = load_example("engine_echo.py", tmp_path, monkeypatch)
    engine = module.EchoEngine(max_model_len=32)
    sampling = Sampling(max_output_tokens=8)

    def request(text):
        return module.GenerationRequest(
            "r", tuple(engine.tokenizer.encode_data([text])[0]), sampling, 8, seed=1
        )

    answer = asyncio.run(engine.generate(request("good morning")))
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == ("good mor", "length", 8)
    with pytest.raises(module.RequestTooLong):
        asyncio.run(engine.generate(request("x" * 30)))


def test_the_example_step_plans_runs_and_is_skipped_when_finished(tmp_path, monkeypatch, capsys):
    module = load_example("count_words.py", tmp_path, monkeypatch)
    text = tmp_path / "text"
    text.mkdir()
    for number in range(4):
        (text / f"{number}.txt").write_text(f"number {number} " + "word " * 60)
    root = str(tmp_path / "study")
    build = CorpusBuild(CorpusConfig.model_validate({"root": root, "held_out_fraction": 0.0, "sources": [{"kind": "files", "paths": [str(text)]}]}))  # fmt: skip
    for stage in build.stages():
        for task in stage.todo:
            stage.work(task)
    build.finish()
    argv = ["--root", root, "--corpus", "natural"]
    assert module.main([*argv, "--dry-run"]) == 0
    assert not study_path(root, "word_counts").exists()
    assert module.main(argv) == 0
    assert read_manifest(study_path(root, "word_counts", "words"), "count_words")["words"] == 4 * 62
    assert module.main(argv) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert module.main(["--root", root]) == 2
    assert np.all(
        [line.startswith("count_words: corpus is missing") for line in capsys.readouterr().err.splitlines()]
    )
