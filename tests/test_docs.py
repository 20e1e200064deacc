"""The documentation: links lead somewhere, commands parse, worked examples run, every page is in the site."""

import asyncio
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
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
from tests.assets.object_store import object_store

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CONTRIBUTOR = ROOT / "docs/tutorials/contributor.md"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")

MARK = re.compile(r"<!-- not run: ((?:(?!-->).)+) -->\n+\Z")
"""Before a block of commands: which of them no test of this file runs, as numbers from 1 or `all`, and why."""
NEEDS = ("needs a GPU", "needs a cloud", "needs the hub", "needs most of an hour")
"""Why a command can be run nowhere here. Any other reason is where it is run: a test by its id, or `.ci/run`."""
OF_THE_SHELL = ("source", "export")
"""They only matter for the lines after them."""


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


@dataclass(frozen=True)
class Command:
    page: Path
    words: tuple[str, ...]
    why_not: str | None = None
    """Why no test of this file runs it."""

    def __str__(self):
        return f"{self.page.name}: {' '.join(self.words)[:80]}"


def commands_in(page):
    """Yield every command of the shell blocks of a page, continuation lines joined, comments taken off."""
    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        if block.group(1) not in ("sh", "bash", "shell", "console"):
            continue
        lines = (
            shlex.split(line.removeprefix("$ "), comments=True)
            for line in block.group(2).replace("\\\n", " ").splitlines()
        )
        mark = MARK.search(text[: block.start()])
        reasons = reasons_of(mark.group(1)) if mark else {}
        for number, words in enumerate(filter(None, lines), 1):
            yield Command(page, tuple(words), reasons.pop(str(number), reasons.get("all")))
        assert not reasons.keys() - {"all"}, (
            f"{page.name}: the mark names commands that are not there: {reasons}"
        )


def reasons_of(mark):
    """Return number -> reason of `1 2 (needs a GPU), 3 (tests/a.py::b)`."""
    found = re.findall(r"([\d ]+|all) \(([^)]+)\)", mark)
    return {number: reason for numbers, reason in found for number in numbers.split()}


COMMANDS = [command for page in PAGES for command in commands_in(page)]
RUN = [command for command in COMMANDS if command.why_not is None and command.words[0] not in OF_THE_SHELL]


def named_files(page):
    """Return the TOML files a page spells out, by name: a line with `name.toml`: and then a fenced block."""
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w.-]+\.toml)`.*?:\n+```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def lay_out(page, directory):
    """Put there what a person has who follows the page: the checkout, and the files the pages spell out."""
    for each in (*PAGES, page):  # a page may go on with another's file; its own comes first
        for name, text in named_files(each).items():
            (directory / name).write_text(text)
    for name in ("rayjobs", "Makefile"):
        (directory / name).symlink_to(ROOT / name)


@pytest.fixture(scope="module")
def store():
    """Serve the buckets of the pages, as a cloud would."""
    with object_store() as client:
        client.create_bucket(Bucket="my-bucket")
        yield


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Stand in a directory with what the pages go on from: a corpus, and a table of runs."""
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    for number in range(4):
        (text / f"{number}.txt").write_text(f"number {number} " + "word " * 60)
    build = CorpusBuild(CorpusConfig.model_validate({"held_out_fraction": 0.0, "sources": [{"kind": "files", "paths": ["text"]}]}))  # fmt: skip
    for stage in build.stages():
        for task in stage.todo:
            stage.work(task)
    build.finish()
    rows = ((n, d, 1.7 + 400 / n**0.34 + 410 / d**0.28) for n in (1e7, 1e8, 1e9) for d in (1e8, 1e9, 1e10))
    (tmp_path / "runs.csv").write_text("num_params,train_tokens,loss\n" + "".join(f"{n:.0f},{d:.0f},{loss:.6f}\n" for n, d, loss in rows))  # fmt: skip
    return tmp_path


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("command", RUN, ids=str)
def test_a_command_does_what_the_page_says(command, checkout):
    """Runs it, in this process: the jobs share a command line, and starting Python takes longer than most of them."""
    lay_out(command.page, checkout)
    (python, module, name), argv = command.words[:3], list(command.words[3:])
    assert (Path(python).name, module) == ("python", "-m"), f"{command}: mark it with why it is not run"
    assert importlib.import_module(name).main(argv) == 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.why_not], ids=str)
def test_a_command_that_is_not_run_is_one_a_person_can_give(command, tmp_path, monkeypatch):
    """Jobs are parsed and validated as they would be, and where it is said to be run it is."""
    lay_out(command.page, tmp_path)
    monkeypatch.chdir(tmp_path)
    words = list(command.words)
    if words[0] == "ray" and "--" in words:
        words = words[words.index("--") + 1 :]
    if words[:2] == ["python", "-m"]:
        check_job(words[2], words[3:])
    if command.why_not in NEEDS:
        return
    if command.why_not == ".ci/run":
        assert set(steps_of_make(words[1])) <= set(re.findall(r"^step (\S+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))  # fmt: skip
        return
    path, _, test = command.why_not.partition("::")
    assert f"def {test}(" in (ROOT / path).read_text(), f"{command}: there is no test {command.why_not}"


def steps_of_make(target):
    """Return the targets a target is made of, or itself when it has a recipe of its own."""
    rule = re.search(rf"^{target}:([^#\n]*)##.*\n(\t)?", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule, f"there is no target {target}"
    return [target] if rule.group(2) else rule.group(1).split()


def check_job(module, argv):
    job = importlib.import_module(module)
    if module == "rayjobs.compare_studies":
        argv = job.with_names(argv)
    looks = {look.flag for look in job.JOB.looks if not look.needs_config}
    if not looks & set(argv):
        cli.parse(job.JOB, argv)


def test_the_check_of_commands_sees_a_wrong_one(tmp_path):
    with pytest.raises(Exception, match="--confg is not a flag"):
        check_job("rayjobs.run_study", ["--confg", "my.toml"])
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: 1 (.ci/run) -->\n```sh\nmake demo  # comment\npython -m rayjobs.run_study \\\n  --dry-run\n```\n"
    )
    assert [(each.words, each.why_not) for each in commands_in(page)] == [
        (("make", "demo"), ".ci/run"), (("python", "-m", "rayjobs.run_study", "--dry-run"), None),
    ]  # fmt: skip
    page.write_text("<!-- not run: 2 (needs a GPU) -->\n```sh\nmake demo\n```\n")
    with pytest.raises(AssertionError, match="not there"):
        list(commands_in(page))
    assert steps_of_make("check") == ["lint", "types", "test"]


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
