"""The charts as inline SVG: no network, readable on light and dark ground, described in words."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from html import escape
from typing import Any

import matplotlib as mpl
import matplotlib.dates as mdates
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from console.charts import (
    LANES,
    ROLLING_BLOCKS,
    DriftStrip,
    LanePoint,
    MetricLines,
    TrafficShares,
)

INK = "#010203"
"""Stands for the page's own text colour while matplotlib draws."""
SERVED, NEVER, ALWAYS, CLASSIC = "#2f7ed8", "#8a8f98", "#d98200", "#a55fc4"
GOOD, BAD = "#2a9d5c", "#d04545"
_VERSION_COLOURS = ("#2f7ed8", "#d98200", "#2a9d5c", "#a55fc4", "#c4568a", "#4aa3b5", "#9a8a2f", "#d0665a")
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "steadyhand", "font.family": "sans-serif", "font.size": 10,
    "text.parse_math": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "grid.color": NEVER, "grid.alpha": 0.25, "legend.frameon": False, "figure.constrained_layout.use": True,
    "axes.xmargin": 0.01,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    title: str
    alt: str
    """What the plot shows, in words."""
    svg: Markup
    note: str = ""
    """What it leaves out."""


def metric_plot(lines: MetricLines, *, metric: str, lower_is_better: bool, alt: str) -> Plot:
    """The metric over time, as served and by both controls, incidents shaded and promotions marked."""

    def draw(axes: Any) -> None:
        for values, colour, style, width, name in (
            (lines.never, NEVER, (0, (5, 2)), 1.8, "never retrained"),
            (lines.always, ALWAYS, (0, (1, 1)), 1.8, "always retrained"),
            (lines.classic, CLASSIC, (0, (4, 1, 1, 1)), 1.8, "classic rule"),
            (lines.served, SERVED, "solid", 2.2, "as served"),
        ):
            if any(value is not None for value in values):
                known = [float("nan") if value is None else value for value in values]
                axes.plot(lines.times, known, color=colour, linestyle=style, linewidth=width, label=name)
        top = axes.get_xaxis_transform()
        for span in lines.incidents:
            axes.axvspan(
                span.start, max(span.end, span.start + timedelta(hours=12)), color=BAD, alpha=0.13, linewidth=0
            )
            axes.text(span.start, 1.01, span.label, transform=top, color=BAD, fontsize=9, ha="left", va="bottom")
        for n, mark in enumerate(lines.marks):
            colour = GOOD if mark.good else BAD
            axes.axvline(mark.at, color=colour, linewidth=1.4, linestyle="solid" if mark.good else (0, (3, 2)))
            height = 1.06 + 0.05 * (n % 2)  # two rows, so that neighbours do not run into each other
            axes.text(mark.at, height, mark.label, transform=top, color=colour, fontsize=8.5, ha="center", va="bottom")
        axes.set_ylabel(f"{metric} ({'lower' if lower_is_better else 'higher'} is better)")
        axes.grid(axis="y")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.15), ncols=4)
        _dates(axes)

    return _plot(f"{metric}, mean of the last {ROLLING_BLOCKS} blocks", alt, draw, height=4.7)


def gain_plot(times: Sequence[datetime], gains: Mapping[str, Sequence[float]]) -> Plot:
    """What each way has spared so far, beyond never retraining: rows times loss, summed from the first block on."""
    colours = {"as served": SERVED, "always retrained": ALWAYS, "classic rule": CLASSIC}

    def draw(axes: Any) -> None:
        axes.axhline(0, color=NEVER, linewidth=1.2)
        for name, values in gains.items():
            axes.plot(times, values, color=colours[name], linewidth=2.0, label=name)
        axes.set_ylabel("loss spared (rows x loss)")
        axes.grid(axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=3)
        _dates(axes)

    ends = [f"{name} {values[-1]:+.4g}" for name, values in gains.items()]
    alt = f"Loss spared beyond never retraining, summed over {len(times)} blocks: {', '.join(ends)} at the end."
    return _plot("Loss spared beyond never retraining", alt, draw, height=3.0)


