"""No committed intent, no effect; every step of an action is recorded and can be taken up again."""

from __future__ import annotations

import copy
import itertools
from typing import Any, get_args

import pytest
import sqlalchemy as sa

from state import leases, ledger, log
from state.canonical import digest
from state.database import Database
from state.decisions import ActionChanged, ActionDecided
from state.errors import StaleRevision, TerminalError
from state.leases import Fence
from state.ledger import CommittedIntent
from state.plans import ActionState
from tests.state.support import AT, allowing, change, commit, key_of, mark, proposal, walk

PATHS: dict[ActionState, tuple[ActionState, ...]] = {
    "intended": (),
    "acting": ("acting",),
    "done": ("acting", "done"),
    "failed": ("acting", "failed"),
    "unknown": ("acting", "unknown"),
    "verified": ("acting", "done", "verified"),
    "reverted": ("acting", "done", "verified", "reverted"),
}
ALLOWED = {
    ("intended", "acting"), ("acting", "acting"), ("acting", "done"), ("acting", "failed"), ("acting", "unknown"),
    ("done", "verified"), ("done", "unknown"), ("done", "failed"), ("verified", "reverted"),
    ("unknown", "acting"), ("unknown", "done"), ("unknown", "verified"), ("unknown", "failed"),
}  # fmt: skip


def commit_one(db: Database, fence: Fence, **fields: Any) -> CommittedIntent:
    with db.transaction() as conn:
        return commit(conn, fence, proposal(**fields))


def test_an_intent_and_its_decision_are_stored_together(db: Database, fence: Fence) -> None:
    intent = commit_one(db, fence)

    with db.snapshot() as conn:
        row = ledger.get(conn, intent.key)
        (entry,) = log.read(conn)
    assert row is not None
    assert (row.state, row.attempt, row.prior, row.epoch, row.created_at) == ("intended", 1, {"version": "3"}, 1, AT)
    assert isinstance(entry.decision, ActionDecided)
    assert entry.decision.action_key == intent.key == key_of(proposal())
    assert (intent.kind, intent.model, intent.args, intent.epoch) == ("train_candidates", "flights", row.args, 1)


def test_an_intent_that_is_rolled_back_leaves_no_decision(db: Database, fence: Fence) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction() as conn:
        commit(conn, fence)
        1 / 0  # noqa: B018

    with db.snapshot() as conn:
        assert log.read(conn) == []
        assert ledger.open_actions(conn, "flights") == []


def test_the_same_key_twice_gives_the_stored_intent_and_records_nothing(db: Database, fence: Fence) -> None:
    first = commit_one(db, fence)
    walk(db, fence, first, "acting")

    assert commit_one(db, fence) == first
    with db.snapshot() as conn:
        assert len(log.read(conn)) == 2
        assert [row.state for row in ledger.open_actions(conn, "flights")] == ["acting"]


def test_only_the_ledger_makes_intents(db: Database, fence: Fence) -> None:
    fields = {"key": "k", "kind": "promote", "model": "flights", "subject_id": "i", "args": {}, "epoch": 1}
    with pytest.raises(TerminalError, match="only the ledger"):
        CommittedIntent(**fields, made_by=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        CommittedIntent(**fields)  # type: ignore[arg-type]
    intent = commit_one(db, fence)
    with pytest.raises(AttributeError):
        intent.kind = "promote"  # type: ignore[misc]


def test_changing_the_args_of_an_intent_does_not_change_the_ledger(db: Database, fence: Fence) -> None:
    wanted = proposal()
    with db.transaction() as conn:
        intent = commit(conn, fence, wanted)
    before = copy.deepcopy(intent.args)
    wanted.args["data"] = "other"

    assert intent.args == before


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("verdict", "deny", "verdict is 'deny'"),
        ("verdict", "needs_approval", "verdict is 'needs_approval'"),
        ("action", "promote", "kind is"),
        ("args", {"data": "d2"}, "args is"),
        ("action_key", "0" * 64, "decided key is"),
        ("policy_sha256", "q" * 64, "policy_sha256 is"),
        ("facts_sha256", "f" * 64, "facts_sha256 is"),
        ("approval_id", "a1", "approval_id is None, not 'a1'"),
        ("model", "fraud", "model is"),
        ("run_id", "run-2", "run_id is"),
        ("at", AT.replace(hour=13), "created_at is"),
    ],
)
def test_a_decision_that_does_not_allow_exactly_this_action_commits_nothing(
    db: Database, fence: Fence, field: str, value: object, named: str
) -> None:
    wanted = proposal()
    key = key_of(wanted)
    right = allowing(wanted, key)
    decision = right.model_copy(update={field: value})

    with pytest.raises(TerminalError, match=named), db.transaction() as conn:
        ledger.commit(
            conn, wanted, key=key, attempt=1, prior={}, facts_sha256=right.facts_sha256,
            policy_sha256=right.policy_sha256, approval_id=None, run_id="run-1", decision=decision, fence=fence, at=AT,
        )  # fmt: skip
    with db.snapshot() as conn:
        assert log.size(conn) == 0


