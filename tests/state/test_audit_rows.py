"""Rows that repeat the log are compared with it: whoever edits, inserts or deletes one past the log is found out."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from state import audit, ledger, log, store
from state.audit import AuditResult
from state.canonical import canonical_json
from state.database import Database
from state.decisions import ApprovalChanged, Commanded, Decision, Genesis, IncidentChanged, Observed, PolicyApproved
from state.keys import Signer
from state.leases import Fence
from state.merkle import leaf_hash
from state.plans import ActionKind
from state.rows import ApprovalRow, GoalRow, IncidentRow, ModelRow, RolloutRow, Row, SwitchRow
from tests.state.support import AT, IDS, Sql, allowing, change, key_of, mark, observation, proposal

SIGNER = Signer("steadyhand.test/log", bytes(32))
LATER = AT + timedelta(days=2)


def say(db: Database, kind: type[Decision], **fields: Any) -> None:
    common = {"decision_id": IDS.new_id(), "at": AT, "recorded_at": AT, "actor": 'System::"steadyhand"', "summary": "x"}
    with db.transaction() as conn:
        log.append(conn, kind(**{**common, **fields}))


def put(db: Database, *rows: Row) -> None:
    with db.transaction() as conn:
        for row in rows:
            store.put(conn, row, fence=None)


def act(db: Database, fence: Fence, kind: ActionKind, args: dict[str, Any], observed: dict[str, Any]) -> None:
    wanted = proposal(kind=kind, args=args, proposed_by="deployment")
    key = key_of(wanted)
    decision = allowing(wanted, key, principal='Agent::"deployment"')
    with db.transaction() as conn:
        intent = ledger.commit(
            conn, wanted, key=key, attempt=1, prior={}, facts_sha256=decision.facts_sha256,
            policy_sha256=decision.policy_sha256, approval_id=None, run_id="r", decision=decision, fence=fence, at=AT,
        )  # fmt: skip
    for state in ("acting", "done", "verified"):
        with db.transaction() as conn:
            mark(conn, fence, change(intent, state, observed=observed))


@pytest.fixture
def told(db: Database, fence: Fence) -> Database:
    """One row of every kind that the log speaks of, each as its records make it."""
    say(db, Genesis, policy_sha256="p" * 64, signing_key=SIGNER.vkey, roles={})
    title = "flights: faulty data arrives"
    incident: dict[str, Any] = {"model": "flights", "incident_id": "i1", "cause": "data_fault"}
    say(
        db,
        IncidentChanged,
        **{**incident, "cause": "concept_drift"},
        change="opened",
        title="flights: worse predictions",
    )
    say(db, IncidentChanged, **incident, change="rediagnosed", title=title)
    say(db, IncidentChanged, **incident, change="closed", resolution="quarantined", at=LATER)
    put(db, IncidentRow(id="i1", model="flights", status="closed", cause="data_fault", signal="data_fault", title=title,
                        opened_at=AT + timedelta(seconds=1), closed_at=LATER, resolution="quarantined"))  # fmt: skip
    question: dict[str, Any] = {
        "model": "flights", "run_id": "r", "approval_id": "a1", "action": "promote", "action_key": "k",
        "roles": ["approver"],
    }  # fmt: skip
    expires = AT + timedelta(days=7)
    say(db, ApprovalChanged, **question, change="asked", reason="gates are not met", args={"version": "2"},
        binding_sha256="b", expires_at=expires)  # fmt: skip
    say(db, ApprovalChanged, **question, change="approved", reason="seen", actor='User::"ann"')
    put(db, ApprovalRow(id="a1", model="flights", status="approved", action_key="k", action="promote",
                        args={"version": "2"}, binding_sha256="b", roles=["approver"], reason="gates are not met",
                        asked_at=AT, expires_at=expires, answered_by="ann", answered_at=AT, comment="seen",
                        run_id="r"))  # fmt: skip
    goal: dict[str, Any] = {"intent": "retrain", "model": "flights"}
    say(db, Commanded, model="flights", actor='User::"ann"', command="goal", details={"goal_id": "g1", "goal": goal})
    say(db, Observed, topic="health", verdict="achieved", details={"goal_id": "g1", "status": "achieved"})
    put(db, GoalRow(id="g1", model="flights", status="achieved", standing=False, goal=goal, text="retrain flights",
                    asked_by="ann", asked_at=AT))  # fmt: skip
    act(db, fence, "run_ab_test", {"version": "2", "rollout": "o1", "weights": {"1": 50, "2": 50}},
        {"weights": {"1": 50, "2": 50}})  # fmt: skip
    put(db, RolloutRow(id="o1", model="flights", status="running", candidate="2", stable="1", phase="ab_test",
                       body={"weights": {"1": 50, "2": 50}}, started_at=AT))  # fmt: skip
    say(db, Commanded, actor='User::"ann"', command="halt", details={"reason": "outage"})
    put(db, SwitchRow(id="halt", body={"on": True, "by": "ann", "reason": "outage", "at": AT.isoformat()}))
    say(db, Commanded, model="flights", actor='User::"ann"', command="hold", details={"reason": ""})
    put(db, ModelRow(id="flights", held=True, spec={"secret": 1}, spec_sha256="0", base_path=".", added_at=AT))
    return db


def verify(db: Database) -> AuditResult:
    return audit.verify(db, None, SIGNER.vkey)


def test_rows_as_their_records_make_them_are_in_order(told: Database, tmp_path: Path) -> None:
    assert verify(told).problems == []
    audit.export(told, tmp_path / "e.jsonl")
    assert audit.verify(tmp_path / "e.jsonl", None, SIGNER.vkey).problems == []
    assert "secret" not in (tmp_path / "e.jsonl").read_text()


def body(table: str, row: str, old: str, new: str) -> str:
    return f"update {table} set body = replace(body, '{old}', '{new}') where id = '{row}'"


EDITS = [
    pytest.param(body("incidents", "i1", "faulty data", "fine data"), "incident i1 was edited: title", id="title"),
    pytest.param("update incidents set cause = 'skew'", "incident i1 was edited: cause is 'skew'", id="cause"),
    pytest.param("update incidents set status = 'open'", "incident i1 was edited: status is 'open'", id="reopened"),
    pytest.param(body("incidents", "i1", '"quarantined"', '"recovered"'), "i1 was edited: resolution", id="resolution"),
    pytest.param(body("incidents", "i1", "2026-03-01", "2026-02-01"), "i1 was edited: opened_at", id="opened"),
    pytest.param("delete from incidents", "incident i1 was deleted", id="incident-deleted"),
    pytest.param("update incidents set id = 'i9'", "incident i9 was inserted", id="incident-inserted"),
    pytest.param(body("approvals", "a1", "ann", "bob"), "approval a1 was edited: answered_by is 'bob'", id="answerer"),
    pytest.param("update approvals set status = 'used'", "a1 was edited: status is 'used'", id="answer-used"),
    pytest.param(body("approvals", "a1", "gates are not met", "all is well"), "a1 was edited: reason", id="question"),
    pytest.param(body("approvals", "a1", "seen", "never"), "a1 was edited: comment is 'never'", id="comment"),
    pytest.param(body("approvals", "a1", '"version":"2"', '"version":"9"'), "a1 was edited: args", id="args"),
    pytest.param(body("approvals", "a1", '"b"', '"c"'), "a1 was edited: binding_sha256 is 'c'", id="binding"),
    pytest.param(body("approvals", "a1", "2026-03-08", "2027-03-08"), "a1 was edited: expires_at", id="expiry"),
    pytest.param(body("approvals", "a1", '["approver"]', '["viewer"]'), "a1 was edited: roles", id="roles"),
    pytest.param("update approvals set action_key = 'other'", "a1 was edited: action_key", id="other-action"),
    pytest.param("delete from approvals", "approval a1 was deleted", id="approval-deleted"),
    pytest.param(body("goals", "g1", "ann", "bob"), "goal g1 was edited: asked_by is 'bob'", id="asker"),
    pytest.param(body("goals", "g1", '"retrain"', '"deploy"'), "goal g1 was edited: goal", id="goal"),
    pytest.param("update goals set status = 'failed'", "goal g1 was edited: status is 'failed'", id="goal-status"),
    pytest.param("delete from goals", "goal g1 was deleted", id="goal-deleted"),
    pytest.param("update rollouts set candidate = '9'", "rollout o1 was edited: candidate is '9'", id="candidate"),
    pytest.param(body("rollouts", "o1", "ab_test", "canary"), "rollout o1 was edited: phase is 'canary'", id="phase"),
    pytest.param("update rollouts set status = 'completed'", "o1 was edited: status is 'completed'", id="rollout-ended"),
    pytest.param(body("rollouts", "o1", '"2":50', '"2":5'), "o1 was edited: weights", id="weights"),
    pytest.param("delete from rollouts", "rollout o1 was deleted", id="rollout-deleted"),
    pytest.param(body("switches", "halt", "true", "false"), "switch halt was edited: on is False", id="halt-released"),
    pytest.param("delete from switches where id = 'halt'", "switch halt was deleted", id="halt-deleted"),
    pytest.param(body("models", "flights", '"held":true', '"held":false'), "model flights was edited: held", id="held"),
    pytest.param("update incidents set body = '{'", "incident i1 cannot be read", id="garbage"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "problem"), EDITS)
def test_a_row_that_tells_another_story_than_the_log_is_named(
    told: Database, sql: Sql, statement: str, problem: str, tmp_path: Path
) -> None:
    sql(statement)

    assert any(problem in text for text in verify(told).problems), verify(told).problems
    audit.export(told, tmp_path / "e.jsonl")
    assert any(problem in text for text in audit.verify(tmp_path / "e.jsonl", None, SIGNER.vkey).problems)


def test_an_inserted_row_is_named(told: Database) -> None:
    put(
        told,
        GoalRow(id="g2", model="flights", status="active", standing=True, goal={}, text="", asked_by="m", asked_at=AT),
    )
    assert verify(told).problems == ["goal g2 was inserted: no record speaks of it"]


def test_a_halt_that_nobody_recorded_is_named(db: Database) -> None:
    say(db, Genesis, policy_sha256="p" * 64, signing_key=SIGNER.vkey, roles={})
    put(db, SwitchRow(id="halt", body={"on": True, "by": "x"}))
    assert verify(db).problems == ["switch halt was inserted: no record speaks of it"]


def test_an_action_decided_under_a_set_that_nobody_approved_is_named(told: Database, fence: Fence) -> None:
    wanted = proposal(args={"n": 1})
    with told.transaction() as conn:
        index = log.append(conn, allowing(wanted, key_of(wanted), verdict="deny", policy_sha256="q" * 64))
    assert verify(told).problems == [
        f"record {index} was decided under the policy set {'q' * 64}, which no record before it approves"
    ]
    say(told, PolicyApproved, old_sha256="p" * 64, policy_sha256="q" * 64, added=[], changed=[], removed=[],
        schema_changed=False)  # fmt: skip
    with told.transaction() as conn:
        log.append(conn, allowing(wanted, key_of(wanted), verdict="deny", policy_sha256="q" * 64))
    assert len(verify(told).problems) == 1


def as_format_1(db: Database) -> None:
    """The log as an earlier release wrote it: without what format 2 added."""
    gone = ("prior", "args", "binding_sha256", "expires_at", "title")
    with db.transaction() as conn:
        for index, leaf in conn.execute(sa.text("select idx, leaf from decisions")).all():
            content = json.loads(bytes(leaf))
            content["format"] = 1
            record = content["record"]
            for name in gone if record["kind"] != "action_decided" else ("prior",):
                record.pop(name, None)
            new = canonical_json(content)
            conn.execute(
                sa.text("update decisions set leaf = :leaf, leaf_sha256 = :hash where idx = :i"),
                {"leaf": new, "hash": leaf_hash(new).hex(), "i": index},
            )


def test_a_log_of_the_format_before_is_in_order_and_its_rows_without_a_record_are_passed_over(
    told: Database, sql: Sql
) -> None:
    as_format_1(told)
    put(
        told,
        GoalRow(id="g2", model="flights", status="active", standing=True, goal={}, text="", asked_by="m", asked_at=AT),
    )
    assert verify(told).problems == []
    sql("update incidents set cause = 'skew'")
    assert len(verify(told).problems) == 1


def test_an_export_of_the_format_before_has_no_rows_and_says_so(told: Database, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    audit.export(told, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["export"]["format"] = 1
    del lines[-1]["end"]["row"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if "row" not in line))
    result = audit.verify(path, None, SIGNER.vkey)
    assert result.problems == []
    assert any("format 1" in note for note in result.notes)


def test_an_edited_undo_state_of_an_action_is_found(told: Database, sql: Sql) -> None:
    sql('update actions set body = replace(body, \'"prior":{}\', \'"prior":{"weights":{}}\')')
    [problem] = verify(told).problems
    assert "prior is {'weights': {}}" in problem


def test_observations_cost_no_row(told: Database) -> None:
    with told.transaction() as conn:
        log.append(conn, observation())
    assert verify(told).ok
