"""From a committed intent to a verified outcome: act under the key, read back, record. Safe to repeat after any kill."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from pydantic import JsonValue

from agents import data_validation, feature_engineering, monitoring, traffic, training
from orchestrator.actions import CATALOGUE
from orchestrator.anew import ask_anew, may_ask_anew
from orchestrator.crew import Crew, agent_uid, tell
from orchestrator.effects import apply_verified
from orchestrator.gate import ask_again
from orchestrator.runs import end_run
from state import ledger, store
from state.canonical import digest
from state.decisions import ActionChanged
from state.errors import RetryableError, StaleRevision, TerminalError
from state.ledger import CommittedIntent
from state.plans import ActionKind, ActionOutcome, ActionState, AgentName
from state.rows import ActionRow, RolloutRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.ports import Platform

PERFORM: dict[AgentName, Callable[[CommittedIntent, Platform], ActionOutcome]] = {
    "data_validation": data_validation.perform,
    "feature_engineering": feature_engineering.perform,
    "training": training.perform,
    "deployment": traffic.perform,
    "monitoring": monitoring.perform,
}
BEGUN: dict[AgentName, Callable[[CommittedIntent, Platform], bool]] = {
    "data_validation": data_validation.begun,
    "feature_engineering": feature_engineering.begun,
    "training": training.begun,
    "deployment": traffic.begun,
    "monitoring": monitoring.begun,
}
MAX_RETRIES = 20
"""Unavailable answers in a row before the effect counts as `unknown` and a person is called."""
MAX_FAILURES = 3
"""Recorded failures in a row before the run gives up and a person is called."""
NEVER_TAKEN = 3
"""Pushes of a split that the data plane has to leave unconfirmed, beside the rollout's deadline, before its version leaves."""
SETTLE_AGAIN = timedelta(hours=1)
"""How often an unknown effect is looked up anew."""
log = logging.getLogger(f"steadyhand.{__name__}")


def carry_out(crew: Crew, run: RunRow, intent: CommittedIntent, *, fence: Fence) -> ActionOutcome:
    """Let the owning agent act, and record what was observed.

    A `running` outcome leaves the action `acting`: the next tick comes back here, and the port finds the effect by
    its key instead of making a second one.
    """
    with crew.db.transaction() as conn:
        row = ledger.get(conn, intent.key)
        if row is not None and row.state in ("intended", "unknown"):
            _mark(crew, conn, run, intent, "acting", ActionOutcome(status="running"), fence)
    try:
        outcome = PERFORM[CATALOGUE[intent.kind].agent](intent, crew.platform)
    except RetryableError as exc:
        return _retry_later(crew, run, intent, str(exc), fence)
    except StaleRevision:
        raise
    except TerminalError as exc:
        outcome = ActionOutcome(status="failed", message=str(exc))
    abandoned = outcome.status == "unknown" and _never_taken(crew, run, intent)
    if abandoned:
        text = f"{outcome.message}, {NEVER_TAKEN} pushes and the rollout's deadline long: the version leaves"
        outcome = ActionOutcome(status="failed", message=text)
    if outcome.status == "running":
        return outcome
    with crew.db.transaction() as conn:
        _mark(crew, conn, run, intent, outcome.status, outcome, fence)
        _follow(crew, conn, run, intent, outcome, abandoned=abandoned, fence=fence)
    return outcome


def _follow(
    crew: Crew,
    conn: Connection,
    run: RunRow,
    intent: CommittedIntent,
    outcome: ActionOutcome,
    *,
    abandoned: bool,
    fence: Fence,
) -> None:
    """What follows from a settled outcome for the run; joins the transaction that marks the action."""
    if outcome.status == "done":
        # The agents read the target back before they say `done`: what they saw is the verification.
        _mark(crew, conn, run, intent, "verified", outcome, fence)
        apply_verified(crew, conn, run, intent, outcome, fence=fence)
        run.body.pop("failures", None)
        run.body.pop("pushes", None)
        if run.body.get("failing") == intent.kind:
            del run.body["failing"]
    elif outcome.status == "unknown":
        _call_a_person(crew, conn, run, intent, outcome.message)
    elif abandoned:
        _take_off(crew, conn, run, outcome.message, fence)
    else:
        _note_failure(crew, conn, run, intent.kind, outcome.message, fence)
    run.body.pop("retries", None)
    store.put(conn, run, fence=fence)


