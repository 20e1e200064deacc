"""Imports follow the data, and what should be light is light: the two rules the structure stands on."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["synth", "train", "tune", "rayjobs"]
MODULES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))
MAY_IMPORT_TORCH_AT_TOP = {
    f"train/{name}.py"
    for name in (
        "attention",
        "model",
        "cross_entropy",
        "loop",
        "training",
        "counted",
        "release",
        "distributed",
        "evaluation",
        "universal",
        "export",
    )
}
LIGHT = [
    "rayjobs.cli", "rayjobs.cluster", "rayjobs.study", "rayjobs.run_study", "synth.config", "synth.identity",
    "synth.recipe", "synth.chunking", "synth.quality.verdict", "synth.corpus", "train.config", "train.run",
    "train.placement", "train.record", "train.sizes", "train.flops", "train.schedule", "train.grid", "train.mixture",
    "train.leftovers",
    "tune.config", "tune.results", "tune.search",
]  # fmt: skip


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (module, at_top_level) for every absolute import in a file."""
    tree = ast.parse(path.read_text())
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in top


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_its_own_package_and_those_to_its_left(path):
    package = path.relative_to(ROOT).parts[0]
    to_the_right = set(ORDER[ORDER.index(package) + 1 :])
    assert not [module for module, _ in imports_of(path) if module.split(".")[0] in to_the_right]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_jobs_import_ray_and_only_engines_import_vllm(path):
    roots = {module.split(".")[0] for module, _ in imports_of(path)}
    name = name_of(path)
    assert "ray" not in roots or path.name == "job.py" or name.startswith("rayjobs/"), name
    assert "vllm" not in roots or name.startswith("synth/engines/"), name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_are_imported_where_they_run(path):
    at_top = {module.split(".")[0] for module, top in imports_of(path) if top}
    name = name_of(path)
    assert not at_top & {"vllm", "deepspeed"}, name
    assert not at_top & {"torch", "transformers"} or name in MAY_IMPORT_TORCH_AT_TOP, name


def test_the_check_sees_what_it_forbids(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("import torch\ndef f():\n    from rayjobs.cli import Job\n")
    assert set(imports_of(bad)) == {("torch", True), ("rayjobs.cli", False)}


def names_of(module: str) -> set[str]:
    """Everything a module of ours defines or imports at its top, and the modules in it if it is a package."""
    place = ROOT / module.replace(".", "/")
    path = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
    found = {child.stem for child in place.glob("*")}
    for node in ast.parse(path.read_text()).body if path.exists() else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        else:
            found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=name_of)
def test_what_a_benchmark_imports_of_ours_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in (*ORDER, "tests")
        ):
            assert {alias.name for alias in node.names} <= names_of(node.module), node.module


def test_light_modules_load_without_the_heavy_packages():
    heavy = ["ray", "vllm", "torch", "deepspeed", "transformers", "matplotlib", "pandas"]
    script = f"import sys, importlib\nsys.modules.update(dict.fromkeys({heavy}))\nfor name in {LIGHT}:\n    importlib.import_module(name)\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
