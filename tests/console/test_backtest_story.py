"""What a backtest tells of questions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from console.backtest_story import questions
from console.chronicle import Records
from state.rows import ApprovalRow

ASKED = datetime(2026, 1, 5, tzinfo=UTC)


def records(*rows: ApprovalRow) -> Records:
    return Records(
        model="churn", incidents=[], actions=[], runs={}, signals=[], rollouts=[], approvals=rows, drift=[], profiles=[],
        entries=[],
    )  # fmt: skip


def question(day: int, reason: str, status: str, run: str = "run-1") -> ApprovalRow:
    return ApprovalRow.model_validate(
        {
            "id": f"a{day:03}", "model": "churn", "status": status, "action_key": f"k{day}", "action": "quarantine_data",
            "args": {}, "binding_sha256": "", "roles": ["approver"], "reason": reason,
            "asked_at": ASKED + timedelta(days=day), "expires_at": ASKED + timedelta(days=day + 3), "run_id": run,
        }
    )  # fmt: skip


def test_a_question_that_is_asked_again_with_newer_figures_stands_once() -> None:
    rows = [
        question(1, "1 faulty day", "void"),
        question(2, "2 faulty days", "void"),
        question(3, "3 faulty days", "pending"),
    ]

    [found] = questions(records(*rows), ASKED)

    assert (found.times, found.asked, found.why, found.status) == (3, "2026-01-05", "3 faulty days", "unanswered")


def test_what_is_asked_after_an_answer_or_of_another_incident_is_another_question() -> None:
    rows = [
        question(1, "1 faulty day", "used"), question(2, "2 faulty days", "pending"),
        question(3, "9 faulty days", "pending", run="run-2"),
    ]  # fmt: skip

    assert [(q.why, q.times) for q in questions(records(*rows), ASKED)] == [
        ("1 faulty day", 1), ("2 faulty days", 1), ("9 faulty days", 1),
    ]  # fmt: skip
