"""Docstrings of installed packages: found without importing anything, named the same on every machine."""

import sys
import textwrap

import pytest

from synth.docstrings import (
    PythonFile,
    docstrings_of,
    is_english_prose,
    list_package,
    package_version,
    read_docstrings,
)
from synth.errors import UserError

MODULE = b'''
"""The module's own words."""

class Outer:
    """Outer
        indented more
    kept relative."""

    def method(self):
        """Method of Outer."""
        def inner():
            """Inner function."""

    async def later(self):
        r"""Raw \\d string."""

if True:
    try:
        def hidden():
            "Single quotes count too."
    except ImportError:
        class Fallback:
            """Only on failure."""

def none(): pass
def not_a_docstring():
    f"""formatted {none}"""
x = """not a docstring"""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package whose import would raise, with tests and a vendored copy in it."""
    directory = tmp_path / "lagoonlib"
    for name, content in {
        "__init__.py": '"""Top."""\nraise RuntimeError("imported")',
        "b.py": '"""B."""',
        "a/deep.py": '"""Deep."""',
        "tests/test_a.py": '"""A test."""',
        "_vendor/other.py": '"""Vendored."""',
        ".hidden/x.py": '"""Hidden."""',
        "data.txt": "no Python",
    }.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "lonelymodule.py").write_text('"""Alone."""')
    monkeypatch.syspath_prepend(tmp_path)
    return directory


def test_every_definition_is_found_with_its_qualified_name():
    found = {docstring.source: docstring.text for docstring in docstrings_of(MODULE, "pkg/mod.py")}
    assert found == {
        "pkg/mod.py": "The module's own words.",
        "pkg/mod.py:Outer": "Outer\n    indented more\nkept relative.",
        "pkg/mod.py:Outer.method": "Method of Outer.",
        "pkg/mod.py:Outer.method.inner": "Inner function.",
        "pkg/mod.py:Outer.later": "Raw \\d string.",
        "pkg/mod.py:hidden": "Single quotes count too.",
        "pkg/mod.py:Fallback": "Only on failure.",
    }


@pytest.mark.parametrize(
    "source",
    [
        b'"""broken',
        b'"""doc"""\nprint "python 2"',
        b'"""doc"""\n{{ template }} {% if %}',
        b'"""doc"""\n\0',
        b'"""\xff"""',
    ],
)
def test_a_file_that_is_not_this_python_is_one_docstring_without_text(source):
    assert list(docstrings_of(source, "x.py")) == [(None, "x.py")]


@pytest.mark.parametrize("source", [b"", b"x = 1", b'x = """no docstring"""', b'"""   """'])
def test_a_file_without_docstrings_has_none(source):
    assert list(docstrings_of(source, "x.py")) == []


def test_encoding_declarations_are_obeyed():
    source = '# -*- coding: latin-1 -*-\n"""Crème brûlée."""'.encode("latin-1")
    assert [docstring.text for docstring in docstrings_of(source, "x.py")] == ["Crème brûlée."]


def test_a_package_is_listed_in_order_without_its_tests_and_vendored_copies(package):
    files = list_package("lagoonlib")
    assert [file.path for file in files] == ["lagoonlib/__init__.py", "lagoonlib/a/deep.py", "lagoonlib/b.py"]
    assert [docstring.text for docstring in read_docstrings("lagoonlib", files)] == ["Top.", "Deep.", "B."]
    assert "lagoonlib" not in sys.modules


def test_a_single_module_is_a_package_too(package):
    files = list_package("lonelymodule")
    assert [file.path for file in files] == ["lonelymodule.py"]
    assert [docstring.source for docstring in read_docstrings("lonelymodule", files)] == ["lonelymodule.py"]


@pytest.mark.parametrize("name", ["no_such_package_anywhere", "os.path", "../etc", ""])
def test_a_package_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match="is not installed here: install it or leave it out"):
        list_package(name)


def test_a_package_without_python_source_is_named():
    with pytest.raises(UserError, match="'_json' has no Python source"):
        list_package("_json")


def test_another_version_of_the_package_on_this_node_is_noticed(package):
    files = list_package("lagoonlib")
    (package / "b.py").write_text('"""B, but longer."""')
    with pytest.raises(
        UserError, match=r"lagoonlib/b\.py of package 'lagoonlib' is not the file that was listed"
    ):
        list(read_docstrings("lagoonlib", files))
    with pytest.raises(UserError, match="0 bytes here, 9 there"):
        list(read_docstrings("lagoonlib", (PythonFile("lagoonlib/gone.py", 9),)))


def test_the_standard_library_is_there_and_versioned():
    files = list_package("stdlib")
    paths = {file.path for file in files}
    assert {"argparse.py", "asyncio/base_events.py", "json/decoder.py"} <= paths
    assert not any(path.startswith(("test/", "site-packages/")) for path in paths)
    assert package_version("stdlib").startswith("Python 3.")
    (argparse,) = (file for file in files if file.path == "argparse.py")
    sources = [docstring.source for docstring in read_docstrings("stdlib", (argparse,))]
    assert "argparse.py:ArgumentParser" in sources


def test_versions_come_from_the_installed_distribution():
    assert package_version("numpy").startswith("numpy ")
    assert package_version("no_such_package_anywhere") == "not versioned"


def test_prose_is_told_from_tables_and_sessions():
    numpydoc = """
        Return the cumulative sum of the elements along a given axis.

        Parameters
        ----------
        a : array_like
            Input array.
        axis : int, optional
            Axis along which the sum is computed; the default is to flatten the array first.

        >>> np.cumsum([1, 2])
        """
    assert is_english_prose(textwrap.dedent(numpydoc))
    assert not is_english_prose(">>> x = 1\n>>> y = 2\n>>> x + y\n3\n" * 20)
    assert not is_english_prose("background, bd, bg, cursor, font, foreground, height, width, relief")
    assert not is_english_prose("+---+---+\n| 1 | 2 |\n")
