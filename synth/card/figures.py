"""The card's histograms as SVG, drawn in the page's own colours so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from synth.card.survey import Counts
from synth.percentage import percentage

WIDTH, HEIGHT = 320, 150
_LEFT, _TOP, _BASE = 6, 14, 122


def draw_histogram(title: str, counts: Counts, edges: Sequence[float]) -> Markup:
    """Return bars of the fraction of rows in each bin, kept ones below, others on top of them; [2, bins]."""
    total = int(counts.sum())
    if not total:
        return Markup(
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}: no rows</title></svg>'
        )
    tallest = max(counts.sum(axis=0)) / total
    step = (WIDTH - 2 * _LEFT) / counts.shape[1]
    pieces = []
    for at in range(counts.shape[1]):
        kept, other = (int(counts[row, at]) for row in (0, 1))
        x, y = _LEFT + at * step, float(_BASE)
        label = f"{span(edges, at)}: {kept:,} kept, {other:,} not"
        pieces.append(f"<g><title>{escape(label)}</title>")
        for name, count in (("kept", kept), ("other", other)):
            height = (_BASE - _TOP) * count / total / tallest
            y -= height
            if count:
                pieces.append(
                    f'<rect class="{name}" x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{max(height, 0.6):.1f}"/>'
                )
        share = (kept + other) / total
        if share >= 0.005:
            pieces.append(
                f'<text class="share" x="{x + step / 2:.1f}" y="{y - 3:.1f}">{percentage(share)}</text>'
            )
        pieces.append("</g>")
        pieces.append(f'<text x="{x + step / 2:.1f}" y="{_BASE + 12}">{escape(short(edges[at]))}</text>')
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}, {total:,} rows">'
        f'<line x1="{_LEFT}" y1="{_BASE}" x2="{WIDTH - _LEFT}" y2="{_BASE}"/>{"".join(pieces)}</svg>'
    )


BAR_CHARACTERS = 30


def text_histogram(counts: Counts, edges: Sequence[float]) -> list[tuple[str, int, int, str]]:
    """Return the bins that are not empty, from the first to the last: (bin, kept rows, others, bar); [2, bins].

    A bar is BAR_CHARACTERS long for the tallest bin: `█` for what was kept, `░` for what was not.
    """
    totals = counts.sum(axis=0)
    filled = [at for at in range(counts.shape[1]) if totals[at]]
    if not filled:
        return []
    scale = BAR_CHARACTERS / int(totals.max())
    rows = []
    for at in range(filled[0], filled[-1] + 1):
        kept, other = int(counts[0, at]), int(counts[1, at])
        length = round((kept + other) * scale)
        full = min(length, round(kept * scale))
        rows.append((span(edges, at), kept, other, "█" * full + "░" * (length - full)))
    return rows


def span(edges: Sequence[float], at: int) -> str:
    """Return a bin in words: `16 to 32`, `4096 and more`."""
    low, high = edges[at], edges[at + 1]
    return f"{low:g} and more" if math.isinf(high) else f"{low:g} to {high:g}"


def short(edge: float) -> str:
    """Return an edge in few characters: 1024 is 1k."""
    return f"{edge / 1024:g}k" if edge >= 1024 else f"{edge:g}"


def draw_bar(fraction: float) -> Markup:
    """Return a bar of that fraction of its cell."""
    return Markup(
        f'<span class="bar"><span style="width:{100 * min(1.0, max(0.0, fraction)):.1f}%"></span></span>'
    )
