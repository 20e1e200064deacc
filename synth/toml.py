"""Values and keys as TOML, for the configuration files the jobs write; the standard library only reads them."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_key(name: str) -> str:
    """Return a key as it stands before an equals sign or in a table's heading: quoted only where it must be."""
    return name if _BARE_KEY.fullmatch(name) else toml_value(name)


def toml_value(value: Any) -> str:
    """Return a JSON-like value on one line. Raises ValueError for what JSON files have and these cannot: null, nan, infinity."""
    if isinstance(value, dict):
        fields = ", ".join(f"{toml_key(key)} = {toml_value(each)}" for key, each in value.items())
        return f"{{ {fields} }}" if fields else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{value} has no TOML here: leave the field out")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
