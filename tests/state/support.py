"""What the tests of the state say in one word: records, proposals and moves of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from state import ledger
from state.canonical import action_key, digest
from state.database import Database
from state.decisions import ActionChanged, ActionDecided, Observed
from state.ids import Uuid7Source
from state.leases import Fence
from state.ledger import CommittedIntent
from state.plans import ActionState, Proposal

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
IDS = Uuid7Source()
Sql = Callable[[str], None]
"""SQL past every rule of the store: whoever holds the database's password."""


def observation(text: str = "Nothing to report.", **fields: Any) -> Observed:
    common = {
        "decision_id": IDS.new_id(),
        "at": AT,
        "recorded_at": AT,
        "actor": 'Agent::"monitoring"',
        "model": "flights",
    }
    return Observed(**{**common, "summary": text, "topic": "signal", "verdict": "healthy", **fields})


def proposal(**fields: Any) -> Proposal:
    common = {
        "kind": "train_candidates",
        "model": "flights",
        "subject_id": "incident-1",
        "args": {"data": "d1", "share": 0.5},
    }
    return Proposal(**{**common, "reason": "Losses rose.", "proposed_by": "training", **fields})


def key_of(wanted: Proposal, attempt: int = 1) -> str:
    return action_key(subject_id=wanted.subject_id, kind=wanted.kind, args=wanted.args, attempt=attempt)


def allowing(wanted: Proposal, key: str, **fields: Any) -> ActionDecided:
    common = {
        "decision_id": IDS.new_id(),
        "at": AT,
        "recorded_at": AT,
        "actor": 'System::"steadyhand"',
        "model": wanted.model,
        "summary": "Training is allowed.",
        "action": wanted.kind,
        "action_key": key,
        "args": wanted.args,
        "verdict": "allow",
        "rules": ["train"],
        "reason": wanted.reason,
        "principal": 'Agent::"training"',
        "resource": {"model": wanted.model},
        "facts": {"n": 1},
        "facts_sha256": digest({"n": 1}),
        "policy_sha256": "p" * 64,
    }
    return ActionDecided(**{**common, **fields})


def commit(conn: sa.Connection, fence: Fence, wanted: Proposal | None = None, attempt: int = 1) -> CommittedIntent:
    wanted = wanted or proposal()
    key = key_of(wanted, attempt)
    decision = allowing(wanted, key)
    return ledger.commit(
        conn,
        wanted,
        key=key,
        attempt=attempt,
        prior={"version": "3"},
        facts_sha256=decision.facts_sha256,
        policy_sha256=decision.policy_sha256,
        approval_id=None,
        run_id="run-1",
        decision=decision,
        fence=fence,
        at=AT,
    )


def change(
    intent: CommittedIntent, state: ActionState, *, observed: dict[str, Any] | None = None, n: int = 1
) -> ActionChanged:
    return ActionChanged(
        decision_id=IDS.new_id(),
        at=AT + timedelta(minutes=n),
        recorded_at=AT,
        actor='System::"steadyhand"',
        model=intent.model,
        summary=f"The action is {state}.",
        action=intent.kind,
        action_key=intent.key,
        state=state,
        observed=observed or {},
        message=f"now {state}",
    )


def mark(conn: sa.Connection, fence: Fence, decision: ActionChanged) -> None:
    ledger.mark(
        conn,
        decision.action_key,
        decision.state,
        observed=decision.observed,
        message=decision.message,
        decision=decision,
        fence=fence,
        at=decision.at,
    )


def walk(db: Database, fence: Fence, intent: CommittedIntent, *states: ActionState) -> None:
    """Move an action through `states`, a transaction each."""
    for state in states:
        with db.transaction() as conn:
            mark(conn, fence, change(intent, state))
