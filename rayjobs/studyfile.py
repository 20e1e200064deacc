"""The study file as it was run: every value written out, defaults and flags included, so that it can be run again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rayjobs.study import SECTIONS, StudyConfig
from synth.storage import study_path, write_text_atomic
from synth.toml import toml_key, toml_value
from tune.report.inputs import STUDY_FILE

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
        *(f"{key} = {toml_value(each)}" for key, each in values.items() if not isinstance(each, dict)),
    ]
    for name, table in values.items():
        if name in SECTIONS:
            for step, fields in table.items():
                own = {key: value for key, value in fields.items() if key not in ("name", "root")}
                lines += ["", f"[{name}.{toml_key(step)}]", *_fields(own)]
        elif isinstance(table, dict):
            lines += ["", f"[{name}]", *_fields(table)]
    return "\n".join(lines) + "\n"


def _fields(table: dict[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        yield f"{toml_key(key)} = {toml_value(value)}"
