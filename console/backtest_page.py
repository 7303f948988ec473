"""The page of a backtest: one static file without a single outside asset."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from console.backtest_story import condensed
from console.backtest_text import headline, repeated, way_rows
from console.backtest_types import BacktestResult, BlockMetric
from console.charts import ROLLING_BLOCKS, Mark, MetricLines, Span, block_time, rolling
from console.plots import Plot, gain_plot, metric_plot
from console.summary_text import shown
from state.clock import utc
from state.errors import InputError

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_DAY = timedelta(days=1)


def check_writable(path: Path) -> None:
    """Raises `InputError` where the page could not be written, before the work is done."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.resolve().parent}"
        raise InputError(f"{path} cannot be written: {why}", remedy="Name a file in a writable folder")


def write_page(result: BacktestResult, path: Path) -> None:
    """Write the page of `result` to `path`, replacing what stands there.

    Raises:
        InputError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(render_page(result), encoding="utf-8")
        draft.replace(path)
    except OSError as exc:
        raise InputError(
            f"{path} cannot be written: {exc.strerror}", remedy="Name a file in a writable folder"
        ) from exc


def render_page(result: BacktestResult) -> str:
    """The page. Every text of the result is data: it is escaped, and the page runs no script."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.globals |= {
        "shown": lambda value: shown(value, result.metric.name), "condensed": condensed, "repeated": repeated,
    }  # fmt: skip
    template = environment.get_template("backtest.html.j2")
    return template.render(r=result, headline=headline(result), ways=way_rows(result), plots=_plots(result))


def _plots(result: BacktestResult) -> list[Plot]:
    known = [block for block in result.blocks if block.served is not None]
    if not known:
        return []
    times = [block_time(block.block) for block in result.blocks]
    lines = MetricLines(
        times=times,
        served=rolling([block.served for block in result.blocks], ROLLING_BLOCKS),
        never=rolling([block.never for block in result.blocks], ROLLING_BLOCKS),
        always=rolling([block.always for block in result.blocks], ROLLING_BLOCKS),
        classic=rolling([block.classic for block in result.blocks], ROLLING_BLOCKS),
        incidents=[
            Span(start=_evening(i.opened), end=_evening(i.closed or result.last_live_day), label=str(n))
            for n, i in enumerate(result.incidents, start=1)
        ],
        marks=_marks(result),
    )
    metric = result.metric
    alt = f"{metric.name} by block from {known[0].block} to {known[-1].block}; {headline(result)}"
    plots = [metric_plot(lines, metric=metric.name, lower_is_better=metric.lower_is_better, alt=alt)]
    gains = {
        name: values
        for way, name in (("served", "as served"), ("always", "always retrained"), ("classic", "classic rule"))
        if (values := _spared(result, way)) is not None
    }
    return [*plots, gain_plot(times, gains)] if gains else plots


def _spared(result: BacktestResult, way: str) -> list[float] | None:
    """Running sum of rows times the loss that a way spared beyond never retraining; None where it was not gone."""
    sign = -1.0 if result.metric.lower_is_better else 1.0

    def spared(block: BlockMetric) -> float:
        mine, never = getattr(block, way), block.never
        return 0.0 if mine is None or never is None else sign * block.n_rows * (mine - never)

    if all(getattr(block, way) is None for block in result.blocks):
        return None
    return [float(value) for value in np.cumsum([spared(block) for block in result.blocks])]


def _marks(result: BacktestResult) -> list[Mark]:
    """Promotions after the first, and rollbacks."""
    marks = []
    for moment in result.timeline:
        kind, _, version = moment.what.partition(": ")
        if kind in ("promoted", "rolled back") and moment.day >= result.first_live_day:
            marks.append(Mark(at=_evening(moment.day), label=f"{version} {kind}", good=kind == "promoted"))
    return marks


def _evening(day: str) -> datetime:
    return utc(datetime.fromisoformat(day)) + _DAY
