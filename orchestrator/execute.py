"""From a committed intent to a verified outcome: act under the key, read back, record. Safe to repeat after any kill."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import JsonValue

from agents import data_validation, deployment, feature_engineering, monitoring, training
from orchestrator.actions import CATALOGUE
from orchestrator.crew import Crew, agent_uid, tell
from orchestrator.effects import apply_verified
from state import ledger, store
from state.decisions import ActionChanged
from state.errors import RetryableError, StaleRevision, TerminalError
from state.ledger import CommittedIntent
from state.plans import ActionOutcome, ActionState, AgentName
from state.rows import RunRow
from state.store import Connection, Fence
from tools.ports import Platform

PERFORM: dict[AgentName, Callable[[CommittedIntent, Platform], ActionOutcome]] = {
    "data_validation": data_validation.perform,
    "feature_engineering": feature_engineering.perform,
    "training": training.perform,
    "deployment": deployment.perform,
    "monitoring": monitoring.perform,
}
MAX_RETRIES = 20
"""Unavailable answers in a row before the effect counts as `unknown` and a person is called."""


def carry_out(crew: Crew, run: RunRow, intent: CommittedIntent, *, fence: Fence) -> ActionOutcome:
    """Let the owning agent act, and record what was observed.

    A `running` outcome leaves the action `acting`: the next tick comes back here, and the port finds the effect by
    its key instead of making a second one.
    """
    with crew.db.transaction() as conn:
        row = ledger.get(conn, intent.key)
        if row is not None and row.state == "intended":
            _mark(crew, conn, run, intent, "acting", ActionOutcome(status="running"), fence)
    try:
        outcome = PERFORM[CATALOGUE[intent.kind].agent](intent, crew.platform)
    except RetryableError as exc:
        return _retry_later(crew, run, intent, str(exc), fence)
    except StaleRevision:
        raise
    except TerminalError as exc:
        outcome = ActionOutcome(status="failed", message=str(exc))
    if outcome.status == "running":
        return outcome
    with crew.db.transaction() as conn:
        state: ActionState = outcome.status if outcome.status != "done" else "done"
        _mark(crew, conn, run, intent, state, outcome, fence)
        if outcome.status == "done":
            # The agents read the target back before they say `done`: what they saw is the verification.
            _mark(crew, conn, run, intent, "verified", outcome, fence)
            apply_verified(crew, conn, run, intent, outcome, fence=fence)
        elif outcome.status == "unknown":
            _call_a_person(crew, conn, intent, outcome.message)
        run.body.pop("retries", None)
        store.put(conn, run, fence=fence)
    return outcome


def _retry_later(crew: Crew, run: RunRow, intent: CommittedIntent, message: str, fence: Fence) -> ActionOutcome:
    """Count an unavailable answer; after many in a row nobody knows whether the effect happened."""
    retries = int(str(run.body.get("retries", 0))) + 1
    run.body["retries"] = retries
    status: ActionState = "acting" if retries < MAX_RETRIES else "unknown"
    with crew.db.transaction() as conn:
        if status == "unknown":
            outcome = ActionOutcome(status="unknown", message=message)
            _mark(crew, conn, run, intent, "unknown", outcome, fence)
            _call_a_person(crew, conn, intent, message)
        store.put(conn, run, fence=fence)
    if status == "unknown":
        return ActionOutcome(status="unknown", message=message)
    return ActionOutcome(status="running", message=message, observed={"unavailable": True})


def _call_a_person(crew: Crew, conn: Connection, intent: CommittedIntent, message: str) -> None:
    tell(
        crew, conn, key=f"unknown/{intent.key}", title=f"{intent.model}: the effect of {intent.kind} is unknown",
        text=f"{message}. Risky actions on this model stop until it is settled.",
    )  # fmt: skip


def _mark(
    crew: Crew,
    conn: Connection,
    run: RunRow,
    intent: CommittedIntent,
    state: ActionState,
    outcome: ActionOutcome,
    fence: Fence,
) -> None:
    agent = CATALOGUE[intent.kind].agent
    observed = brief(outcome.observed)
    decision = ActionChanged(
        **crew.stamp(), model=intent.model, run_id=run.id,
        incident_id=run.subject_id if run.subject_kind == "incident" else None,
        actor=agent_uid(agent), summary=f"{intent.kind.replace('_', ' ')} is {state}"
        + (f": {outcome.message}" if outcome.message else "") + ".",
        action=intent.kind, action_key=intent.key, state=state, observed=observed, message=outcome.message,
    )  # fmt: skip
    ledger.mark(
        conn, intent.key, state, observed=observed, message=outcome.message, decision=decision, fence=fence,
        at=decision.at,
    )  # fmt: skip


def brief(observed: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """What goes into the ledger and the log: everything but long per-block series, which are kept as evidence."""
    return {name: value for name, value in observed.items() if name not in ("blocks", "reference_blocks", "importance")}


def recover(crew: Crew, model: str, runs: dict[str, RunRow], *, fence: Fence) -> list[str]:
    """Settle the actions that an earlier process left open; returns the keys that are still under way."""
    with crew.db.transaction() as conn:
        rows = [a for a in ledger.open_actions(conn, model) if a.state in ("intended", "acting", "done")]
        intents = [(row, ledger.reopen(conn, row.id, fence)) for row in rows]
    busy: list[str] = []
    for row, intent in intents:
        run = runs.get(row.run_id or "")
        if run is None:
            continue
        outcome = carry_out(crew, run, intent, fence=fence)
        if outcome.status == "running":
            busy.append(row.id)
    return busy
