"""`steady up` and `steady demo`: their options. What they do is imported when they are asked for, for it is heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from console.cli.options import Home, Json, settings_of


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
    ticks: Annotated[int | None, typer.Option(min=1, help="Without --replay: stop after so many looks.")] = None,
    json: Json = False,
    home: Home = None,
) -> None:
    """Train the first champion of a spec, serve it behind Envoy and run the loop.

    Example: steady up churn.yaml --replay 2024-01-01
    """
    from console.cli.session import run_up

    run_up(
        spec, replay_from=replay_from, until=until, html=html, keep_running=keep_running, ticks=ticks, json=json,
        settings=settings_of(home),
    )  # fmt: skip


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
    from console.cli.session import run_demo

    run_demo(full=full, fresh=fresh, keep_running=keep_running, html=html, json=json, settings=settings_of(home))
