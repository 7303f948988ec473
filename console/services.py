"""What people ask for, as functions that the command line and every later surface share."""

from __future__ import annotations

import getpass
from typing import Any, Literal

from console.wiring import language_model, registry
from console.workspace import Workspace, domain_now, require_role
from orchestrator import people
from orchestrator.crew import Stamp
from orchestrator.goal_aims import served_versions
from orchestrator.goals.reading import refuse_unmeasured, refuse_unserved
from orchestrator.goals.words import read_words
from orchestrator.promises import promise_id
from policies.current import difference
from state import store
from state.clock import WallClock
from state.errors import InputError
from state.goals import Goal
from state.ids import Uuid7Source
from state.rows import (
    ActionRow,
    ApprovalRow,
    DetectorRow,
    DiagnosisRow,
    GoalRow,
    IncidentRow,
    ModelRow,
    RolloutRow,
    RunRow,
    SwitchRow,
)
from state.store import Connection
from tools.mesh.documents import managed_route
from tools.mesh.store import DocumentStore

_IDS = Uuid7Source()


def _stamp(workspace: Workspace) -> Stamp:
    return {"decision_id": _IDS.new_id(), "at": domain_now(workspace), "recorded_at": WallClock().now()}


def submit_goal(workspace: Workspace, text: str) -> GoalRow:
    """Take a goal in: its row, its run where it is one-off, and the record of who asked.

    Raises:
        InputError: the text is no goal, or the model or version is not known.
    """
    user = require_role(workspace, "operator")
    with workspace.db.snapshot() as conn:
        models = [row.id for row in store.select(conn, ModelRow)]
    reading = read_words(text, models=models, language=language_model(workspace))
    goal = reading.goal
    refuse_unserved(goal)
    stamp = _stamp(workspace)
    with workspace.db.transaction() as conn:
        model = known_model(conn, goal.model)
        version = _resolve_version(conn, model, goal)
        refuse_unmeasured(goal, model=model, judged_by=_judged_by(conn, model))
    if version is not None and goal.version not in ROLES:
        _refuse_missing(workspace, model, version)
        _refuse_never_served(workspace, model, version, goal)
    goal = goal.model_copy(update={"model": model, "version": version})
    with workspace.db.transaction() as conn:
        return people.state_goal(conn, goal, text=text, user=user, stamp=stamp, ids=_IDS, read_by=reading.record())


ROLES = ("champion", "challenger", "previous", "latest")


def _refuse_missing(workspace: Workspace, model: str, version: str) -> None:
    """A version that nobody registered is a slip: it is said now, not by a goal that fails later."""
    models = registry(workspace)
    # A registry counts its versions; a longer number it could not even look up.
    if len(version) < 10 and models.get(model, version) is not None:
        return
    known = [found.version for found in models.versions(model)]
    raise InputError(
        f"goal: {model} has no version {version[:40]}",
        remedy=f"Name one of: {', '.join(known)}" if known else "Register a version first: there is none yet",
    )


def _refuse_never_served(workspace: Workspace, model: str, version: str, goal: Goal) -> None:
    """A rollback gives all traffic at once: only to a version that had it before."""
    if goal.intent != "rollback":
        return
    with workspace.db.transaction() as conn:
        served = served_versions(conn, model)
    if version not in served:
        raise InputError(
            f"goal: version {version} of {model} never served",
            remedy=f"Deploy it, or roll back to one that did: {', '.join(served) or 'none yet'}",
        )


def _judged_by(conn: Connection, model: str) -> str:
    row = store.get(conn, ModelRow, model)
    return str(row.spec["objective"]["metric"]) if row is not None else ""  # type: ignore[index,call-overload]


def known_model(conn: Connection, name: str | None) -> str:
    """The name, if a managed model has it; None means the only one there is.

    Raises:
        InputError: there is no such model, or more than one to choose from.
    """
    models = [row.id for row in store.select(conn, ModelRow)]
    if name is None and len(models) == 1:
        return models[0]
    if name not in models:
        raise InputError(
            f"{name!r} is not a managed model" if name else "no model is named",
            remedy=f"Name one of: {', '.join(models) or 'none yet'}",
        )
    return str(name)


