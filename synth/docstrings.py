"""English prose that every machine has: the docstrings of installed Python packages, read without importing them.

A package is found by its import name, its files are listed in sorted order, and a docstring's source is
`<path inside site-packages>:<qualified name>`, so the same versions give the same documents on every machine.
Only written docstrings count: text a package glues together at import time is not there to be read.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import inspect
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from synth.errors import UserError

STANDARD_LIBRARY = "stdlib"
"""The package name that stands for the standard library."""

SKIPPED_DIRECTORIES = frozenset(
    "test tests _tests testdata idle_test site-packages dist-packages __pycache__ _vendor _vendored vendor "  # noqa: SIM905
    "vendored vendored_packages extern externals third_party thirdparty thirdparty_files".split()
)
"""Tests are not prose, and vendored copies are other packages' documents under a wrong domain."""

ENGLISH_FUNCTION_WORDS = frozenset(
    "a an and are as at be been but by can do does for from has have if in into is it its may must no not of on "  # noqa: SIM905
    "only or other should so such than that the their then there these they this to used was we when where which "
    "will with you your".split()
)
MIN_FUNCTION_WORD_FRACTION = 0.1
"""Running English has 0.35-0.5, a parameter section 0.15-0.3; tables, sessions and ASCII art stay below."""

_WORD = re.compile(r"[A-Za-z]+")

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class PythonFile(NamedTuple):
    """One source file: its path relative to the directory its package is installed in, and its size."""

    path: str
    num_bytes: int


class Docstring(NamedTuple):
    """One docstring and where it stands."""

    text: str | None
    """Cleaned of its indentation; None stands for a whole file that this Python cannot parse."""
    source: str
    """`<path>:<qualified name>`, the path alone for a module or a file."""


def locate_package(package: str) -> Path:
    """Return the directory, or for a single module the file, of an installed package, without importing it.

    Raises UserError when it is not installed or has no Python source. `stdlib` is the standard library.
    """
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    # find_spec would import the parents of a dotted name.
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # `__main__` and the like
        spec = None
    if spec is None:
        raise UserError(f"Python package {package!r} is not installed here: install it or leave it out.")
    if spec.submodule_search_locations:
        # A namespace package may lie in several directories; the first one is where pip put it.
        return Path(next(iter(spec.submodule_search_locations)))
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(f"Python package {package!r} has no Python source ({spec.origin}): leave it out.")
    return Path(spec.origin)


def list_package(package: str) -> tuple[PythonFile, ...]:
    """Return the Python files of an installed package, sorted by path. Raises UserError when it is not installed."""
    located = locate_package(package)
    if located.is_file():
        return (PythonFile(located.name, located.stat().st_size),)
    return tuple(_python_files(located, _install_directory(package)))


def package_version(package: str) -> str:
    """Return the versions of the distributions a package came in, such as `numpy 2.3.5`."""
    if package == STANDARD_LIBRARY:
        return f"Python {platform.python_version()}"
    distributions = sorted(set(_distributions().get(package, [])))
    versions = [f"{name} {importlib.metadata.version(name)}" for name in distributions]
    return ", ".join(versions) or "not versioned"


def read_docstrings(package: str, files: tuple[PythonFile, ...]) -> Iterator[Docstring]:
    """Yield the docstrings of some files of a package in order of file and line.

    Raises UserError when the package here is not the one that was listed, as when two nodes have different versions.
    """
    directory = _install_directory(package)
    for file in files:
        try:
            source = (directory / file.path).read_bytes()
        except FileNotFoundError:
            source = b""
        if len(source) != file.num_bytes:
            raise UserError(
                f"{file.path} of package {package!r} is not the file that was listed ({len(source)} bytes here, "
                f"{file.num_bytes} there): install the same version of {package!r} on every node."
            )
        yield from docstrings_of(source, file.path)


def docstrings_of(source: bytes, path: str) -> Iterator[Docstring]:
    """Yield the docstrings of one file's source; a single one without text when it cannot be parsed.

    Packages ship files that are no Python of this version: templates, another Python's syntax, odd encodings.
    """
    if b'"""' not in source and b"'''" not in source:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes and unreachable asserts
        try:
            module = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            yield Docstring(None, path)
            return
    if text := _docstring(module):
        yield Docstring(text, path)
    yield from _nested_docstrings(module, f"{path}:")


def is_english_prose(text: str) -> bool:
    """Return whether a text reads as English: enough of its words are the small words every English sentence needs."""
    words = _WORD.findall(text)
    if not words:
        return False
    num_function_words = sum(word.lower() in ENGLISH_FUNCTION_WORDS for word in words)
    return num_function_words >= MIN_FUNCTION_WORD_FRACTION * len(words)


def _nested_docstrings(parent: ast.AST, prefix: str) -> Iterator[Docstring]:
    # Definitions hide in the branches of a module or class (if, try, with), never in an expression: skipping
    # expressions makes this several times faster than ast.walk.
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, _Definition):
            if text := _docstring(node):
                yield Docstring(text, prefix + node.name)
            yield from _nested_docstrings(node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            yield from _nested_docstrings(node, prefix)


def _docstring(node: ast.Module | _Definition) -> str | None:
    text = ast.get_docstring(node, clean=False)
    return inspect.cleandoc(text) if text else None


def _python_files(directory: Path, root: Path) -> Iterator[PythonFile]:
    for entry in sorted(directory.iterdir()):
        if entry.is_dir() and not entry.is_symlink():  # a link may lead in a circle
            if entry.name not in SKIPPED_DIRECTORIES and not entry.name.startswith("."):
                yield from _python_files(entry, root)
        elif entry.suffix == ".py":
            yield PythonFile(entry.relative_to(root).as_posix(), entry.stat().st_size)


def _install_directory(package: str) -> Path:
    located = locate_package(package)
    return located if package == STANDARD_LIBRARY else located.parent


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()  # reads every installed record: most of a second
