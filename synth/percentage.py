"""Parts of a whole as a person reads them, in one style wherever they stand: `34 %`."""

from __future__ import annotations


def percentage(fraction: float, digits: int = 0) -> str:
    """Return a fraction in per cent with so many decimals, such as `34 %`."""
    return f"{100.0 * fraction:.{digits}f} %"


def signed_percentage(fraction: float, digits: int = 2) -> str:
    """Return a difference from a whole in per cent with its sign, such as `+1.50 %`."""
    return f"{100.0 * fraction:+.{digits}f} %"
