"""A configuration with mistakes in it, as far as it can be understood: valid values stand in for the wrong ones.

So that one mistake does not hide another. What is found in a mended configuration counts only if it is found whichever of
several values stands in: then it is no matter of the value.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel, model_validator

C = TypeVar("C", bound=BaseModel)

Path = tuple[str | int, ...]

VARIANTS = 4
"""Values tried in the place of a wrong one."""
ROUNDS = 6
"""Times a configuration is mended: below what was wrong there may be something else."""


@dataclass(frozen=True)
class Mended:
    """A configuration whose wrong values are replaced."""

    config: Any
    """It passes for one of its class, but for what is wrong between its own fields."""
    found: frozenset[tuple[Path, str]] = frozenset()
    """(Path, message) of what is wrong beside what validation says at once."""
    replaced: tuple[Path, ...] = ()
    """Where values were replaced: what is said of these places is not of what the person wrote."""

    def is_of_a_stand_in(self, path: Path) -> bool:
        """Return whether something at this path, below or around it, was replaced."""
        return any(path[: len(each)] == each or each[: len(path)] == path for each in self.replaced)


def mend(model: type[C], table: Any, variant: int) -> Mended | None:
    """Return a configuration of this class with the wrong values of `table` replaced; None when it cannot be mended."""
    found: set[tuple[Path, str]] = set()
    replaced: list[Path] = []
    no_tables: list[Path] = []
    checked = True
    for attempt in range(ROUNDS):
        try:
            config = (model if checked else without_checks(model)).model_validate(table)
        except pydantic.ValidationError as error:
            for each in details_of(error):
                path = each["loc"]
                # Of a table that is none nothing is known, so what its surroundings miss in its place is not known either.
                about_it = any(other[: len(path)] == path for other in no_tables)
                if attempt and not about_it and not any(path[: len(other)] == other for other in replaced):
                    found.add((path, each["msg"]))
                if path:
                    replaced.append(path)
                    no_tables += [path] if each["type"] in ("model_type", "dict_type") else []
                    table = _replaced(model, table, path, variant)
                else:
                    checked = False
        else:
            return Mended(config, frozenset(found), tuple(replaced))
    return None


def details_of(error: pydantic.ValidationError) -> list[Any]:
    """Return what is wrong. A list with a wrong item is also called too short, because that item is not counted: left out."""
    details = error.errors(include_url=False)
    wrong = [each["loc"] for each in details]

    def repeats(detail: Any) -> bool:
        path = detail["loc"]
        below = (other for other in wrong if len(other) > len(path) and other[: len(path)] == path)
        return bool(detail["type"] == "too_short" and any(below))

    return [each for each in details if not repeats(each)]


@functools.cache
def without_checks(model: type[C]) -> type[C]:
    """Return the class without the checks between its own fields."""
    checks = model.__pydantic_decorators__.model_validators
    after = [name for name, check in checks.items() if check.info.mode == "after"]
    passes = {name: model_validator(mode="after")(lambda self: self) for name in after}
    return type(model.__name__, (model,), {**passes, "__module__": __name__, "__doc__": model.__doc__})


def _replaced(annotation: Any, value: Any, path: Path, variant: int, about: Sequence[Any] = ()) -> Any:
    """Return `value` with a valid one of the annotation's at this path."""
    annotation, about = _bare(annotation, about)
    if not path:
        return _stand_in(annotation, about, variant)
    head, rest = path[0], path[1:]
    members = _members(annotation)
    if members:
        member = _tagged(members, head)
        return _replaced(member or members[0], value, rest if member else path, variant)
    if isinstance(value, Mapping):
        inner = _annotation_of(annotation, head, rest)
        if inner is None:  # a key that cannot be
            return {key: each for key, each in value.items() if key != head}
        return {**value, head: _replaced(inner[0], value.get(head), rest, variant, inner[1])}
    if isinstance(value, (list, tuple)) and isinstance(head, int) and head < len(value):
        of = get_args(annotation)
        inner_type = of[0] if len(of) < 2 or of[1] is Ellipsis else of[min(head, len(of) - 1)]
        return [
            _replaced(inner_type, each, rest, variant) if number == head else each
            for number, each in enumerate(value)
        ]
    return _stand_in(annotation, about, variant)


