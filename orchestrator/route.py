"""The route, looked at in every tick: whatever differs from the last verified write is somebody's edit.

How an edit is answered is the deployment agent's judgement (`agents/edits.py`); here it only gets a run that answers it.
"""

from __future__ import annotations

from orchestrator.context import written_weights
from orchestrator.crew import Crew
from orchestrator.effects import TRAFFIC
from orchestrator.runs import new_run
from state import ledger, store
from state.rows import DetectorRow, GoalRow, RolloutRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence

UNDER_ANALYSIS = frozenset({"staged", "canary", "ab_test"})
"""Phases in which the rollout's own run looks at the route at every step."""


def watch_route(crew: Crew, spec: ModelSpec, *, fence: Fence) -> bool:
    """Hand an edit that nobody has looked at to a run; returns whether there was one.

    Not while an action of ours is under way: the route may bear a write that is not recorded yet.
    """
    route = crew.platform.mesh.read(spec.model)
    observed = dict(route.weights) if route is not None else {}
    revision = route.revision if route is not None else "gone"
    with crew.db.transaction() as conn:
        written = written_weights(conn, spec.model)
        if not written or any(action.kind in TRAFFIC for action in ledger.open_actions(conn, spec.model)):
            return False
        row = store.get(conn, DetectorRow, f"{spec.model}/route")
        known = row.state["revision"] if row is not None else None
        edited = any(written.get(v, 0) != observed.get(v, 0) for v in {*written, *observed})
        wanted = revision if edited else None
        if wanted == known:
            return False
        seen = DetectorRow(id=f"{spec.model}/route", model=spec.model, state={"revision": wanted})
        store.put(conn, seen, fence=fence)
        if edited:
            _hand_over(crew, conn, spec, fence)
    return edited


def _hand_over(crew: Crew, conn: Connection, spec: ModelSpec, fence: Fence) -> None:
    """Wake the run that answers the edit, or begin one."""
    rollout = next(iter(store.select(conn, RolloutRow, model=spec.model, status="running")), None)
    runs = store.select(conn, RunRow, model=spec.model, status=["ready", "waiting"])
    if rollout is not None and rollout.phase in UNDER_ANALYSIS:
        answering = [run for run in runs if run.body.get("rollout_id") == rollout.id]
    else:
        answering = [run for run in runs if run.subject_kind == "route"]
    for run in answering[:1]:
        run.wake_at = None
        store.put(conn, run, fence=fence)
        return
    standing = next(
        (goal for goal in store.select(conn, GoalRow, model=spec.model, status="active") if goal.standing), None
    )
    run = new_run(
        crew, model=spec.model, subject_id=standing.id if standing is not None else spec.model, subject_kind="route",
        # Of the split that comes back: each of its versions was judged and staged when it was written.
        facts={"gates_evaluated": True, "gates_cleared": True, "version_staged": True},
    )  # fmt: skip
    run.body["edit_of"] = rollout.id if rollout is not None else ""
    store.put(conn, run, fence=fence)


def being_answered(conn: Connection, model: str) -> bool:
    """Whether an edit of the route waits for its answer: what is measured meanwhile is no proof."""
    return any(
        run.subject_kind == "route" for run in store.select(conn, RunRow, model=model, status=["ready", "waiting"])
    )
