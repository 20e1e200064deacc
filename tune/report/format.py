"""How the report writes numbers for people: short text with a unit, the full value kept beside it for machines.

Nothing here rounds what is stored: the CSVs and the `value` attributes of the page carry the number as recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from synth.percentage import percentage, signed_percentage
from synth.progress import clock
from tune.results import Interval

ABSENT = "–"
"""Shown where a number was not measured or does not apply; no default stands in for it."""

_PREFIXES = (
    (1e24, "Y"),
    (1e21, "Z"),
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
)
_COUNT_PREFIXES = ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k"))


def significant(value: float, digits: int = 4) -> str:
    """Return a number with so many significant digits, trailing zeros kept, exponents only far from 1."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 6:
        return f"{value:,.{max(0, digits - 1 - exponent)}f}"
    return f"{value:.{digits - 1}e}"


def amount(value: float) -> str:
    """Return tokens or parameters as `330 k`, `1.05 M`, `8 B`: three significant digits, no trailing zeros."""
    for factor, prefix in _COUNT_PREFIXES:
        if abs(value) >= factor * 0.9995:
            return _trimmed(value / factor) + prefix
    return _trimmed(value)


def flops(value: float) -> str:
    """Return floating-point operations as `1.23 PFLOP`."""
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor * 0.9995:
            return f"{_trimmed(value / factor)} {prefix}FLOP"
    return f"{_trimmed(value)} FLOP"


def count(value: float) -> str:
    """Return a count with thousands separators."""
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """Return a fraction as a percentage, one decimal below 10 % unless it is whole, none above."""
    scaled = value * 100
    return (
        f"{scaled:.0f} %" if abs(scaled) >= 9.95 or abs(scaled - round(scaled)) < 0.005 else f"{scaled:.1f} %"
    )


def size(value: float) -> str:
    """Return a number of bytes as `12.3 MB` (powers of 1000)."""
    for factor, prefix in _PREFIXES[3:]:
        if value >= factor * 0.9995:
            return f"{_trimmed(value / factor)} {prefix}B"
    return f"{value:.0f} B"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else clock(value)


def _hours(value: float) -> str:
    return f"{significant(value, 3)} h"


def _trimmed(value: float) -> str:
    text = significant(value, 3)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


FORMATS: dict[str, Callable[[float], str]] = {
    "amount": amount,
    "bpb": lambda value: f"{value:.3f}",
    "count": count,
    "error": lambda value: percentage(value, 2),
    "flops": flops,
    "hours": _hours,
    "loss": lambda value: f"{value:.4f}",
    "money": lambda value: f"{value:,.2f}",
    "number": significant,
    "percent": percent,
    "scientific": lambda value: f"{value:.2e}",
    "seconds": _seconds,
    "signed_percent": signed_percentage,
    "size": size,
    "times": lambda value: f"{significant(value, 3)}×",
}
"""Kinds of number a column or a macro of the templates may name."""


def show(value: Any, kind: str) -> str:
    """Return the text for a value: numbers by `FORMATS`, intervals as `value [low, high]`, None as a dash."""
    if value is None:
        return ABSENT
    if isinstance(value, Interval):
        return show_interval(value, kind)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and kind in FORMATS:
        return FORMATS[kind](value)
    return str(value)


def show_interval(interval: Interval, kind: str) -> str:
    """Return `value [low, high]`, or the value alone when no interval was computed; an open end says so."""
    text = FORMATS[kind](interval.value)
    if interval.low is None and interval.high is None:
        return text
    return f"{text} [{show_end(interval.low, kind)}, {show_end(interval.high, kind)}]"


def show_end(end: float | None, kind: str) -> str:
    """Return one end of an interval; a resampled quantity without a limit has an open end."""
    return "no limit" if end is None else FORMATS[kind](end)
