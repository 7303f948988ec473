"""`steady demo`: `steady up examples/flights --replay 2013-04-01` plus two injected acts.

The data carries a unit fault of five days, and on a fixed day an engineer asks for a bad release. Both dates were fixed
before any outcome was looked at.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from console import services
from console.preflight import Window, refuse_living
from console.settings import Settings
from console.up import Running, stop_everything
from console.workspace import MARKER, REMOVING
from examples.flights.bad_release import register_bad_release
from examples.flights.prepare import UNIT_FAULT, prepare
from state import leases, store
from state.errors import InputError
from state.rows import ApprovalRow, GoalRow, RunRow, SwitchRow
from state.store import Database

SPEC = Path(__file__).resolve().parent.parent / "examples" / "flights" / "flights.yaml"
START = datetime(2013, 4, 1, tzinfo=UTC)
END, FULL_END = datetime(2013, 10, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC)
BAD_RELEASE_AT = datetime(2013, 8, 5, tzinfo=UTC)
MODEL = "flights"


def window(full: bool) -> Window:
    """What is replayed: April to September, or to December."""
    return Window(start=START, end=FULL_END if full else END)


def remove(settings: Settings) -> None:
    """Stop what an earlier run left and remove its workspace; ended in the midst of it, it is begun again.

    Raises:
        InputError: the folder holds something else, or a process that runs looks after a model in it.
    """
    home = settings.home
    if not home.exists():
        return
    if not _removable(home):
        raise InputError(f"{home} is not a workspace, so it is not removed", remedy="Name another one with --home")
    for lease in _leases(home):
        refuse_living(home, lease)
    stop_everything(home)
    marker = home / REMOVING
    # Half a workspace must never be taken for one to go on with.
    marker.touch()
    for path in [path for path in home.iterdir() if path != marker]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    marker.unlink()
    with contextlib.suppress(OSError):
        home.rmdir()  # a mounted or linked folder stays, empty


def half_removed(settings: Settings) -> bool:
    """Whether a removal was ended in the midst of it."""
    return (settings.home / REMOVING).exists()


def _removable(home: Path) -> bool:
    """Whether the folder is a workspace, what is left of one, or one whose making was ended before its first file."""
    if not home.is_dir():
        return False
    return any((home / name).exists() for name in (MARKER, REMOVING)) or all(path.is_dir() for path in home.rglob("*"))


def _leases(home: Path) -> list[leases.Lease]:
    """Who looks after a model of the workspace; nobody where its database is damaged or gone."""
    if not (home / MARKER).exists():
        return []
    try:
        with Database.open(f"sqlite:///{home.resolve() / MARKER}") as db, db.snapshot() as conn:
            return leases.held(conn)
    except InputError:
        return []


def prepare_files(settings: Settings, say: Callable[[str, str], None]) -> Path:
    """The example's data with the unit fault, and its spec beside it; the spec's path."""
    folder = settings.home / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    spec, data = folder / "flights.yaml", folder / "data"
    shutil.copyfile(SPEC, spec)
    if not (data / "flights.parquet").exists():
        say("demo", "preparing 336,776 flights of 2013 with their weather")
        prepare(data, fault=UNIT_FAULT)
    return spec


def hooks(running: Running) -> list[Callable[[datetime], bool]]:
    """The injected acts, as people would do them; each looks at the rows, so a restart repeats nothing."""

    def bad_release(now: datetime) -> bool:
        if now < BAD_RELEASE_AT or _switched(running, "demo/bad_release"):
            return False
        version = register_bad_release(
            running.workspace.home, running.spec, running.workspace.settings.mlflow_tracking_uri
        )
        text = f"deploy version {version} of {MODEL}"
        with running.workspace.db.transaction() as conn:
            asked = any(goal.text == text for goal in store.select(conn, GoalRow, model=MODEL))
        if not asked:
            running.say("engineer", f'steady goal "{text}"')
            services.submit_goal(running.workspace, text)
        with running.workspace.db.transaction() as conn:
            store.put(conn, SwitchRow(id="demo/bad_release", body={"version": version}), fence=None)
        return True

    def approver(now: datetime) -> bool:  # noqa: ARG001 - hooks share one signature
        asked = False
        with running.workspace.db.transaction() as conn:
            pending = store.select(conn, ApprovalRow, model=MODEL, status="pending")
            wanted = [row for row in pending if _serves_goal(store.get(conn, RunRow, row.run_id))]
        for row in wanted:
            running.say("approver", f"steady approve {row.id}")
            services.answer_approval(running.workspace, row.id, "approved", "the team wants to see it under traffic")
            asked = True
        return asked

    return [bad_release, approver]


def _switched(running: Running, name: str) -> bool:
    with running.workspace.db.transaction() as conn:
        return store.get(conn, SwitchRow, name) is not None


def _serves_goal(run: RunRow | None) -> bool:
    return run is not None and run.subject_kind == "goal"
