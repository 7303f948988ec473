"""`steady up`: bring a model under management, serve it, and run the loop on what arrives or on a replay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from console.specs import LoadedSpec
from console.wiring import data_plane, laptop_platform, make_crew, owner_is_dead
from console.workspace import Workspace
from orchestrator.crew import Crew
from orchestrator.graph import Graph, open_graph
from orchestrator.loop import bury, checkpoint, let_go, run_until_quiet
from orchestrator.replay import Replay
from orchestrator.runs import new_run
from orchestrator.triage import note_cadence
from state import log, store
from state.clock import Clock, ReplayClock, WallClock
from state.decisions import Commanded
from state.errors import InputError
from state.rows import ActionRow, DetectorRow, GoalRow, ModelRow, RunRow, SwitchRow
from state.spec import FilesData, ModelSpec
from tools.data import WorkspaceData, traffic
from tools.importer import import_files
from tools.inbox import take_in
from tools.ports import Platform
from tools.replay import send_rows

Say = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The stretch of domain time that a replay covers."""

    start: datetime
    end: datetime


@dataclass(slots=True)
class FileTraffic:
    """Replay rows of the workspace as a source of live traffic."""

    home: Path
    spec: ModelSpec

    def blocks(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, pl.DataFrame]]:
        for block in traffic(self.home, self.spec.model, start=start, end=end, block=self.spec.monitoring.block):
            yield block.start, block.end, block.rows

    def send(self, rows: pl.DataFrame, address: str) -> tuple[int, int]:
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
    stack: ExitStack = field(default_factory=ExitStack)


def check_served(spec: ModelSpec) -> None:
    """Raises InputError where the spec asks for a kind that is read but not yet served."""
    parts = {"data": spec.data, "training": spec.training, "serving": spec.serving, "delivery": spec.delivery}
    ours = {"data": "files", "training": "recipe", "serving": "managed", "delivery": "direct"}
    for name, kind in ours.items():
        if parts[name].kind != kind:
            raise InputError(
                f"{name}.kind is {parts[name].kind!r}: it is read and checked, and not carried out yet",
                remedy=f"Use {name}.kind {kind!r} for `steady up`",
            )


def start_model(workspace: Workspace, loaded: LoadedSpec, *, window: Window | None, say: Say) -> Running:
    """Import the data, open the platform, and put the model, its standing goal and its first run into the state."""
    spec = loaded.spec
    check_served(spec)
    say("data validation", f"reading {spec.data.path if isinstance(spec.data, FilesData) else spec.model}")
    result = import_files(workspace.home, spec, loaded.base_path, until=window.start if window else None)
    if result.changed:
        later = f"; {result.manifest.n_labelled_replay} labelled ones to replay" if window else ""
        say("data validation", f"{spec.model}: {result.manifest.n_labelled} labelled history rows{later}")
    platform = laptop_platform(workspace, {spec.model: spec})
    clock: Clock = ReplayClock(_replay_now(workspace, window)) if window else WallClock()
    crew = make_crew(workspace, platform, clock, say)
    stack = ExitStack()
    graph = stack.enter_context(open_graph(workspace.home / "steady.db"))
    running = Running(
        workspace=workspace, platform=platform, crew=crew, graph=graph, spec=spec, clock=clock, say=say, stack=stack
    )  # fmt: skip
    bury(crew, spec.model, owner_is_dead)
    _manage(running, loaded)
    restore_serving(running)
    return running


def _replay_now(workspace: Workspace, window: Window) -> datetime:
    with workspace.db.transaction() as conn:
        row = store.get(conn, SwitchRow, "domain_time")
        if row is None:
            store.put(conn, SwitchRow(id="domain_time", body={"at": window.start.isoformat()}), fence=None)
    return datetime.fromisoformat(str(row.body["at"])) if row is not None else window.start


