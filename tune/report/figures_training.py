"""The training curves of the report: one panel per model size, natural text and the mixtures with one source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tune.report.format import amount, percent
from tune.report.style import Look, label_amounts, open_panel, quarters, write_heading
from tune.report.svg import Drawing, Series, finish_drawing, house_style


@dataclass(frozen=True)
class TrainingCurve:
    """Loss over one run."""

    run_id: str
    label: str
    share: float
    tokens: Sequence[float]
    loss: Sequence[float]
    """Training loss, nats/token, as logged."""
    evaluated_tokens: Sequence[float]
    evaluated_loss: Sequence[float]
    """Held-out loss, nats/token."""


@dataclass(frozen=True)
class CurvesPanel:
    """Runs of one model size, natural and mixed with one source."""

    name: str
    title: str
    curves: tuple[TrainingCurve, ...]


def draw_training(panel: CurvesPanel, looks: dict[float, Look]) -> Drawing:
    """Draw training loss as lines and held-out loss as markers, against tokens trained on."""
    tips: dict[str, list[str]] = {}
    with house_style():
        figure, axes = open_panel()
        named: set[float] = set()
        for curve in panel.curves:
            look = looks[curve.share]
            line = f"line-{curve.run_id}"
            if len(curve.tokens) > 1:
                axes.plot(
                    curve.tokens, curve.loss, color=look.colour, linewidth=1.0, alpha=0.75, gid=line, zorder=2
                )
                tips[line] = [f"{curve.label}, run {curve.run_id}"]
            gid = f"held-out-{curve.run_id}"
            axes.plot(curve.evaluated_tokens, curve.evaluated_loss, linestyle="none", marker=look.marker, markersize=4.5,
                      color=look.colour, label="" if curve.share in named else percent(curve.share), gid=gid,
                      zorder=3)  # fmt: skip
            tips[gid] = [
                f"{curve.label} after {amount(tokens)} tokens: {loss:.4f} nats/token held out, run {curve.run_id}"
                for tokens, loss in zip(curve.evaluated_tokens, curve.evaluated_loss, strict=True)
            ]
            named.add(curve.share)
        axes.set_xscale("log")
        label_amounts(
            axes,
            quarters(
                [tokens for curve in panel.curves for tokens in (*curve.tokens, *curve.evaluated_tokens)]
            ),
        )
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel("loss, nats per token")
        write_heading(figure, axes, panel.title)
        shares = sorted({curve.share for curve in panel.curves})
        togglable = [
            Series(percent(share), looks[share].role, tuple(
                f"{part}-{curve.run_id}" for curve in panel.curves if curve.share == share for part in ("line", "held-out")
            ))
            for share in shares
        ]  # fmt: skip
        alt = f"{panel.title}: training loss (lines) and held-out loss (markers) of {len(panel.curves)} runs."
        runs = [curve.run_id for curve in panel.curves]
        return finish_drawing(figure, panel.name, panel.title, alt, runs, tips, togglable)
