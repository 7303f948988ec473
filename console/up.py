"""`steady up`: bring a model under management, serve it, and run the loop on what arrives or on a replay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from console.interrupts import left_to_the_event_loop, undisturbed
from console.preflight import Say, Window, check_port, check_served, check_time, claim, import_rows
from console.signing import load_signer
from console.specs import LoadedSpec
from console.wiring import data_plane, laptop_platform, make_crew
from console.workspace import Workspace
from orchestrator.crew import Crew
from orchestrator.graph import Graph, open_graph
from orchestrator.intake import add_model
from orchestrator.loop import checkpoint, let_go, run_until_quiet
from orchestrator.replay import Replay
from state import log, store
from state.clock import Clock, ReplayClock, WallClock
from state.decisions import Commanded
from state.errors import InputError, RetryableError, SteadyError, ToolRejected
from state.rows import ActionRow, ModelRow, SwitchRow
from state.spec import ModelSpec
from tools.data import WorkspaceData, traffic
from tools.importer import import_files
from tools.inbox import take_in
from tools.ports import Platform
from tools.replay import send_rows

PATIENCE = timedelta(minutes=10)
"""Live operation looks every few seconds: a longer pause was a stop, in which servers may have been down as well."""


@dataclass(slots=True)
class FileTraffic:
    """Replay rows of the workspace as a source of live traffic."""

    home: Path
    spec: ModelSpec

    def blocks(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, pl.DataFrame]]:
        for block in traffic(self.home, self.spec.model, start=start, end=end, block=self.spec.monitoring.block):
            yield block.start, block.end, block.rows

    def send(self, rows: pl.DataFrame, address: str) -> tuple[int, int]:
        with left_to_the_event_loop():
            sent = send_rows(rows, address=address, model=self.spec.model, features=self.spec.feature_names())
        return sent.n_rows, sent.n_failed


@dataclass(slots=True, kw_only=True)
class Running:
    """Everything that stands while a model is up."""

    workspace: Workspace
    platform: Platform
    crew: Crew
    graph: Graph
    spec: ModelSpec
    clock: Clock
    say: Say
    window: Window | None
    """What is replayed; None in live operation."""
    stack: ExitStack = field(default_factory=ExitStack)


def start_model(workspace: Workspace, loaded: LoadedSpec, *, window: Window | None, say: Say) -> Running:
    """Import the data, open the platform, and put the model, its standing goal and its first run into the state.

    Raises:
        InputError: spec, data, window, port or a stored package is wrong; the model is as it was before.
    """
    spec = loaded.spec
    check_served(spec)
    policy, signer = workspace.load_policy(), load_signer(workspace)
    claim(workspace, spec.model)
    check_port(workspace, loaded)
    check_time(workspace, window)
    window = import_rows(workspace, loaded, window=window, say=say)
    platform = laptop_platform(workspace, {spec.model: spec}, loaded.base_path)
    clock: Clock = ReplayClock(_replay_now(workspace, window)) if window else _wall_clock(workspace)
    crew = make_crew(
        workspace, platform, clock, say, policy=policy, signer=signer, patience=None if window else PATIENCE
    )  # fmt: skip
    stack = ExitStack()
    graph = stack.enter_context(open_graph(workspace.home / "steady.db"))
    running = Running(
        workspace=workspace, platform=platform, crew=crew, graph=graph, spec=spec, clock=clock, say=say,
        window=window, stack=stack,
    )  # fmt: skip
    try:
        _manage(running, loaded)
        restore_serving(running)
    except BaseException:
        shut_down(running, keep=False)
        raise
    return running


def _replay_now(workspace: Workspace, window: Window) -> datetime:
    with workspace.db.transaction() as conn:
        row = store.get(conn, SwitchRow, "domain_time")
        if row is not None and row.body.get("at"):
            return datetime.fromisoformat(str(row.body["at"]))
        store.put(conn, SwitchRow(id="domain_time", body={"at": window.start.isoformat()}), fence=None)
    return window.start


def _wall_clock(workspace: Workspace) -> WallClock:
    """The time of day, for everybody: a replay that this workspace has seen no longer says what time it is."""
    with workspace.db.transaction() as conn:
        if store.get(conn, SwitchRow, "domain_time") is not None:
            store.put(conn, SwitchRow(id="domain_time", body={"at": None}), fence=None)
    return WallClock()


def _manage(running: Running, loaded: LoadedSpec) -> None:
    """Add the model once: its row, its standing goal and the run that makes its first champion."""
    crew, spec = running.crew, running.spec
    with crew.db.transaction() as conn:
        known = store.get(conn, ModelRow, spec.model)
        if known is not None:
            if known.spec_sha256 != loaded.sha256:
                _spec_changed(crew, conn, known, loaded)
            return
        add_model(crew, conn, spec, spec_sha256=loaded.sha256, base_path=str(loaded.base_path))


def _spec_changed(crew: Crew, conn: Any, known: ModelRow, loaded: LoadedSpec) -> None:
    known.spec, known.spec_sha256 = loaded.spec.model_dump(mode="json"), loaded.sha256
    store.put(conn, known, fence=None)
    log.append(
        conn,
        Commanded(
            **crew.stamp(), model=known.id, actor='User::"spec"', command="spec_changed",
            summary=f"The spec of {known.id} changed.", details={"spec_sha256": loaded.sha256},
        ),
    )  # fmt: skip


def restore_serving(running: Running) -> None:
    """Bring back the servers of every version in the route, under the keys that staged them.

    A clean stop ended them, a kill left them running: either way the ledger already holds the action, so this adds no
    effect to it.
    """
    platform, model = running.platform, running.spec.model
    route = platform.mesh.read(model)
    if route is None:
        return
    with running.crew.db.transaction() as conn:
        staged = store.select(conn, ActionRow, model=model, kind="stage_version", state="verified", order="created_at")
    keys = {str(action.args["version"]): action.id for action in staged}
    for version in route.weights:
        key = keys.get(version, "restore")
        try:
            package = platform.registry.package(model, version)
            endpoint = platform.servers.start(model=model, version=version, package=package, key=key)
        except ToolRejected as exc:
            raise InputError(
                f"version {version} of {model}, which is in the route, cannot be served: {exc}",
                remedy=f"Restore its package in {running.workspace.home / 'mlflow'} from a backup",
            ) from exc
        platform.mesh.stage(endpoint=endpoint, key=route.key or key)


def replay(
    running: Running,
    window: Window,
    *,
    hooks: list[Callable[[datetime], bool]],
    on_block: Callable[[datetime, int], None],
) -> None:
    """Replay the window through Envoy and run the loop in domain time."""
    assert isinstance(running.clock, ReplayClock)
    Replay(
        crew=running.crew, graph=running.graph, spec=running.spec, clock=running.clock, start=window.start,
        end=window.end, source=FileTraffic(running.workspace.home, running.spec), hooks=hooks, on_block=on_block,
    ).run()  # fmt: skip


def live(running: Running, loaded: LoadedSpec, *, ticks: int | None = None) -> None:
    """Run the loop on what arrives: new files, predictions and outcomes; until interrupted, or for `ticks` looks.

    A file that cannot be taken in is told of once and left where it is; the model is looked after all the same.
    """
    inbox = running.workspace.home / "inbox" / running.spec.model
    inbox.mkdir(parents=True, exist_ok=True)
    running.say("monitoring", f"outcomes are taken in from {inbox} (request_id, label)")
    steps = (partial(_new_rows, running, loaded), partial(_new_outcomes, running, inbox), partial(_look, running))
    told: set[str] = set()
    looks = 0
    while ticks is None or looks < ticks:
        for step in steps:
            try:
                refused = step()
            except (InputError, RetryableError) as exc:
                refused = (exc,)
            for problem in refused:
                if str(problem) not in told:
                    running.say("orchestrator", str(problem))
                told.add(str(problem))
        looks += 1
        if ticks is None or looks < ticks:
            time.sleep(running.workspace.settings.tick_seconds)


def _new_rows(running: Running, loaded: LoadedSpec) -> Sequence[SteadyError]:
    result = import_files(running.workspace.home, running.spec, loaded.base_path)
    if result.changed:
        running.say("data validation", f"new files: {result.manifest.n_labelled} labelled history rows now")
    return ()


def _new_outcomes(running: Running, inbox: Path) -> Sequence[SteadyError]:
    outcomes = running.platform.outcomes
    classes = list(WorkspaceData(running.workspace.home).classes(running.spec.model))
    taken = take_in(inbox, running.spec.model, outcomes, classes=classes, now=running.clock.now())
    if taken.n_new:
        running.say("monitoring", f"{taken.n_new} new outcomes")
    return taken.refused


def _look(running: Running) -> Sequence[SteadyError]:
    running.platform.servers.flush(running.spec.model)
    run_until_quiet(running.crew, running.graph, running.spec)
    checkpoint(running.crew)
    return ()


def shut_down(running: Running, *, keep: bool) -> None:
    """Stop servers and Envoy unless they are to stay; give the lease back and close what this process holds.

    Envoy stays while it serves another model of the workspace. A second Ctrl-C does not cut this short.
    """
    with undisturbed(), running.stack:
        try:
            if not keep:
                stop_serving(running.workspace.home, [running.spec.model])
        finally:
            # Last: whoever gets the lease must not adopt servers that are about to be stopped.
            let_go(running.crew, running.spec.model)


def stop_everything(home: Path) -> None:
    """End every server and the Envoy of a workspace, whoever started them."""
    stop_serving(home, _models_with_servers(home))


def stop_serving(home: Path, models: Sequence[str]) -> None:
    """End the servers of `models`, and Envoy where no other model is served."""
    servers, mesh = data_plane(home)
    for model in models:
        for endpoint in servers.list(model):
            servers.stop(model=model, version=endpoint.version, key="shutdown")
    if not any(servers.list(model) for model in _models_with_servers(home)):
        mesh.stop()


def _models_with_servers(home: Path) -> list[str]:
    folder = home / "servers"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
