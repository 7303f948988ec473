"""What `steady up` and `steady demo` do once their options are read."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.progress import Progress

from console import demo as flights_demo
from console.cli.output import err, out, print_json, say
from console.first import first_champion
from console.interrupts import ended_by_signals
from console.preflight import Window, claim, parse_time
from console.report import write_report
from console.services import status
from console.settings import Settings
from console.specs import load_spec
from console.summary import Summary, render_text, summarise
from console.up import Running, live, replay, shut_down, start_model
from console.work_time import WorkTime
from console.workspace import open_workspace
from state.errors import InputError


def run_up(
    spec: Path,
    *,
    replay_from: str | None,
    until: str | None,
    html: Path | None,
    keep_running: bool,
    ticks: int | None,
    json: bool,
    settings: Settings,
) -> None:
    """Bring the model of `spec` up, live or on a replay, and run the loop until its end.

    Raises:
        InputError: the spec, an option or the data is wrong; nothing was begun.
    """
    loaded = load_spec(spec)
    window = _asked_window(replay_from, until)
    _check_writable(html)
    with ended_by_signals(), closing(open_workspace(settings, create=True)) as workspace:
        work = WorkTime(workspace.db, loaded.spec.model)
        running = start_model(workspace, loaded, window=window, say=say)
        try:
            first_champion(running, ticks=ticks)
            if running.window is None:
                live(running, loaded, ticks=ticks)
                if json:
                    print_json(status(workspace))
            else:
                run_replay(running, running.window, hooks=[], work=work)
                finish(running, running.window, seconds=work.seconds(), json=json, html=html)
        finally:
            shut_down(running, keep=keep_running)


def run_demo(*, full: bool, fresh: bool, keep_running: bool, html: Path | None, json: bool, settings: Settings) -> None:
    """The flights of 2013, with both injected acts."""
    _check_writable(html)
    if fresh or flights_demo.half_removed(settings):
        flights_demo.remove(settings)
    with ended_by_signals(), closing(open_workspace(settings, create=True)) as workspace:
        work = WorkTime(workspace.db, flights_demo.MODEL)
        claim(workspace, flights_demo.MODEL)
        loaded = load_spec(flights_demo.prepare_files(settings, say))
        window = flights_demo.window(full)
        running = start_model(workspace, loaded, window=window, say=say)
        try:
            first_champion(running)
            run_replay(running, window, hooks=flights_demo.hooks(running), work=work)
            finish(running, window, seconds=work.seconds(), json=json, html=html)
        finally:
            shut_down(running, keep=keep_running)


def _asked_window(replay_from: str | None, until: str | None) -> Window | None:
    """The window of `--replay` and `--until`; None for live operation."""
    if replay_from is None:
        if until is not None:
            raise InputError("--until needs --replay", remedy="Give the first date with --replay")
        return None
    start = parse_time(replay_from, "--replay")
    end = parse_time(until, "--until") if until is not None else datetime.max.replace(tzinfo=start.tzinfo)
    if end <= start:
        raise InputError(
            f"--until {until} is not after --replay {replay_from}: the window is empty", remedy="Give a later --until"
        )
    return Window(start=start, end=end)


def _check_writable(html: Path | None) -> None:
    """Before the work rather than after it."""
    if html is not None and (html.is_dir() or not os.access(html.absolute().parent, os.W_OK)):
        raise InputError(f"--html {html} cannot be written", remedy="Name a file in a writable folder")


def run_replay(running: Running, window: Window, *, hooks: list[Any], work: WorkTime) -> None:
    """Replay with a progress bar on standard error."""
    total = max((window.end - window.start) / running.spec.monitoring.block, 1)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("replay", total=total)

        def on_block(at: datetime, n_rows: int) -> None:
            done = (at - window.start) / running.spec.monitoring.block
            progress.update(task, completed=done, description=f"{at:%Y-%m-%d} ({n_rows} rows)")
            work.note()

        replay(running, window, hooks=hooks, on_block=on_block)


def finish(running: Running, window: Window, *, seconds: float | None, json: bool, html: Path | None) -> Summary:
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