def _manage(running: Running, loaded: LoadedSpec) -> None:
    """Add the model once: its row, its standing goal and the run that makes its first champion."""
    crew, spec = running.crew, running.spec
    with crew.db.transaction() as conn:
        known = store.get(conn, ModelRow, spec.model)
        if known is not None:
            if known.spec_sha256 != loaded.sha256:
                _spec_changed(crew, conn, known, loaded)
            return
        now = crew.clock.now()
        store.put(
            conn,
            ModelRow(id=spec.model, spec=spec.model_dump(mode="json"), spec_sha256=loaded.sha256,
                     base_path=str(loaded.base_path), added_at=now),
            fence=None,
        )  # fmt: skip
        bound = spec.objective
        goal = GoalRow(
            id=crew.ids.new_id(), model=spec.model, status="active", standing=True, asked_by=spec.owner, asked_at=now,
            goal={"intent": "maintain", "model": spec.model, "objectives": [bound.model_dump(mode="json")]},
            text=f"keep {spec.model}'s {bound.metric} {'above' if bound.op.startswith('>') else 'below'} {bound.value}",
        )  # fmt: skip
        store.put(conn, goal, fence=None)
        run = new_run(
            crew, model=spec.model, subject_id=goal.id, subject_kind="goal",
            facts={"training_justified": True, "ab_cleared": True, "gates_cleared": False},
        )  # fmt: skip
        store.put(conn, run, fence=None)
        log.append(
            conn,
            Commanded(
                **crew.stamp(), model=spec.model, actor='User::"spec"', command="model_added",
                summary=f"{spec.model} is managed from now on, for {spec.owner}: {goal.text}.",
                details={"spec_sha256": loaded.sha256},
            ),
        )  # fmt: skip


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
        package = platform.registry.package(model, version)
        endpoint = platform.servers.start(model=model, version=version, package=package, key=key)
        platform.mesh.stage(endpoint=endpoint, key=route.key or key)


def first_champion(running: Running) -> None:
    """Run the loop until the first champion serves.

    Raises:
        InputError: the run ended without one; the message says why.
    """
    deadline = time.monotonic() + 3600
    while time.monotonic() < deadline:
        last = run_until_quiet(running.crew, running.graph, running.spec)
        with running.crew.db.transaction() as conn:
            champion = store.get(conn, DetectorRow, f"{running.spec.model}/champion")
            runs = store.select(conn, RunRow, model=running.spec.model)
        if champion is not None:
            with running.crew.db.transaction() as conn:
                if store.get(conn, DetectorRow, f"{running.spec.model}/cadence") is None:
                    note_cadence(running.crew, conn, running.spec, fence=None)
            route = running.platform.mesh.read(running.spec.model)
            if route is not None:
                running.say("deployment", f"version {champion.state['version']} serves at {route.address}/predict")
            return
        if last.outcome == "quiet":
            waits = "; ".join(run.waits_for or run.outcome for run in runs)
            raise InputError(
                f"{running.spec.model} has no first champion: {waits}",
                remedy="See `steady status` and `steady audit list`; answer with `steady approve`, or correct the spec",
            )
        time.sleep(0.05)


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
    """Run the loop on what arrives: new files, predictions and outcomes; until interrupted, or for `ticks` looks."""
    settings, home = running.workspace.settings, running.workspace.home
    inbox = home / "inbox" / running.spec.model
    inbox.mkdir(parents=True, exist_ok=True)
    classes = list(WorkspaceData(home).classes(running.spec.model))
    running.say("monitoring", f"outcomes are taken in from {inbox} (request_id, label)")
    looks = 0
    while ticks is None or looks < ticks:
        result = import_files(running.workspace.home, running.spec, loaded.base_path)
        if result.changed:
            running.say("data validation", f"new files: {result.manifest.n_labelled} labelled history rows now")
        n_labels = take_in(
            inbox, running.spec.model, running.platform.outcomes, classes=classes, now=running.clock.now()
        )
        if n_labels:
            running.say("monitoring", f"{n_labels} new outcomes")
        running.platform.servers.flush(running.spec.model)
        run_until_quiet(running.crew, running.graph, running.spec)
        checkpoint(running.crew)
        looks += 1
        if ticks is None or looks < ticks:
            time.sleep(settings.tick_seconds)


def shut_down(running: Running, *, keep: bool) -> None:
    """Stop servers and Envoy unless they are to stay; give the lease back and close what this process holds."""
    let_go(running.crew, running.spec.model)
    if not keep:
        for endpoint in running.platform.servers.list(running.spec.model):
            running.platform.servers.stop(model=endpoint.model, version=endpoint.version, key="shutdown")
        stop = getattr(running.platform.mesh, "stop", None)
        if stop is not None:
            stop()
    running.stack.close()


def stop_everything(home: Path) -> None:
    """End every server and the Envoy of a workspace, whoever started them."""
    servers, mesh = data_plane(home)
    models = sorted(path.name for path in (home / "servers").iterdir()) if (home / "servers").is_dir() else []
    for model in models:
        for endpoint in servers.list(model):
            servers.stop(model=model, version=endpoint.version, key="shutdown")
    mesh.stop()


def parse_time(text: str, option: str) -> datetime:
    """An ISO date or time in UTC.

    Raises:
        InputError: it is neither.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise InputError(f"{option} {text!r} is not a date", remedy="Write it as 2013-04-01") from exc
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