@pytest.mark.parametrize(("before", "after"), list(itertools.product(get_args(ActionState), repeat=2)))
def test_exactly_the_allowed_transitions_are_possible(
    db: Database, fence: Fence, before: ActionState, after: ActionState
) -> None:
    intent = commit_one(db, fence)
    walk(db, fence, intent, *PATHS[before])
    with db.snapshot() as conn:
        n_records = log.size(conn)

    if (before, after) in ALLOWED:
        walk(db, fence, intent, after)
    else:
        with pytest.raises(TerminalError, match=f"cannot go from {before} to {after}"):
            walk(db, fence, intent, after)

    with db.snapshot() as conn:
        row = ledger.get(conn, intent.key)
        assert row is not None
        assert row.state == (after if (before, after) in ALLOWED else before)
        assert log.size(conn) == n_records + ((before, after) in ALLOWED)


def test_observations_add_up_and_the_end_is_dated(db: Database, fence: Fence) -> None:
    intent = commit_one(db, fence)
    moves = [
        change(intent, "acting", n=1),
        change(intent, "done", observed={"version": "4", "ready": False}, n=2),
        change(intent, "verified", observed={"ready": True}, n=3),
    ]
    for move in moves:
        with db.transaction() as conn:
            mark(conn, fence, move)

    with db.snapshot() as conn:
        row = ledger.get(conn, intent.key)
    assert row is not None
    assert row.observed == {"version": "4", "ready": True}
    assert (row.message, row.finished_at) == ("now verified", moves[-1].at)


def test_repeating_a_whole_transaction_changes_nothing(db: Database, fence: Fence) -> None:
    intent = commit_one(db, fence)
    acting, done = change(intent, "acting"), change(intent, "done", observed={"version": "4"})
    for move in (acting, acting, done, acting, done):
        with db.transaction() as conn:
            mark(conn, fence, move)

    with db.snapshot() as conn:
        row = ledger.get(conn, intent.key)
        assert log.size(conn) == 3
    assert row is not None
    assert row.state == "done"


@pytest.mark.parametrize(
    ("field", "value"),
    [("state", "failed"), ("observed", {"x": 1}), ("message", "other"), ("action", "promote"), ("at", AT)],
)
def test_a_record_that_says_something_else_is_refused(db: Database, fence: Fence, field: str, value: object) -> None:
    intent = commit_one(db, fence)
    right = change(intent, "acting")
    wrong: ActionChanged = right.model_copy(update={field: value})

    with pytest.raises(TerminalError, match="does not record this change"), db.transaction() as conn:
        ledger.mark(
            conn,
            intent.key,
            "acting",
            observed=right.observed,
            message=right.message,
            decision=wrong,
            fence=fence,
            at=right.at,
        )


def test_an_unknown_key_is_refused(db: Database, fence: Fence) -> None:
    intent = commit_one(db, fence)
    missing = change(intent, "acting").model_copy(update={"action_key": "0" * 64})

    with pytest.raises(TerminalError, match=f"no action {'0' * 64}"), db.transaction() as conn:
        mark(conn, fence, missing)