def _never_taken(crew: Crew, run: RunRow, intent: CommittedIntent) -> bool:
    """Count a push that the data plane did not confirm; whether the rollout has waited long enough for it.

    Only where the version can leave: what serves stays as it was, and the document is put back to it.
    """
    if intent.kind not in ("shift_traffic", "run_ab_test", "promote"):
        return False
    with crew.db.snapshot() as conn:
        rollout = store.get(conn, RolloutRow, str(intent.args.get("rollout", "")))
        action = ledger.get(conn, intent.key)
    if rollout is None or rollout.stable is None:
        return False
    n_pushes = int(str(run.body.get("pushes", 0))) + 1
    run.body["pushes"] = n_pushes
    if n_pushes < NEVER_TAKEN or action is None or not run.facts.get("version_staged"):
        return False
    over = crew.clock.now() >= action.created_at + crew.platform.specs[run.model].rollout.deadline
    if over:
        del run.body["pushes"]
    return over


def _take_off(crew: Crew, conn: Connection, run: RunRow, why: str, fence: Fence) -> None:
    """Let the version leave: its rollback writes the split that is served, and reads that back like any other."""
    run.facts |= {"traffic_on_champion": False, "rolled_back": False, "healthy_champion_known": True}
    if run.facts.get("canary_failed"):
        run.status, run.wake_at, run.waits_for = "ready", None, ""  # called off meanwhile, and leaving for that reason
        return
    give_up(crew, conn, run, "escalated", why, fence=fence)


def _note_failure(crew: Crew, conn: Connection, run: RunRow, kind: ActionKind, message: str, fence: Fence) -> None:
    """A recorded failure raises the attempt; after three in a row a person is told, and it is not tried again unchanged.

    A model that could not be made has changed nothing, and what hinders it may be mended: its incident stays open and asks
    anew after each cadence, with one attempt.
    """
    failures = int(str(run.body.get("failures", 0))) + 1
    spec = crew.platform.specs[run.model]
    run.body["failures"], run.body["pinned"] = failures, {}
    crew.say(CATALOGUE[kind].agent, f"{kind.replace('_', ' ')} failed: {message}")
    if failures >= MAX_FAILURES or run.body.get("failing") == kind:
        text = f"{kind} failed {failures} times, last with: {message}"
        if CATALOGUE[kind].agent == "training" and may_ask_anew(run, spec):
            _pause(crew, conn, run, kind, message, until=crew.clock.now() + spec.monitoring.cadence)
            return
        tell(crew, conn, key=f"failures/{run.id}/{kind}", title=f"{run.model} needs a person", text=text)
        give_up(crew, conn, run, "escalated", text, fence=fence)
        return
    run.status, run.waits_for = "waiting", f"another attempt at {kind}"
    run.wake_at = crew.clock.now() + timedelta(hours=1)


def _pause(
    crew: Crew, conn: Connection, run: RunRow, kind: ActionKind, message: str, *, until: datetime
) -> None:  # fmt: skip
    """Tell a person once for each reason, and let the incident look again later."""
    tell(
        crew, conn, key=f"failures/{run.id}/{kind}/{digest(message)[:16]}", title=f"{run.model} needs a person",
        text=f"{kind} fails, last with: {message}. The champion stays; if a newer fit is still better on {until:%Y-%m-%d}, it "
        "is tried again.",
    )  # fmt: skip
    ask_anew(run, at=until)
    run.body["failing"] = kind
    run.body.pop("failures", None)
    run.status, run.wake_at, run.waits_for = "ready", None, ""


