"""What has to be right before a model is brought up: kinds that are served, a free port, rows that fit, a window with traffic."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from console.specs import LoadedSpec
from console.wiring import data_plane, living_owner, owner_is_dead, this_process
from console.workspace import Workspace
from orchestrator.crew import LEASE_SECONDS
from state import leases, store
from state.clock import WallClock, utc
from state.errors import InputError
from state.rows import ModelRow, SwitchRow
from state.spec import FilesData, ManagedServing, ModelSpec
from tools.data import WorkspaceData
from tools.datastore import day_files, read_manifest
from tools.features import check_offline
from tools.importer import import_files
from tools.mesh.translate import address_of
from tools.times import mixed_zones

Say: TypeAlias = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The stretch of domain time that a replay covers."""

    start: datetime
    end: datetime


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


def import_rows(workspace: Workspace, loaded: LoadedSpec, *, window: Window | None, say: Say) -> Window | None:
    """Bring the spec's rows into the workspace; the window, ended where the data ends.

    Raises:
        InputError: the data does not fit the spec or the window, or the workspace replays another one.
    """
    spec, home = loaded.spec, workspace.home
    known = read_manifest(home, spec.model)
    with workspace.db.snapshot() as conn:
        begun = store.get(conn, SwitchRow, f"replay/{spec.model}") is not None
    if begun and window is not None and known is not None and known.until != window.start:
        if known.until is None:
            raise InputError(
                f"{home}: the rows of {spec.model} were read for live operation",
                remedy="Leave out --replay to go on live, or replay in another workspace with --home",
            )
        raise InputError(
            f"{home} replays {spec.model} from {known.until:%Y-%m-%d}, not from {window.start:%Y-%m-%d}",
            remedy=f"Say --replay {known.until:%Y-%m-%d} to go on, or begin another workspace with --home",
        )
    say("data validation", f"reading {spec.data.path if isinstance(spec.data, FilesData) else spec.model}")
    check_offline(spec, loaded.base_path)
    result = import_files(home, spec, loaded.base_path, until=window.start if window else None)
    if result.changed:
        later = f"; {result.manifest.n_labelled_replay} labelled ones to replay" if window else ""
        say("data validation", f"{spec.model}: {result.manifest.n_labelled} labelled history rows{later}")
        mixed = mixed_zones(spec.data.time, Counter(result.manifest.zones))
        if mixed is not None:
            say("data validation", f"{spec.model}: warning: {mixed}")
        kept = home / "rejects" / f"{spec.model}.parquet"
        for reason, n_rows in sorted(result.manifest.rejects.items()):
            say("data validation", f"{spec.model}: {n_rows} rows set aside: {reason}; see {kept}")
    return clip(home, spec, window) if window is not None else None


def clip(home: Path, spec: ModelSpec, window: Window) -> Window:
    """The window, ended where the data ends, in whole blocks.

    Raises:
        InputError: no row lies in it.
    """
    last, days = WorkspaceData(home).traffic_end(spec.model), sorted(day_files(home, "replay", spec.model))
    if last is None:
        raise InputError(
            f"{spec.model}: no row lies after {window.start:%Y-%m-%d}", remedy="Give an earlier date with --replay"
        )
    if utc(datetime.fromisoformat(days[0])) >= window.end:
        raise InputError(
            f"{spec.model}: no row lies between {window.start:%Y-%m-%d} and {window.end:%Y-%m-%d}",
            remedy=f"Give a later date with --until; the first row after the start is of {days[0]}",
        )
    block = spec.monitoring.block
    n_blocks = -((window.start - last) // block)
    return Window(start=window.start, end=min(window.end, window.start + n_blocks * block))


def claim(workspace: Workspace, model: str) -> None:
    """Take the model's lease before anything of it is touched; two that start at once would write the same files.

    Raises:
        InputError: another process looks after the model; each would stop the other's servers at its end.
    """
    scope = f"model/{model}"
    with workspace.db.transaction() as conn:
        lease = leases.holder(conn, scope)
        if lease is not None:
            refuse_living(workspace.home, lease)
            if owner_is_dead(lease.owner):
                leases.release(conn, lease)
        # None where another machine holds it: the loop waits until that lease expires.
        leases.acquire(conn, scope, this_process(), LEASE_SECONDS)


def check_time(workspace: Workspace, window: Window | None) -> None:
    """Raises InputError where the workspace's time would go back, or would be two times at once."""
    with workspace.db.snapshot() as conn:
        row, known = store.get(conn, SwitchRow, "domain_time"), store.select(conn, ModelRow)
        held = leases.held(conn)
    at = datetime.fromisoformat(str(row.body["at"])) if row is not None and row.body.get("at") else None
    if window is not None and known and at is None:
        raise InputError(
            f"{workspace.home} is in live operation: its time cannot go back to a replay from {window.start:%Y-%m-%d}",
            remedy="Leave out --replay to go on live, or replay in another workspace with --home",
        )
    if window is None and at is not None:
        if at > WallClock().now():
            raise InputError(
                f"{workspace.home}: its replay stands at {at:%Y-%m-%d %H:%M}, and live operation would go back from there",
                remedy="Go on with --replay, or begin another workspace with --home",
            )
        for lease in held:
            refuse_living(workspace.home, lease)


def check_idle(workspace: Workspace) -> None:
    """Raises InputError where a process looks after a model of the workspace."""
    with workspace.db.snapshot() as conn:
        for lease in leases.held(conn):
            refuse_living(workspace.home, lease)


def refuse_living(home: Path, lease: leases.Lease) -> None:
    """Raises InputError where a lease's owner is another process that runs."""
    pid = living_owner(lease.owner)
    if pid is not None and pid != os.getpid():
        model = lease.scope.removeprefix("model/")
        raise InputError(
            f"{model} is up already: process {pid} looks after it in {home}",
            remedy=f"Use that one (`steady status`), stop it (kill {pid}), or name another workspace with --home",
        )


def check_port(workspace: Workspace, loaded: LoadedSpec) -> None:
    """Raises InputError where somebody else listens on the model's port: its route's, before the first the spec's."""
    serving, model = loaded.spec.serving, loaded.spec.model
    _, mesh = data_plane(workspace.home)
    route = mesh.store.read(model)
    if route is not None and mesh.envoy.running() is not None:
        return  # our own listener holds it
    given = serving.port if isinstance(serving, ManagedServing) else 0
    port = address_of(route.documents)[1] if route is not None else given
    if not port:
        return
    what = f"{loaded.path}: serving.port {port}" if port == given else f"port {port} of {model}'s route"
    remedy = "then run this again" if route is not None else "name another port, or 0 for a free one"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise InputError(
                f"{what} cannot be listened on: {exc.strerror}", remedy=f"Stop what listens there, {remedy}"
            ) from exc


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
