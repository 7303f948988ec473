"""`steady up` and `steady demo`: the one mechanism that serves a model and runs the loop."""

from __future__ import annotations

import signal
import time
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.progress import Progress

from console import demo as flights_demo
from console.cli.options import Home, Json, settings_of
from console.cli.output import err, out, print_json, say
from console.report import write_report
from console.specs import load_spec
from console.summary import Summary, render_text, summarise
from console.up import (
    Running,
    Window,
    first_champion,
    live,
    parse_time,
    replay,
    shut_down,
    start_model,
)
from console.workspace import open_workspace
from state.errors import InputError
from tools.data import WorkspaceData


def _on_term(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def up(
    spec: Annotated[Path, typer.Argument(help="A model spec; `steady init FILE` writes one.")],
    replay_from: Annotated[
        str | None, typer.Option("--replay", help="Replay the rows from this date on as live traffic.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Replay up to this date; default: the end of the data.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the HTML report here.")] = None,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave servers and Envoy up at the end.")
    ] = False,
    ticks: Annotated[int | None, typer.Option(help="Without --replay: stop after so many looks.")] = None,
    json: Json = False,
    home: Home = None,
) -> None:
    """Train the first champion of a spec, serve it behind Envoy and run the loop.

    Example: steady up churn.yaml --replay 2024-01-01
    """
    loaded = load_spec(spec)
    if until is not None and replay_from is None:
        raise InputError("--until needs --replay", remedy="Give the first date with --replay")
    begun = time.monotonic()
    workspace = open_workspace(settings_of(home), create=True)
    signal.signal(signal.SIGTERM, _on_term)
    try:
        start = parse_time(replay_from, "--replay") if replay_from else None
        end = parse_time(until, "--until") if until else datetime.max.replace(tzinfo=start.tzinfo) if start else None
        window = Window(start=start, end=end) if start and end else None
        running = start_model(workspace, loaded, window=window, say=say)
        try:
            first_champion(running)
            if window is None:
                live(running, loaded, ticks=ticks)
                return
            window = clip(running, window)
            run_replay(running, window, hooks=[])
            finish(running, window, seconds=time.monotonic() - begun, json=json, html=html)
        finally:
            shut_down(running, keep=keep_running)
    finally:
        workspace.close()


def clip(running: Running, window: Window) -> Window:
    """The window, ended where the data ends."""
    last = WorkspaceData(running.workspace.home).traffic_end(running.spec.model)
    if last is None:
        raise InputError(
            f"{running.spec.model}: no row lies after {window.start:%Y-%m-%d}",
            remedy="Give an earlier date with --replay",
        )
    block = running.spec.monitoring.block
    n_blocks = -((window.start - last) // block)
    return Window(start=window.start, end=min(window.end, window.start + n_blocks * block))


def run_replay(running: Running, window: Window, *, hooks: list[Any]) -> None:
    """Replay with a progress bar on standard error."""
    total = max((window.end - window.start) / running.spec.monitoring.block, 1)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("replay", total=total)

        def on_block(at: datetime, n_rows: int) -> None:
            done = (at - window.start) / running.spec.monitoring.block
            progress.update(task, completed=done, description=f"{at:%Y-%m-%d} ({n_rows} rows)")

        replay(running, window, hooks=hooks, on_block=on_block)


def finish(running: Running, window: Window, *, seconds: float, json: bool, html: Path | None) -> Summary:
    """The summary of a replay: printed, and written as an HTML report."""
    say("orchestrator", "measuring the two controls: never retrained, always retrained")
    summary = summarise(
        running.workspace, running.spec.model, start=window.start, end=window.end, platform=running.platform,
        progress=lambda text: say("controls", text), wall_seconds=seconds,
    )  # fmt: skip
    path = html or running.workspace.home / "report.html"
    write_report(running.workspace, summary, path)
    if json:
        print_json(summary.model_dump(mode="json"))
    else:
        for part in render_text(summary):
            out.print(part)
        out.print(f"HTML report: {path}", markup=False)
    return summary


def demo(
    full: Annotated[bool, typer.Option("--full", help="To the end of December instead of September.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start clean: stop what runs and remove the workspace.")
    ] = False,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave servers and Envoy up at the end.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the HTML report here.")] = None,
    json: Json = False,
    home: Home = None,
) -> None:
    """The main job on real data: flights of 2013, with a data fault and a bad release on the way.

    Example: steady demo --full --keep-running
    """
    begun = time.monotonic()
    settings = settings_of(home)
    if fresh:
        flights_demo.remove(settings)
    workspace = open_workspace(settings, create=True)
    signal.signal(signal.SIGTERM, _on_term)
    try:
        loaded = load_spec(flights_demo.prepare_files(settings, say))
        window = flights_demo.window(full)
        running = start_model(workspace, loaded, window=window, say=say)
        try:
            first_champion(running)
            run_replay(running, window, hooks=flights_demo.hooks(running))
            finish(running, window, seconds=time.monotonic() - begun, json=json, html=html)
        finally:
            shut_down(running, keep=keep_running)
    finally:
        workspace.close()
