"""The HTML report of a summary: one static file without a single outside asset."""

from __future__ import annotations

import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from console import charts, plots
from console.figures import figure
from console.plots import Plot
from console.summary_text import answer, day, gain, kept, percent, shown, took
from console.summary_types import Summary
from console.workspace import Workspace
from state.errors import InputError

_TEMPLATES = Path(__file__).resolve().parent / "templates"


def write_report(workspace: Workspace, summary: Summary, path: Path) -> None:
    """Write the report of `summary` to `path`, replacing what stands there.

    Raises:
        InputError: the file cannot be written.
    """
    page = render_report(summary, home=workspace.settings.home)
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(path)
    except OSError as exc:
        raise InputError(
            f"{path} cannot be written: {exc.strerror}", remedy="Name a file in a writable folder"
        ) from exc


def render_report(summary: Summary, *, home: Path) -> str:
    """The page. Every text of the summary is data: it is escaped, and the page runs no script."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {
        "day": day,
        "percent": percent,
        "took": took,
        "answer": answer,
        "words": _words,
        "figure": figure,
    }
    environment.globals |= {
        "shown": lambda value: shown(value, summary.metric),
        "gain": lambda measured: gain(measured, summary),
    }
    template = environment.get_template("report.html.j2")
    return template.render(s=summary, kept=kept(summary), commands=_commands(summary, home), plots=_plots(summary))


def _words(text: str | None) -> str:
    return (text or "-").replace("_", " ")


def _plots(summary: Summary) -> dict[str, Plot]:
    """Plots by name; one without data is left out, and the page says so."""
    found: dict[str, Plot] = {}
    if any(block.served is not None for block in summary.blocks):
        found["metric"] = plots.metric_plot(
            charts.metric_lines(summary),
            metric=summary.metric,
            lower_is_better=summary.lower_is_better,
            alt=charts.describe_metric(summary),
        )
    if any(block.n_by_version for block in summary.traffic.blocks):
        found["traffic"] = plots.traffic_plot(charts.traffic_shares(summary.traffic.blocks))
    strip = charts.drift_strip(summary.drift)
    if strip.features:
        found["drift"] = plots.drift_plot(strip)
    points = charts.decision_lanes(summary.timeline)
    if points:
        found["decisions"] = plots.decisions_plot(points)
    return found


def _commands(summary: Summary, home: Path) -> list[str]:
    """How to verify the log: here, and elsewhere from an export alone."""
    where = f"--home {shlex.quote(str(home))}"
    return [
        f"steady audit verify {where}",
        f"steady audit verify {where} --write-export decisions.jsonl",
        "steady audit verify --export decisions.jsonl --checkpoints "
        f"{shlex.quote(summary.log.checkpoints)} --key {shlex.quote(summary.log.vkey)}",
    ]
