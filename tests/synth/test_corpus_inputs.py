"""Listing inputs: what is there is found, what is not is named with its field, what changed is noticed."""

import functools
import http.server
import os
import threading

import pytest

from synth import inputs
from synth.config import CorpusConfig
from synth.documents import admit
from synth.errors import UserError
from synth.inputs import FileUnit, PackageUnit, list_source
from synth.readers import read_rows


def listed(*sources: dict, index: int = 0):
    return list_source(index, CorpusConfig(sources=sources))


def labels(found) -> list[str]:
    return [file.label for unit in found.units for file in unit.files]


@pytest.fixture
def tree(tmp_path):
    for name in (
        "raw/b.jsonl",
        "raw/a.parquet",
        "raw/sub/c.txt",
        "raw/README.md",
        "raw/_SUCCESS",
        "raw/.d.jsonl",
        "raw/_temporary/0/a.parquet",
        "raw/.cache/e.txt",
        "x.bin",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    return tmp_path


def test_a_directory_stands_for_the_readable_files_under_it(tree):
    found = listed({"kind": "files", "paths": [str(tree / "raw")]})
    assert labels(found) == ["raw/a.parquet", "raw/b.jsonl", "raw/sub/c.txt"]
    assert (found.num_files, found.num_bytes) == (3, 15)
    assert found.warnings == ("sources.0.paths.0: 1 files of unknown ending are not read (raw/README.md)",)


def test_a_glob_and_a_file_are_named_the_same_on_every_machine(tree):
    found = listed(
        {"kind": "files", "paths": [str(tree / "raw" / "*.jsonl"), str(tree / "raw" / "**" / "*.txt")]}
    )
    assert labels(found) == ["raw/b.jsonl", "raw/sub/c.txt"]
    assert labels(listed({"kind": "files", "paths": [str(tree / "raw" / "b.jsonl")]})) == ["raw/b.jsonl"]


def test_a_file_that_is_named_is_read_whatever_its_name(tree):
    assert labels(listed({"kind": "files", "paths": [str(tree / "raw" / ".d.jsonl")]})) == ["raw/.d.jsonl"]
    below = listed({"kind": "files", "paths": [str(tree / "raw" / "_temporary")]})
    assert labels(below) == ["_temporary/0/a.parquet"]


def test_a_file_that_two_paths_name_is_read_once(tree):
    found = listed({"kind": "files", "paths": [str(tree / "raw"), str(tree / "raw" / "b.jsonl")]})
    assert labels(found).count("raw/b.jsonl") == 1


def test_relative_paths_work(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert labels(listed({"kind": "files", "paths": ["raw/*.jsonl"]})) == ["raw/b.jsonl"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.jsonl", r"sources\.1\.paths\.0 = '.*nowhere\.jsonl' is not there: correct the path"),
        ("*.nothing", r"sources\.1\.paths\.0 = .* matches no file: correct the path"),
        ("x.bin", r"sources\.1\.paths\.0 = .* no file of a known ending .*set the source's format"),
    ],
)
def test_a_path_without_input_is_named_by_its_field(tree, path, message):
    package = {"kind": "docstrings", "packages": ["json"]}
    with pytest.raises(UserError, match=message):
        listed(package, {"kind": "files", "paths": [str(tree / path)]}, index=1)


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket/x.jsonl", "http://127.0.0.1:9/x.jsonl"])
def test_a_url_that_cannot_be_reached_is_named_by_its_field(url):
    with pytest.raises(UserError, match=r"sources\.0\.paths\.0 = '\w+://.*'"):
        listed({"kind": "files", "paths": [url]})


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@example.org/a.jsonl",
        "https://bucket.example.org/a.parquet?X-Amz-Credential=x&X-Amz-Signature=hunter2",
        "https://account.example.org/a.parquet?sv=1&sig=hunter2",
    ],
)
def test_a_url_that_carries_a_secret_is_refused_without_repeating_it(url):
    with pytest.raises(UserError, match=r"sources\.0\.paths\.0 carries a credential") as caught:
        listed({"kind": "files", "paths": [url]})
    assert "hunter2" not in str(caught.value)


def test_a_file_on_a_web_server_is_read_and_named_by_its_url(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "from afar"}\n')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.jsonl"
        config = CorpusConfig(sources=({"kind": "files", "paths": [f"{url}?download=true"]},))
        found = list_source(0, config)
        (row,) = read_rows("sources.0", config.sources[0], found.units[0])
        server.shutdown()
    assert (row.text, row.source) == ("from afar", f"{url}#1")


def test_the_format_can_be_set_where_the_ending_does_not_say_it(tree):
    config = CorpusConfig(sources=({"kind": "files", "paths": [str(tree / "x.bin")], "format": "text"},))
    (row,) = read_rows("sources.0", config.sources[0], list_source(0, config).units[0])
    assert admit(row, 1).text == "12345"


def test_a_changed_input_changes_the_fingerprint(tree):
    source = {"kind": "files", "paths": [str(tree / "raw")]}
    before = listed(source).parents
    assert listed(source).parents == before
    os.utime(tree / "raw" / "b.jsonl", (1, 1))
    touched = listed(source).parents
    (tree / "raw" / "b.jsonl").write_bytes(b"123456")
    longer = listed(source).parents
    (tree / "raw" / "e.jsonl").write_bytes(b"1")
    assert len({str(parents) for parents in (before, touched, longer, listed(source).parents)}) == 4


def test_small_files_share_a_unit_and_large_ones_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "UNIT_BYTES", 100)
    monkeypatch.setattr(inputs, "UNIT_FILES", 4)
    for number, size in enumerate([40, 40, 40, 500, 10, 10, 10, 10, 10]):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * size)
    found = listed({"kind": "files", "paths": [str(tmp_path)]})
    assert all(isinstance(unit, FileUnit) for unit in found.units)
    assert [[file.num_bytes for file in unit.files] for unit in found.units] == [
        [40, 40],
        [40],
        [500],
        [10] * 4,
        [10],
    ]


def test_packages_are_cut_into_units_and_fingerprinted_by_version(monkeypatch):
    monkeypatch.setattr(inputs, "PACKAGE_UNIT_BYTES", 30_000)
    found = listed({"kind": "docstrings", "packages": ["json", "yaml"]})
    assert {unit.package for unit in found.units if isinstance(unit, PackageUnit)} == {"json", "yaml"}
    assert len(found.units) > 2
    assert found.parents["sources.0.yaml"].lower().startswith("pyyaml 6")
    assert found.num_bytes == sum(file.num_bytes for unit in found.units for file in unit.files)


def test_a_package_that_is_not_installed_is_named_by_its_field():
    with pytest.raises(
        UserError, match=r"sources\.0\.packages\.1: Python package 'no_such' is not installed"
    ):
        listed({"kind": "docstrings", "packages": ["json", "no_such"]})