def _annotation_of(table: Any, key: str | int, rest: Path) -> tuple[Any, Sequence[Any]] | None:
    """Return what stands at a key of a table, and what is said about it; None for a key that cannot be."""
    if isinstance(table, type) and issubclass(table, BaseModel):
        field = table.model_fields.get(str(key))
        return None if field is None else (field.annotation, field.metadata)
    return None if rest == ("[key]",) else ((*get_args(table), Any, Any)[1], ())


def _bare(annotation: Any, about: Sequence[Any] = ()) -> tuple[Any, Sequence[Any]]:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _bare(inner, (*about, *(each for one in more for each in getattr(one, "metadata", (one,)))))
    return annotation, about


def _members(annotation: Any) -> list[Any]:
    """Return what a union is of, nothing left out."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return []
    return [each for each in get_args(annotation) if each is not type(None)]


def _tagged(members: Sequence[Any], tag: str | int) -> Any:
    """Return the member of a tagged union with this tag: pydantic names it in the path, the file does not."""
    for member in members:
        kind = getattr(member, "model_fields", {}).get("kind")
        if kind is not None and tag in get_args(kind.annotation):
            return member
    return None


def _stand_in(annotation: Any, about: Sequence[Any], variant: int) -> Any:
    """Return a valid value. Values of different variants differ, so that what hangs on one shows."""
    annotation, about = _bare(annotation, about)
    if members := _members(annotation):
        return _stand_in(members[variant % len(members)], about, variant)
    origin, of = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        needed = {name: field for name, field in annotation.model_fields.items() if field.is_required()}
        return {name: _stand_in(field.annotation, field.metadata, variant) for name, field in needed.items()}
    if origin is tuple:
        each = of[:1] if of[1:] == (Ellipsis,) else of
        return [_stand_in(inner, (), variant + number) for number, inner in enumerate(each)]
    if origin is dict:
        return {_stand_in(of[0], (), variant): _stand_in(of[1], (), variant)}
    return _single(annotation if origin is None else origin, of, about, variant)


def _single(kind: Any, of: Sequence[Any], about: Sequence[Any], variant: int) -> Any:
    if kind is Literal:
        return of[variant % len(of)]
    if kind is bool:
        return bool(variant % 2)
    if kind in (int, float):
        return _number(kind, about, variant)
    return _word(about, variant) if kind is str else None


def _number(kind: type, about: Sequence[Any], variant: int) -> Any:
    """Return the lowest value of a range, or the highest, or one between."""

    def bound(*names: str) -> Any:
        return next((getattr(each, name) for name in names for each in about if getattr(each, name, None) is not None), None)  # fmt: skip

    low, high = bound("ge", "gt"), bound("le", "lt")
    low = (1 if high is None else high - 1) if low is None else low
    high = 1_000_000 * (1 + variant) + low if high is None else high
    open_ends = (bound("gt") is not None, bound("lt") is not None)
    if kind is int:
        low, high = low + open_ends[0], high - open_ends[1]
        return (low, high)[variant % 2]
    inside = low + (high - low) * (1 + variant) / (2 + VARIANTS)
    ends = (inside if open_ends[0] else low, inside if open_ends[1] else high)
    return float((*ends, inside, inside)[variant % 4])


def _word(about: Sequence[Any], variant: int) -> str:
    patterns = [each.pattern for each in about if getattr(each, "pattern", None)]
    words = (f"stand-in-{variant}", f"http://stand-in-{variant}")
    return next((word for word in words if all(re.search(pattern, word) for pattern in patterns)), words[0])