def traffic_plot(shares: TrafficShares) -> Plot:
    """Who answered how much of every block."""

    def draw(axes: Any) -> None:
        colours = [_VERSION_COLOURS[i % len(_VERSION_COLOURS)] for i in range(len(shares.versions))]
        labels = [f"version {version}" for version in shares.versions]
        gap = shares.times[1] - shares.times[0] if len(shares.times) > 1 else timedelta(days=1)
        times = [*shares.times, shares.times[-1] + gap]  # the last block has a width too
        stacks = [[*share, share[-1]] for share in shares.shares]
        axes.stackplot(times, *stacks, colors=colours, labels=labels, alpha=0.85, step="post", linewidth=0)
        axes.set_ylim(0, 100)
        axes.set_ylabel("share of answers, %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=6)
        _dates(axes)

    peaks = [f"version {v} up to {max(s):.0f} %" for v, s in zip(shares.versions, shares.shares, strict=True)]
    alt = f"Share of answered requests by version over {len(shares.times)} blocks: {', '.join(peaks)}."
    return _plot("Traffic split", alt, draw, height=3.0)


def drift_plot(strip: DriftStrip) -> Plot:
    """A heat strip: a row a feature, a column a window; the number is the effect, a ring marks what was significant."""

    def draw(axes: Any) -> None:
        for row, (values, levels) in enumerate(zip(strip.statistics, strip.levels, strict=True)):
            for column, (value, level) in enumerate(zip(values, levels, strict=True)):
                if value is None:
                    continue
                shade = min(value / 0.3, 1.0)
                edge = {"major": BAD, "warn": ALWAYS}.get(level, "none")
                cell = Rectangle(
                    (column + 0.04, row + 0.06), 0.92, 0.88, facecolor=(0.85, 0.45, 0.1, 0.08 + 0.72 * shade),
                    edgecolor=edge, linewidth=2.0,
                )  # fmt: skip
                axes.add_patch(cell)
                text = f"{value:.2f}" + {"major": " major", "warn": " warn"}.get(level, "")
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5)
        axes.set_xlim(0, len(strip.windows))
        axes.set_ylim(len(strip.features), 0)
        axes.set_xticks([i + 0.5 for i in range(len(strip.windows))], strip.windows, fontsize=8.5)
        axes.set_yticks([i + 0.5 for i in range(len(strip.features))], strip.features)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)

    moved = [f for f, levels in zip(strip.features, strip.levels, strict=True) if {"warn", "major"} & set(levels)]
    alt = f"Drift of {len(strip.features)} features in {len(strip.windows)} windows. "
    alt += f"Significant in: {', '.join(moved)}." if moved else "Significant in none."
    plot = _plot("Drift by feature and window", alt, draw, height=1.0 + 0.32 * len(strip.features))
    left_out = f"{strip.n_left_out} calmer features are left out." if strip.n_left_out else ""
    return replace(plot, note=left_out)


def decisions_plot(points: Sequence[LanePoint]) -> Plot:
    """Decisions over time by what they were about."""

    def draw(axes: Any) -> None:
        for good, marker, colour, name in (
            (True, "o", GOOD, "went ahead"),
            (False, "X", BAD, "refused, failed or raised"),
        ):
            chosen = [point for point in points if point.good is good]
            if chosen:
                rows = [LANES.index(point.lane) for point in chosen]
                axes.scatter(
                    [p.at for p in chosen], rows, marker=marker, s=48, color=colour, alpha=0.8, linewidth=0, label=name
                )
        axes.set_yticks(range(len(LANES)), LANES)
        axes.set_ylim(len(LANES) - 0.5, -0.5)
        axes.grid(axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=2)
        _dates(axes)

    counts = [f"{lane} {sum(point.lane == lane for point in points)}" for lane in LANES]
    alt = f"{len(points)} decisions over time by lane: {', '.join(counts)}. The table below lists them."
    return _plot("Timeline of decisions", alt, draw, height=2.6)


def _dates(axes: Any) -> None:
    untyped: Any = mdates
    locator = untyped.AutoDateLocator(minticks=4, maxticks=12)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(untyped.ConciseDateFormatter(locator, tz="UTC"))


def _plot(title: str, alt: str, draw: Callable[[Any], None], *, height: float) -> Plot:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # names in scripts that the measuring font lacks; the page's own font draws them
        figure = Figure(figsize=(11, height))
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return Plot(title=title, alt=alt, svg=_inline(out.getvalue(), title=title, alt=alt))


def _inline(svg: str, *, title: str, alt: str) -> Markup:
    """The drawing as part of a page: its ids are its own, its ink is the page's, and it says what it shows."""
    prefix = re.sub(r"\W+", "-", title.lower())
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = body.replace(INK, "currentColor")
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = escape(f"{title}. {alt}", quote=True)
    return Markup(f'{head} role="img" aria-label="{label}"><title>{escape(title)}</title>{rest}')  # noqa: S704 - escaped above, and matplotlib escapes every text