def give_up(crew: Crew, conn: Connection, run: RunRow, outcome: str, story: str, *, fence: Fence) -> None:
    """End the run as `outcome`; a version that it has brought into the route leaves it first."""
    run.facts["story"] = story
    done = run.facts.get("serving_better_model") or run.facts.get("canary_failed")
    if run.facts.get("version_staged") and not done:
        run.facts |= {"canary_failed": True, "gave_up": outcome}
        run.status, run.wake_at, run.waits_for = "ready", None, ""
        store.put(conn, run, fence=fence)
        return
    end_run(crew, conn, run, outcome, fence=fence)


def _retry_later(crew: Crew, run: RunRow, intent: CommittedIntent, message: str, fence: Fence) -> ActionOutcome:
    """Count an unavailable answer; after many in a row nobody knows whether the effect happened."""
    retries = int(str(run.body.get("retries", 0))) + 1
    run.body["retries"] = retries
    status: ActionState = "acting" if retries < MAX_RETRIES else "unknown"
    with crew.db.transaction() as conn:
        if status == "unknown":
            outcome = ActionOutcome(status="unknown", message=message)
            _mark(crew, conn, run, intent, "unknown", outcome, fence)
            _call_a_person(crew, conn, run, intent, message)
            run.body.pop("retries", None)
        store.put(conn, run, fence=fence)
    if status == "unknown":
        return ActionOutcome(status="unknown", message=message)
    return ActionOutcome(status="running", message=message, observed={"unavailable": True})


def _call_a_person(crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, message: str) -> None:
    run.body["settle_at"] = (crew.clock.now() + SETTLE_AGAIN).isoformat()
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


def recover(crew: Crew, spec: ModelSpec, rows: list[ActionRow], runs: dict[str, RunRow], *, fence: Fence) -> list[str]:
    """Settle the open actions that an earlier process left; returns the keys that are still under way.

    The outside world is looked at first, by key: what is there is adopted and completed, what is not there is done
    only if policy still allows it, and what cannot be looked up stays as it is.
    """
    busy: list[str] = []
    for row in rows:
        run = runs.get(row.run_id or "")
        if run is None or run.status == "finished" or (row.state == "unknown" and not _due(crew, run)):
            continue
        outcome = _settle(crew, spec, run, row, fence)
        if outcome.status == "running":
            busy.append(row.id)
    return busy


def _due(crew: Crew, run: RunRow) -> bool:
    at = run.body.get("settle_at")
    return at is None or datetime.fromisoformat(str(at)) <= crew.clock.now()


def _settle(crew: Crew, spec: ModelSpec, run: RunRow, row: ActionRow, fence: Fence) -> ActionOutcome:
    with crew.db.transaction() as conn:
        intent = ledger.reopen(conn, row.id, fence)
    try:
        refused = None
        if not BEGUN[CATALOGUE[row.kind].agent](intent, crew.platform):
            refused = ask_again(crew, run, spec, row, fence=fence)
    except RetryableError as exc:
        if row.state == "unknown":
            log.warning("the effect of %s is still unknown: %s", row.id, exc)
            return ActionOutcome(status="unknown", message=str(exc))
        return _retry_later(crew, run, intent, str(exc), fence)
    if refused is None:
        return carry_out(crew, run, intent, fence=fence)
    return _withdraw(crew, run, row, intent, refused, fence)


def _withdraw(
    crew: Crew, run: RunRow, row: ActionRow, intent: CommittedIntent, refused: str, fence: Fence
) -> ActionOutcome:  # fmt: skip
    """An intent without an effect that policy no longer allows ends here; it may be proposed and asked about anew."""
    outcome = ActionOutcome(status="failed", message=f"policy no longer allows it: {refused}")
    with crew.db.transaction() as conn:
        if row.state == "intended":
            _mark(crew, conn, run, intent, "acting", ActionOutcome(status="running"), fence)
        _mark(crew, conn, run, intent, "failed", outcome, fence)
        run.body["pinned"] = {}
        run.status, run.wake_at, run.waits_for = "ready", None, ""
        store.put(conn, run, fence=fence)
    return outcome