def _resolve_version(conn: Connection, model: str, goal: Goal) -> str | None:
    """Roles become numbers when the goal is taken in."""
    version = goal.version
    if version is None:
        if goal.intent in ("deploy", "promote", "compare"):
            raise InputError(f"goal: {goal.intent} needs a version", remedy="Give the version's number")
        return None
    if version.isascii() and version.isdigit():
        return version.lstrip("0") or "0"
    champion = store.get(conn, DetectorRow, f"{model}/champion")
    state = champion.state if champion is not None else {}
    found = {"champion": state.get("version"), "previous": state.get("previous")}.get(version)
    if version == "previous" and goal.intent == "rollback":
        # Mid-rollout it is the version that the traffic is taken back to.
        running = store.select(conn, RolloutRow, model=model, status="running")
        found = running[0].stable if running else found
    if version in ("challenger", "latest"):
        rollouts = store.select(conn, RolloutRow, model=model, newest_first=True, limit=1)
        found = rollouts[0].candidate if rollouts else None
    if found is None:
        raise InputError(
            f"goal: {model} has no {version!r} version", remedy=f"Give the version's number, or {', '.join(ROLES)}"
        )
    return str(found)


def answer_approval(
    workspace: Workspace, approval_id: str, answer: Literal["approved", "rejected"], comment: str
) -> ApprovalRow:
    """Answer one pending question, once.

    Raises:
        InputError: no such question, it is answered already or has expired, or the user lacks the role.
    """
    stamp = _stamp(workspace)
    with workspace.db.transaction() as conn:
        row = store.get(conn, ApprovalRow, approval_id) or _by_prefix(conn, approval_id)
        if row is None:
            pending = [a.id for a in store.select(conn, ApprovalRow, status="pending")]
            raise InputError(
                f"approval {approval_id!r} does not exist", remedy=f"Pending: {', '.join(pending) or 'none'}"
            )
        if row.status != "pending":
            raise InputError(f"approval {row.id} is {row.status} already", remedy="Only a pending one can be answered")
    users = [require_role(workspace, role) for role in row.roles] or [require_role(workspace, "approver")]
    with workspace.db.transaction() as conn:
        return people.answer_question(conn, row.id, answer=answer, user=users[0], comment=comment, stamp=stamp)


def _by_prefix(conn: Connection, prefix: str) -> ApprovalRow | None:
    found = [row for row in store.select(conn, ApprovalRow, status="pending") if row.id.endswith(prefix)]
    return found[0] if len(found) == 1 and len(prefix) >= 6 else None


def set_halt(workspace: Workspace, on: bool, reason: str) -> None:
    """Throw or release the kill switch: everything stops but rollback to the champion, telling people and reading."""
    user = require_role(workspace, "operator" if on else "admin")
    stamp = _stamp(workspace)
    with workspace.db.transaction() as conn:
        people.throw_halt(conn, on=on, user=user, reason=reason, stamp=stamp)


def halted(workspace: Workspace) -> bool:
    """Whether the kill switch is on."""
    with workspace.db.snapshot() as conn:
        row = store.get(conn, SwitchRow, "halt")
    return bool(row and row.body.get("on"))


def set_hold(workspace: Workspace, model: str | None, held: bool, reason: str) -> str:
    """Hold one model or let it go on; nothing about a held model changes but a rollback."""
    user = require_role(workspace, "operator")
    stamp = _stamp(workspace)
    with workspace.db.transaction() as conn:
        name = known_model(conn, model)
        people.hold_model(conn, name, held=held, user=user, reason=reason, stamp=stamp)
    return name


def status(workspace: Workspace) -> dict[str, Any]:
    """The present state, as people and programs read it."""
    approved = workspace.approved_sha256()
    with workspace.db.transaction() as conn:
        halt = store.get(conn, SwitchRow, "halt")
        documents = DocumentStore(workspace.home / "mesh")
        models = [_model_status(conn, row, documents) for row in store.select(conn, ModelRow)]
        pending = store.select(conn, ApprovalRow, status="pending")
    return {
        "home": str(workspace.settings.home),
        "user": getpass.getuser(),
        "domain_time": domain_now(workspace).isoformat(),
        "halted": bool(halt and halt.body.get("on")),
        "policy_sha256": approved,
        "policy_problem": difference(workspace.policy_dir, approved),
        "models": models,
        "approvals": [
            {"id": a.id, "model": a.model, "action": a.action, "roles": a.roles, "reason": a.reason,
             "expires_at": a.expires_at.isoformat()}
            for a in pending
        ],
    }  # fmt: skip


