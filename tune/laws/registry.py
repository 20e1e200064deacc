"""Every law by name."""

from __future__ import annotations

from collections.abc import Sequence

from synth.errors import UserError
from tune.laws.forms import (
    CHINCHILLA,
    CHINCHILLA_TIED,
    DATA,
    DATA_CONSTRAINED,
    MODEL,
    OVER_TRAINING,
    RECTIFIED,
)
from tune.laws.forms_mixture import BIVARIATE_MIXING, RATIO_DATA, RATIO_FLOOR, RATIO_FULL, exponential_mixing
from tune.laws.law import Law

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        DATA,
        MODEL,
        CHINCHILLA,
        CHINCHILLA_TIED,
        OVER_TRAINING,
        RECTIFIED,
        DATA_CONSTRAINED,
        RATIO_FLOOR,
        RATIO_DATA,
        RATIO_FULL,
        BIVARIATE_MIXING,
    )
}
"""Laws of a fixed form."""

EXPONENTIAL_MIXING = "exponential_mixing"
"""The one law whose number of parameters depends on the table: one slope for each share column."""

LAW_NAMES = (*LAWS, EXPONENTIAL_MIXING)


def law_named(name: str, shares: Sequence[str] = ()) -> Law:
    """Return a law by name; `shares` are the columns of `exponential_mixing`. Raises UserError for an unknown name."""
    if name == EXPONENTIAL_MIXING:
        if not shares:
            raise UserError(
                f"the {name} law needs to know which columns are shares: name them with columns.shares"
            )
        return exponential_mixing(shares)
    try:
        return LAWS[name]
    except KeyError:
        raise UserError(f"there is no law {name!r}; known laws: {', '.join(LAW_NAMES)}") from None


def explain(law: str | Law) -> str:
    """Return a law in words: formula, every symbol with its unit, the paper it is from."""
    known = law if isinstance(law, Law) else law_named(law, ("source",) if law == EXPONENTIAL_MIXING else ())
    width = max(len(parameter.name) for parameter in known.parameters)
    symbols = [f"  {p.name:<{width}}  {p.meaning} [{p.unit}]" for p in known.parameters]
    return "\n".join([f"{known.name}: {known.formula}", *symbols, f"  source: {known.source}"])
