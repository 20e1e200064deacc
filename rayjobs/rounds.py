"""Rounds of a study: what is the same in every round is written once, with `{round}` and `{previous}` in its names.

With `rounds = 3` a table called `"round{round}"` stands for `round1`, `round2` and `round3`, a list's item for three items;
inside such a table both words mean its own round (`{previous}` is one less). A table that is spelled out under a name
of the series stands in the place of that round's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str | int, ...]

WORDS = re.compile(r"\{(?:round|previous)\}")


def unrolled(values: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Return a study file's values with every round spelled out."""
    return {key: _unrolled(value, rounds) for key, value in values.items()}


def _unrolled(value: Any, rounds: int) -> Any:
    if isinstance(value, Mapping):
        plain = {key: _unrolled(each, rounds) for key, each in value.items() if not _is_a_series(key)}
        series = {
            _in_round(key, number): _unrolled(_in_round(each, number), rounds)
            for key, each in value.items()
            if _is_a_series(key)
            for number in range(1, rounds + 1)
        }
        return {**series, **plain}
    if isinstance(value, (list, tuple)):
        return [
            _unrolled(_in_round(each, number), rounds)
            for each in value
            for number in (range(1, rounds + 1) if _is_a_series(each) else (1,))
        ]
    return value


def _is_a_series(word: Any) -> bool:
    return isinstance(word, str) and WORDS.search(word) is not None


def _in_round(value: Any, number: int) -> Any:
    """Return a value with its words replaced by the numbers of one round."""
    if isinstance(value, str):
        return value.replace("{round}", str(number)).replace("{previous}", str(number - 1))
    if isinstance(value, Mapping):
        return {_in_round(key, number): _in_round(each, number) for key, each in value.items()}
    return [_in_round(each, number) for each in value] if isinstance(value, (list, tuple)) else value


def as_written(values: Any, path: Path, rounds: int) -> Path:
    """Return where in the file's own values a path of the unrolled ones stands."""
    if not path:
        return ()
    head, rest = path[0], path[1:]
    numbers = range(1, rounds + 1)
    if isinstance(values, Mapping):
        series = (
            key for key in values if _is_a_series(key) and head in [_in_round(key, each) for each in numbers]
        )
        key = head if head in values else next(series, None)
        return path if key is None else (key, *as_written(values[key], rest, rounds))
    if isinstance(values, (list, tuple)) and isinstance(head, int):
        places = [
            place for place, each in enumerate(values) for _ in (numbers if _is_a_series(each) else (1,))
        ]
        if head < len(places):
            return (places[head], *as_written(values[places[head]], rest, rounds))
    return path


def left_over(values: Any, path: Path = ()) -> Iterator[Path]:
    """Yield where a word still stands: single values outside a series, or all of them in a study without rounds."""
    if isinstance(values, Mapping):
        for key, each in values.items():
            if _is_a_series(key):
                yield (*path, key)
            else:
                yield from left_over(each, (*path, key))
    elif isinstance(values, (list, tuple)):
        for number, each in enumerate(values):
            yield from left_over(each, (*path, number))
    elif _is_a_series(values):
        yield path
