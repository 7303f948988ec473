"""The action ledger: no committed intent, no effect; every change of state has its decision record."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from datetime import datetime

import sqlalchemy as sa
from pydantic import JsonValue

from state import log, store
from state.canonical import action_key, digest
from state.decisions import ActionChanged, ActionDecided
from state.errors import TerminalError
from state.leases import Fence
from state.plans import ActionKind, ActionState, Proposal
from state.rows import ActionRow
from state.statements import Statement
from state.tables import actions

ALLOWED: dict[ActionState, frozenset[ActionState]] = {
    "intended": frozenset({"acting"}),
    # Again after a restart: the worker that was acting was killed.
    "acting": frozenset({"acting", "done", "failed", "unknown"}),
    "done": frozenset({"verified", "unknown", "failed"}),
    "verified": frozenset({"reverted"}),
    "unknown": frozenset({"acting", "done", "verified", "failed"}),
    "failed": frozenset(),
    "reverted": frozenset(),
}
OPEN: tuple[ActionState, ...] = ("intended", "acting", "done", "unknown")

_OF_MODEL = sa.select(actions).where(actions.c.model == sa.bindparam("model"))
_OPEN_ACTIONS = Statement(
    lambda _: _OF_MODEL.where(sa.or_(*(actions.c.state == sa.literal_column(f"'{state}'") for state in OPEN))).order_by(
        actions.c.log_index.asc()
    )
)
_LAST_VERIFIED = Statement(
    lambda _: (
        _OF_MODEL.where(actions.c.kind == sa.bindparam("kind"), actions.c.state == sa.literal_column("'verified'"))
        .order_by(actions.c.log_index.desc())
        .limit(1)
    )
)
_LOCKED = Statement(lambda _: sa.select(actions).where(actions.c.id == sa.bindparam("id")).with_for_update())
"""Its last column is the index in the log."""

_LEDGER = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedIntent:
    """The right to perform one effect: it exists only where a transaction of the ledger made it."""

    key: str
    kind: ActionKind
    model: str
    subject_id: str
    args: dict[str, JsonValue]
    epoch: int
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _LEDGER:
            raise TerminalError("only the ledger makes committed intents: use ledger.commit or ledger.reopen")


def commit(
    conn: sa.Connection,
    proposal: Proposal,
    *,
    key: str,
    attempt: int,
    prior: Mapping[str, JsonValue],
    facts_sha256: str,
    policy_sha256: str,
    approval_id: str | None,
    run_id: str | None,
    decision: ActionDecided,
    fence: Fence,
    at: datetime,
) -> CommittedIntent:
    """Store the intent and its allowing decision, which gets `prior`, in the caller's transaction.

    A key that is stored already gives its intent again, taken over into the fence's epoch, and adds nothing.
    Do not act before the transaction has committed.

    Raises:
        StaleRevision: the lease has passed to a newer epoch; stop.
        TerminalError: the decision does not allow exactly this action.
    """
    if get(conn, key) is not None:
        return reopen(conn, key, fence)
    row = ActionRow(
        id=key,
        model=proposal.model,
        subject_id=proposal.subject_id,
        kind=proposal.kind,
        state="intended",
        args=proposal.args,
        args_sha256=digest(proposal.args),
        attempt=attempt,
        agent=proposal.proposed_by,
        run_id=run_id,
        prior=dict(prior),
        evidence_ids=proposal.evidence_ids,
        facts_sha256=facts_sha256,
        policy_sha256=policy_sha256,
        approval_id=approval_id,
        epoch=fence.epoch,
        created_at=at,
    )
    decision = decision.model_copy(update={"prior": row.prior})
    mismatch = commit_mismatch(row, decision)
    if mismatch:
        raise TerminalError(f"action {proposal.kind} {key}: {'; '.join(mismatch)}")
    fence.check(conn)
    store.write(conn, row, log_index=log.append(conn, decision))
    return _intent(row)


def reopen(conn: sa.Connection, key: str, fence: Fence) -> CommittedIntent:
    """The intent of a stored action, taken over into the fence's epoch: how recovery goes on.

    Raises:
        StaleRevision: the lease has passed to a newer epoch; stop.
        TerminalError: no such action.
    """
    fence.check(conn)
    row, log_index = _locked(conn, key)
    row = row.model_copy(update={"epoch": fence.epoch})
    store.write(conn, row, log_index=log_index)
    return _intent(row)


def mark(
    conn: sa.Connection,
    key: str,
    state: ActionState,
    *,
    observed: Mapping[str, JsonValue],
    message: str,
    decision: ActionChanged,
    fence: Fence,
    at: datetime,
) -> ActionRow:
    """Move an action on and record it; repeating the whole transaction with the same decision changes nothing.

    `observed` is added to what was observed before. `at` is domain time.

    Raises:
        StaleRevision: the lease has passed to a newer epoch; stop.
        TerminalError: no such action, no such transition, or a decision that says something else.
    """
    fence.check(conn)
    row, _ = _locked(conn, key)
    said = (decision.action, decision.action_key, decision.state, decision.observed, decision.message, decision.at)
    if said != (row.kind, key, state, dict(observed), message, at):
        raise TerminalError(f"action {row.kind} {key}: the decision does not record this change to {state}")
    size = log.size(conn)
    index = log.append(conn, decision)
    if index < size:
        return row
    row = advance(row, decision).model_copy(update={"epoch": fence.epoch})
    store.write(conn, row, log_index=index)
    return row


def advance(row: ActionRow, change: ActionChanged) -> ActionRow:
    """`row` after `change`: the one rule that the ledger writes by and an audit checks by.

    Raises:
        TerminalError: the transition is not allowed.
    """
    if change.state not in ALLOWED[row.state]:
        raise TerminalError(f"action {row.kind} {row.id} cannot go from {row.state} to {change.state}")
    finished_at = row.finished_at if change.state == "reverted" else None
    return row.model_copy(
        update={
            "state": change.state,
            "observed": {**row.observed, **change.observed},
            "message": change.message,
            "finished_at": change.at if change.state in ("failed", "verified") else finished_at,
        }
    )


def commit_mismatch(row: ActionRow, decision: ActionDecided) -> list[str]:
    """How `decision` fails to allow the intent in `row`; empty where it does."""
    key = action_key(subject_id=row.subject_id, kind=row.kind, args=row.args, attempt=row.attempt)
    pairs = {
        "key": (row.id, key),
        "decided key": (decision.action_key, key),
        "verdict": (decision.verdict, "allow"),
        "kind": (row.kind, decision.action),
        "args": (row.args, decision.args),
        "args_sha256": (row.args_sha256, digest(row.args)),
        "facts_sha256": (row.facts_sha256, decision.facts_sha256),
        "policy_sha256": (row.policy_sha256, decision.policy_sha256),
        "approval_id": (row.approval_id, decision.approval_id),
        "prior": (row.prior, row.prior if decision.prior is None else decision.prior),
        "evidence_ids": (row.evidence_ids, decision.evidence_ids),
        "agent": (row.agent, _agent_of(decision.principal) or row.agent),
        "created_at": (row.created_at, decision.at),
        "model": (row.model, decision.model or row.model),
        "run_id": (row.run_id, decision.run_id or row.run_id),
    }
    return [f"{name} is {found!r}, not {expected!r}" for name, (found, expected) in pairs.items() if found != expected]


def _agent_of(principal: str) -> str | None:
    """The agent's name in `Agent::"name"`."""
    kind, _, name = principal.partition("::")
    return name.strip('"') if kind == "Agent" else None


