"""The study file as it was run: every value written out, defaults and flags included, so that it can be run again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rayjobs.study import SECTIONS, StudyConfig
from synth.storage import study_path, write_text_atomic

STUDY_FILE = "study.toml"
"""Under the study root: what the last `run_study` there ran."""

_HEAD = """\
# Written by run_study: this study with every value it ran with. Copy it, then run it again, here or elsewhere:
#   python -m rayjobs.run_study --config COPY.toml --root ROOT
"""


def write_study_file(study: StudyConfig) -> None:
    """Write the resolved study file under the root, in the place of an older one."""
    write_text_atomic(study_path(study.root, STUDY_FILE), study_file(study))


def study_file(study: StudyConfig) -> str:
    """Return the study as a file that `run_study --config` reads to the same study; the root is left to `--root`."""
    values: dict[str, Any] = study.model_dump(mode="json", exclude={"root"}, exclude_none=True)
    lines = [
        _HEAD,
        *(f"{key} = {_value(each)}" for key, each in values.items() if not isinstance(each, dict)),
    ]
    for name, table in values.items():
        if name in SECTIONS:
            for step, fields in table.items():
                own = {key: value for key, value in fields.items() if key not in ("name", "root")}
                lines += ["", f"[{name}.{_key(step)}]", *_fields(own)]
        elif isinstance(table, dict):
            lines += ["", f"[{name}]", *_fields(table)]
    return "\n".join(lines) + "\n"


def _fields(table: dict[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        yield f"{_key(key)} = {_value(value)}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    """Return a JSON-like value without nulls as TOML on one line."""
    if isinstance(value, dict):
        if not value:
            return "{}"
        return "{ " + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