def test_a_stale_worker_neither_commits_nor_marks(db: Database, fence: Fence) -> None:
    intent = commit_one(db, fence)
    with db.transaction() as conn:
        conn.execute(sa.text("update leases set expires_ms = 0"))
        taken = leases.acquire(conn, fence.scope, "worker-2", 60)
    assert taken is not None

    with pytest.raises(StaleRevision):
        walk(db, fence, intent, "acting")
    with pytest.raises(StaleRevision):
        commit_one(db, fence, args={"data": "d2"})
    with pytest.raises(StaleRevision):
        commit_one(db, fence)
    with db.snapshot() as conn:
        assert log.size(conn) == 1
        assert [row.state for row in ledger.open_actions(conn, "flights")] == ["intended"]


def test_recovery_takes_an_open_action_over_into_the_new_epoch(db: Database, fence: Fence) -> None:
    intent = commit_one(db, fence)
    walk(db, fence, intent, "acting")
    with db.transaction() as conn:
        conn.execute(sa.text("update leases set expires_ms = 0"))
        taken = leases.acquire(conn, fence.scope, "worker-2", 60)
        assert taken is not None
        (found,) = ledger.open_actions(conn, "flights")
        again = ledger.reopen(conn, found.id, taken.fence)

    assert (again.key, again.args, again.epoch) == (intent.key, intent.args, 2)
    walk(db, taken.fence, again, "acting", "done", "verified")
    with db.snapshot() as conn:
        row = ledger.get(conn, intent.key)
        assert row is not None
        assert (row.state, row.epoch) == ("verified", 2)


def test_open_actions_are_those_that_are_not_settled(db: Database, fence: Fence) -> None:
    for state, path in PATHS.items():
        walk(db, fence, commit_one(db, fence, args={"case": state}), *path)
    commit_one(db, fence, model="fraud")

    with db.snapshot() as conn:
        states = [row.state for row in ledger.open_actions(conn, "flights")]
    assert states == ["intended", "acting", "done", "unknown"]


def test_last_verified_is_the_last_in_the_log_even_at_one_domain_time(db: Database, fence: Fence) -> None:
    intents = [commit_one(db, fence, args={"n": n}) for n in range(3)]
    for intent in (intents[2], intents[0], intents[1]):
        walk(db, fence, intent, "acting", "done", "verified")

    def last() -> object:
        with db.snapshot() as conn:
            row = ledger.last_verified(conn, "flights", "train_candidates")
            assert ledger.last_verified(conn, "flights", "promote") is None
            assert ledger.last_verified(conn, "fraud", "train_candidates") is None
        return row and row.args["n"]

    assert last() == 1
    with db.transaction() as conn:
        ledger.reopen(conn, intents[2].key, fence)
    assert last() == 1
    walk(db, fence, intents[1], "reverted")
    assert last() == 0


def test_the_attempt_rises_only_after_a_recorded_failure(db: Database, fence: Fence) -> None:
    wanted = proposal(args={"data": "d1"})

    def attempt(**other: Any) -> int:
        asked = {"subject_id": wanted.subject_id, "kind": wanted.kind, "args": wanted.args, **other}
        with db.snapshot() as conn:
            return ledger.next_attempt(conn, **asked)

    assert attempt() == 1
    intent = commit_one(db, fence, args={"data": "d1"})
    walk(db, fence, intent, "acting", "unknown")
    assert attempt() == 1
    walk(db, fence, intent, "failed")
    assert attempt() == 2
    assert attempt(args={"data": "d2"}) == attempt(subject_id="incident-2") == attempt(kind="promote") == 1
    with db.transaction() as conn:
        second = commit(conn, fence, wanted, attempt=2)
    walk(db, fence, second, "acting", "failed")
    assert attempt() == 3
    assert second.key != intent.key
    assert digest(second.args) == digest(intent.args)
