"""A person wants a version: gates, approval, canary, and the ways in which it ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from evals.world.records import Condition
from orchestrator.gate import APPROVAL_TTL
from state.rows import ActionRow, ApprovalRow, GoalRow, RunRow
from tests.orchestrator.conftest import Quick
from tests.orchestrator.support import QUICK, Stage, days

STRICT = [{"metric": "roc_auc", "op": ">=", "value": 0.99}]
"""A gate that no honest model of this world meets."""


@pytest.fixture
def stage(quick: Quick) -> Iterator[Stage]:
    """A champion that has served four days, and a version 2 that a team registered; every gate is out of reach."""
    with quick(monitoring={**QUICK["monitoring"], "cadence": days(100)}) as stage:
        stage.start()
        bad = stage.register(until="2026-02-25T00:00:00+00:00")
        assert bad == "2"
        stage.spec = stage.spec.model_copy(update={"gates": [type(stage.spec.gates[0]).model_validate(STRICT[0])]})
        stage.world._specs["churn"] = stage.spec
        stage = stage.again()
        stage.days(4)
        yield stage
        stage.crew.db.close()


def goal_of(stage: Stage, run: RunRow) -> GoalRow:
    (row,) = stage.rows(GoalRow, id=run.subject_id)
    return row  # type: ignore[no-any-return]


def test_nothing_moves_until_a_person_approves_a_version_that_failed_its_gates(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.settle()

    (question,) = stage.rows(ApprovalRow)
    assert (question.action, question.status, question.roles) == ("shift_traffic", "pending", ["approver"])
    assert [m.title for m in stage.messages()] == ["churn: shift_traffic needs approver"]
    stage.days(2)
    assert stage.weights() == {"1": 100, "2": 0}
    assert len(stage.rows(ApprovalRow)) == 1


def test_an_approved_bad_version_is_taken_off_by_its_canary_and_never_promoted(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.settle()
    stage.answer("approved")
    stage.settle()
    assert stage.weights() == {"1": 90, "2": 10}
    (used,) = stage.rows(ApprovalRow)
    assert used.status == "used"

    stage.world.degrade("churn", Condition(version="2", error_ratio=0.5, latency_ratio=10.0))
    stage.days(1)

    assert stage.weights() == {"1": 100}
    assert (stage.alias(), stage.rollout().status) == ("1", "rolled_back")
    assert stage.kinds("promote", "shift_traffic", "rollback", "retire_version") == [
        "promote", "shift_traffic", "rollback", "retire_version",
    ]  # fmt: skip
    (incident,) = stage.incidents()
    assert (incident.cause, incident.status) == ("bad_release", "open")
    stage.days(2)
    (incident,) = stage.incidents()
    assert (incident.status, incident.resolution) == ("closed", "rolled_back")
    assert not stage.rows(RunRow, status=["ready", "waiting"])
    stage.check_books()


def test_an_approval_is_used_once_and_the_next_step_is_asked_anew(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.settle()
    stage.answer("approved")
    stage.settle()
    stage.days(1)

    assert [a.status for a in stage.rows(ApprovalRow)] == ["used", "pending"]
    assert stage.weights() == {"1": 90, "2": 10}


def test_an_approved_version_that_failed_its_gates_is_still_not_promoted(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.settle()
    for _ in range(12):
        if stage.rows(ApprovalRow, status="pending"):
            stage.answer("approved")
        stage.days(1)

    assert stage.alias() == "1"
    assert stage.weights() == {"1": 100}
    assert stage.kinds("promote") == ["promote"]
    stage.check_books()


def test_an_answer_is_void_once_a_judgement_that_it_rested_on_has_changed(stage: Stage) -> None:
    run = stage.ask("deploy", version="2")
    stage.settle()
    stage.answer("approved")
    (now,) = stage.rows(RunRow, id=run.id)
    now.facts["paired_win"] = not now.facts["paired_win"]
    stage.put(now)
    stage.settle()

    assert [a.status for a in stage.rows(ApprovalRow)] == ["void", "pending"]
    assert stage.weights() == {"1": 100, "2": 0}
    stage.check_books()


def test_a_ticking_clock_alone_does_not_void_an_answer(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.days(2)
    stage.answer("approved")
    stage.days(1)

    assert stage.rows(ApprovalRow)[0].status == "used"


def test_a_rejected_version_moves_nothing_and_is_not_asked_about_again(stage: Stage) -> None:
    run = stage.ask("deploy", version="2")
    stage.settle()
    stage.answer("rejected", comment="not this one")
    stage.days(2)

    (ended,) = stage.rows(RunRow, id=run.id)
    assert (ended.status, ended.outcome) == ("finished", "rejected")
    assert goal_of(stage, run).status == "failed"
    assert [a.status for a in stage.rows(ApprovalRow)] == ["rejected"]
    assert stage.kinds("shift_traffic", "rollback") == []
    assert stage.weights() == {"1": 100}
    assert any(d.kind == "action_decided" and d.verdict == "deny" and "not this one" in d.summary for d in stage.log())
    stage.check_books()


def test_a_question_without_an_answer_takes_its_declared_outcome_and_is_asked_anew(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.settle()
    (question,) = stage.rows(ApprovalRow)
    question.expires_at = stage.clock.now()
    stage.put(question)
    stage.settle()

    first, second = stage.rows(ApprovalRow)
    assert (first.status, second.status) == ("expired", "pending")
    assert second.expires_at == stage.clock.now() + APPROVAL_TTL
    assert stage.weights() == {"1": 100, "2": 0}


def test_a_question_whose_declared_outcome_is_yes_lets_the_action_pass_when_nobody_answers(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.settle()
    (question,) = stage.rows(ApprovalRow)
    stage.put(question.model_copy(update={"expires_at": stage.clock.now(), "on_expiry": "allow"}))
    stage.settle()

    assert stage.rows(ApprovalRow)[0].status == "used"
    assert stage.weights() == {"1": 90, "2": 10}


def test_an_answer_that_was_not_used_in_time_lapses(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.settle()
    question = stage.answer("approved")
    stage.put(question.model_copy(update={"expires_at": stage.clock.now()}))
    stage.settle()

    assert [a.status for a in stage.rows(ApprovalRow)] == ["expired", "pending"]
    assert stage.weights() == {"1": 100, "2": 0}


def test_a_dry_run_looks_and_changes_nothing(stage: Stage) -> None:
    effects = len(stage.world.effects)
    run = stage.ask("retrain", dry_run=True)
    stage.settle()

    (ended,) = stage.rows(RunRow, id=run.id)
    assert (ended.status, ended.outcome) == ("finished", "dry_run")
    assert len(stage.world.effects) == effects
    assert any(d.kind == "action_decided" and d.rules == ["dry-run"] for d in stage.log())


def test_a_retraining_that_a_person_asks_for_demands_approval_where_the_goal_says_so(stage: Stage) -> None:
    stage.ask("retrain", approval="always")
    stage.settle()

    (question,) = stage.rows(ApprovalRow)
    assert question.action == "train_candidates"
    assert [a.kind for a in stage.rows(ActionRow) if a.kind == "train_candidates"] == ["train_candidates"]


@pytest.mark.parametrize(
    ("intent", "made"),
    [
        pytest.param("validate", ["validate_data"], id="validate"),
        pytest.param("investigate", ["validate_data", "backtest_recipe"], id="investigate"),
        pytest.param("hold", ["hold"], id="hold"),
    ],
)
def test_a_goal_that_only_looks_or_holds_ends_achieved(stage: Stage, intent: str, made: list[str]) -> None:
    stage.days(3)
    before = len(stage.kinds())
    run = stage.ask(intent)
    stage.settle()

    assert stage.kinds()[before:] == made
    assert goal_of(stage, run).status == "achieved"


def test_comparing_a_version_measures_it_beside_the_champion_and_stages_nothing(stage: Stage) -> None:
    before = len(stage.kinds())
    run = stage.ask("compare", version="2")
    stage.settle()

    assert stage.kinds()[before:] == ["evaluate_candidate"]
    assert goal_of(stage, run).status == "achieved"
    assert stage.weights() == {"1": 100}


def test_a_version_that_does_not_exist_calls_off_no_rollout(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.settle()
    stage.answer("approved")
    stage.settle()
    on_its_way = {"1": 90, "2": 10}
    assert stage.weights() == on_its_way

    for intent in ("deploy", "promote", "compare"):
        run = stage.ask(intent, version="99")
        stage.settle()
        goal = goal_of(stage, run)
        assert (goal.status, goal.outcome) == ("failed", "no_such_version")

    assert stage.weights() == on_its_way
    assert stage.rollout().status == "running"


@pytest.mark.parametrize("forge", [
    pytest.param({"status": "approved", "answered_by": "mallory"}, id="a-yes"),
    pytest.param({"status": "approved", "roles": ["admin", "approver"]}, id="more-roles"),
])  # fmt: skip
def test_an_approval_that_only_its_row_says_is_void_and_people_hear_of_it(stage: Stage, forge: dict[str, Any]) -> None:
    stage.ask("deploy", version="2")
    stage.settle()
    question: ApprovalRow
    (question,) = stage.rows(ApprovalRow)
    stage.put(question.model_copy(update=forge))
    stage.days(1)

    first, second = stage.rows(ApprovalRow)
    assert (first.id, first.status, first.answered_by, second.status) == (question.id, "void", None, "pending")
    assert stage.weights() == {"1": 100, "2": 0}
    assert any("past the log" in message.title for message in stage.messages())
    assert first.roles == question.roles
    stage.check_books()


def test_an_approved_question_whose_binding_was_changed_since_is_void(stage: Stage) -> None:
    stage.ask("deploy", version="2")
    stage.settle()
    answered = stage.answer("approved")
    stage.put(answered.model_copy(update={"binding_sha256": "0" * 64}))
    stage.days(1)
    assert [row.status for row in stage.rows(ApprovalRow)] == ["void", "pending"]
    stage.check_books()


def test_an_incident_whose_champion_a_person_has_replaced_asks_anew_and_sees_that_it_is_over(quick: Quick) -> None:
    """A newer fit beat the old champion, and may not be trained here; meanwhile a team's version takes its place."""
    by_hand: dict[str, Any] = {"train_candidates": "observe"}
    with quick() as stage:
        stage.start()
        spec = type(stage.spec).model_validate({**stage.spec.model_dump(), "autonomy": by_hand})
        stage.world._specs["churn"] = stage.spec = spec
        stage.crew.db.close()
        stage = stage.again()
        stage.drift("concept", 0.8)
        for _ in range(12):
            stage.days(1)
            run = next((row for row in stage.rows(RunRow) if row.subject_kind == "incident"), None)
            if run is not None and run.facts.get("training_justified"):
                break
        assert run is not None and run.facts["compared_with"] == "1"
        ours = stage.register()
        stage.days(4)
        stage.ask("deploy", version=ours)
        stage.days(18)

        assert stage.champion() == ours
        (incident,) = [i for i in stage.incidents() if i.id == run.subject_id]
        assert incident.resolution == "recovered"
        assert stage.kinds("train_candidates") == ["train_candidates"], "the first champion's"
        stage.check_books()
        stage.crew.db.close()
