"""What all benchmarks share: how they are asked, where they were measured, and the file the result goes to."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synth.identity import provenance


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the script's docstring as its help, and `--out`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    return parser


def machine() -> str:
    """Return what was measured on, and how busy it was in the last minute."""
    return f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"


def versions() -> dict[str, Any]:
    """Return the versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **provenance()["packages"]}


def give(result: Mapping[str, Any], out: Path | None) -> None:
    """Print a result as JSON, and write it to a file if there is one to write to."""
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