def get(conn: sa.Connection, key: str) -> ActionRow | None:
    """The action of that key, or None."""
    return store.get(conn, ActionRow, key)


def open_actions(conn: sa.Connection, model: str) -> list[ActionRow]:
    """Actions of `model` that are not settled, in the order of their last change."""
    return [store.read(ActionRow, found) for found in _OPEN_ACTIONS.all(conn, {"model": model})]


def last_verified(conn: sa.Connection, model: str, kind: ActionKind) -> ActionRow | None:
    """The action of that kind that was verified last and has not been reverted."""
    found = _LAST_VERIFIED.one(conn, {"model": model, "kind": kind})
    return None if found is None else store.read(ActionRow, found)


def next_attempt(conn: sa.Connection, subject_id: str, kind: ActionKind, args: Mapping[str, JsonValue]) -> int:
    """1 plus the number of recorded failures of this very action."""
    failed = store.select(conn, ActionRow, subject_id=subject_id, kind=kind, state="failed")
    args_sha256 = digest(dict(args))
    return 1 + sum(row.args_sha256 == args_sha256 for row in failed)


def _locked(conn: sa.Connection, key: str) -> tuple[ActionRow, int]:
    found = _LOCKED.one(conn, {"id": key})
    if found is None:
        raise TerminalError(f"no action {key} in the ledger: commit it first")
    return store.read(ActionRow, found), int(found[-1])


def _intent(row: ActionRow) -> CommittedIntent:
    return CommittedIntent(
        key=row.id,
        kind=row.kind,
        model=row.model,
        subject_id=row.subject_id,
        args=copy.deepcopy(row.args),
        epoch=row.epoch,
        made_by=_LEDGER,
    )
