"""What a person did, as rows and records: every surface, and every simulated person, goes through here.

Who may do it is asked before, where roles are known. Each function joins the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import JsonValue

from orchestrator.crew import Stamp
from state import log, store
from state.canonical import JsonObject
from state.decisions import ApprovalChanged, Commanded
from state.errors import InputError
from state.goals import Goal
from state.ids import IdSource
from state.rows import ApprovalRow, GoalRow, ModelRow, RunRow, SwitchRow
from state.store import Connection


def state_goal(
    conn: Connection,
    goal: Goal,
    *,
    text: str,
    user: str,
    stamp: Stamp,
    ids: IdSource,
    read_by: Sequence[JsonValue] = (),
) -> GoalRow:
    """Take a goal in, with its model and version resolved: its row, its run where it is one-off, and the record.

    `read_by` is what a language model was asked and said, where one read the text; the record keeps it.
    """
    row = GoalRow(
        id=ids.new_id(), model=goal.model, status="active", standing=goal.intent == "maintain",
        goal=goal.model_dump(mode="json"), text=text.strip(), asked_by=user, asked_at=stamp["at"],
    )  # fmt: skip
    if goal.intent == "report":
        row.status = "achieved"
    store.put(conn, row, fence=None)
    if not row.standing and goal.intent != "report":
        store.put(conn, _run_for(row, goal, stamp["at"], ids), fence=None)
    details: JsonObject = {"goal_id": row.id, "goal": row.goal}
    if read_by:
        details["read_by"] = list(read_by)
    log.append(
        conn,
        Commanded(
            **stamp, model=goal.model, actor=f'User::"{user}"', summary=f"{user} asks: {row.text}", command="goal",
            details=details,
        ),
    )  # fmt: skip
    return row


def _run_for(row: GoalRow, goal: Goal, at: datetime, ids: IdSource) -> RunRow:
    """The run of a one-off goal, with the facts that a person's wish brings."""
    facts: dict[str, JsonValue] = {"rows_available": True, "data_clean": True, "healthy_champion_known": True}
    match goal.intent:
        case "retrain":
            facts["training_justified"] = True
        case "deploy" | "promote" | "compare":
            facts |= {"candidate_exists": True, "candidate_registered": True, "candidate": goal.version}
        case _:
            facts["story"] = row.text
    return RunRow(
        id=ids.new_id(), model=str(row.model), subject_id=row.id, subject_kind="goal", status="ready", facts=facts,
        started_at=at,
    )  # fmt: skip


def answer_question(
    conn: Connection,
    approval_id: str,
    *,
    answer: Literal["approved", "rejected"],
    user: str,
    comment: str,
    stamp: Stamp,
) -> ApprovalRow:
    """Answer one pending question, once.

    Raises:
        InputError: it does not exist, was answered already, or has expired.
    """
    row = store.get(conn, ApprovalRow, approval_id)
    if row is None or row.status != "pending":
        state = f"is {row.status} already" if row is not None else "does not exist"
        raise InputError(f"approval {approval_id} {state}", remedy="Only a pending one can be answered")
    if stamp["at"] >= row.expires_at:
        raise InputError(
            f"approval {row.id} expired at {row.expires_at:%Y-%m-%d %H:%M}", remedy="Wait for it to be asked anew"
        )
    row.status, row.answered_by, row.answered_at, row.comment = answer, user, stamp["at"], comment
    store.put(conn, row, fence=None)
    log.append(
        conn,
        ApprovalChanged(
            **stamp, model=row.model, run_id=row.run_id, actor=f'User::"{user}"',
            summary=f"{user} {answer} {row.action} of {row.model}.", approval_id=row.id, change=answer,
            action=row.action, action_key=row.action_key, roles=row.roles, reason=comment,
        ),
    )  # fmt: skip
    return row


def let_denied_ask_again(conn: Connection) -> None:
    """What waits for policy asks it anew at the next look: a person has just lifted what stood in the way."""
    for run in store.select(conn, RunRow, status="waiting"):
        if run.waits_for.startswith("policy:"):
            run.wake_at = None
            store.put(conn, run, fence=None)


def throw_halt(conn: Connection, *, on: bool, user: str, reason: str, stamp: Stamp) -> None:
    """Throw or release the kill switch: everything stops but rollback to the champion, telling people and reading."""
    body: dict[str, Any] = {"on": on, "by": user, "reason": reason, "at": stamp["at"].isoformat()}
    store.put(conn, SwitchRow(id="halt", body=body), fence=None)
    if not on:
        let_denied_ask_again(conn)
    log.append(
        conn,
        Commanded(
            **stamp, actor=f'User::"{user}"', command="halt" if on else "unhalt", details={"reason": reason},
            summary=f"{user} {'throws' if on else 'releases'} the kill switch: {reason or 'no reason given'}.",
        ),
    )  # fmt: skip


def hold_model(conn: Connection, model: str, *, held: bool, user: str, reason: str, stamp: Stamp) -> None:
    """Hold one model or let it go on; nothing about a held model changes but a rollback."""
    row = store.get(conn, ModelRow, model)
    if row is None:
        raise InputError(f"{model!r} is not a managed model", remedy="See `steady status` for their names")
    row.held = held
    store.put(conn, row, fence=None)
    for run in store.select(conn, RunRow, model=model, status="waiting") if not held else []:
        run.wake_at = None
        run.facts.pop("held_by_edit", None)
        store.put(conn, run, fence=None)
    log.append(
        conn,
        Commanded(
            **stamp, model=model, actor=f'User::"{user}"', command="hold" if held else "resume",
            summary=f"{user} {'holds' if held else 'resumes'} {model}: {reason or 'no reason given'}.",
            details={"reason": reason},
        ),
    )  # fmt: skip