def _model_status(conn: Connection, row: ModelRow, documents: DocumentStore) -> dict[str, Any]:
    champion = store.get(conn, DetectorRow, f"{row.id}/champion")
    rollouts = store.select(conn, RolloutRow, model=row.id, newest_first=True, limit=1)
    runs = store.select(conn, RunRow, model=row.id, status=["ready", "waiting"])
    actions = store.select(conn, ActionRow, model=row.id)
    open_incidents = store.select(conn, IncidentRow, model=row.id, status="open")
    goals = store.select(conn, GoalRow, model=row.id, status="active")
    newest = rollouts[0] if rollouts else None
    stored = documents.read(row.id)
    return {
        "model": row.id,
        "status": row.status,
        "held": row.held,
        "champion": champion.state.get("version") if champion is not None else None,
        "champion_since": champion.state.get("since") if champion is not None else None,
        "weights": managed_route(stored.documents.virtual_service).weights if stored is not None else None,
        "rollout": None
        if newest is None
        else {"candidate": newest.candidate, "status": newest.status, "phase": newest.phase},
        "goals": [{"id": g.id, "text": g.text, **_kept(conn, row.id, g)} for g in goals if g.standing],
        "open_incidents": [{"id": i.id, "title": i.title, "cause": i.cause} for i in open_incidents],
        "runs": [{"id": r.id, "for": r.subject_kind, "waits_for": r.waits_for, "step": _step(r)} for r in runs],
        "actions": {state: sum(a.state == state for a in actions) for state in sorted({a.state for a in actions})},
    }


def _kept(conn: Connection, model: str, goal: GoalRow) -> dict[str, Any]:
    """How a standing goal stands: its metric over the newest matured blocks, and whether that keeps it."""
    state = store.get(conn, DetectorRow, promise_id(model, goal.id))
    known = state.state if state is not None else {}
    return {"kept": known.get("kept"), "value": known.get("value")}


def _step(run: RunRow) -> str:
    steps = run.plan.get("steps") if run.plan else None
    return " -> ".join(str(step["kind"]) for step in steps) if isinstance(steps, list) else ""  # type: ignore[index,call-overload]


def incidents(workspace: Workspace, *, model: str | None = None) -> list[dict[str, Any]]:
    """Every incident with its diagnoses and the actions that served it, oldest first.

    Raises:
        InputError: `model` is not managed here.
    """
    with workspace.db.transaction() as conn:
        if model is not None:
            known_model(conn, model)
        found = store.select(conn, IncidentRow)
        rows = [row for row in found if model is None or row.model == model]
        return [_incident(conn, row) for row in rows]


def _incident(conn: Connection, row: IncidentRow) -> dict[str, Any]:
    diagnoses = store.select(conn, DiagnosisRow, incident_id=row.id)
    actions = store.select(conn, ActionRow, subject_id=row.id, order="log_index")
    return {
        "id": row.id, "model": row.model, "status": row.status, "cause": row.cause, "signal": row.signal,
        "title": row.title, "what": row.body.get("text"), "part_of": row.body.get("part_of"),
        "opened_at": row.opened_at.isoformat(),
        "closed_at": row.closed_at.isoformat() if row.closed_at else None, "resolution": row.resolution,
        "days": row.body.get("days"), "quarantined": row.body.get("quarantined"),
        "diagnoses": [
            {"at": d.at.isoformat(), "cause": d.cause, "for": d.evidence_for, "against": d.evidence_against,
             "alternatives": d.alternatives}
            for d in diagnoses
        ],
        "actions": [
            {"key": a.id, "kind": a.kind, "state": a.state, "at": a.created_at.isoformat(), "agent": a.agent,
             "message": a.message}
            for a in actions
        ],
    }  # fmt: skip
