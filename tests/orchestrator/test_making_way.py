"""A person's version is judged while another rollout goes on, and takes its place only when it really may."""

from __future__ import annotations

import pytest

from evals.world.records import Condition
from state.rows import ApprovalRow, GoalRow, RolloutRow, RunRow
from tests.orchestrator.conftest import At
from tests.orchestrator.support import Stage, days


def no_winner(stage: Stage) -> str:
    """A version of a team that beats nobody: an approver has to let it onto the canary."""
    return stage.register(until="2026-02-25T00:00:00+00:00")


def goal_of(stage: Stage, run: RunRow) -> GoalRow:
    (row,) = stage.rows(GoalRow, id=run.subject_id)
    return row  # type: ignore[no-any-return]


def pending(stage: Stage) -> ApprovalRow:
    (row,) = stage.rows(ApprovalRow, status="pending")
    return row  # type: ignore[no-any-return]


def test_the_running_canary_goes_on_while_a_person_is_asked_about_another_version(at: At) -> None:
    stage = at("canary")
    version = no_winner(stage)
    stage.ask("deploy", version=version)
    stage.settle()

    assert stage.kinds()[-1] == "evaluate_candidate"
    question = pending(stage)
    assert (question.action, question.args["weights"]) == ("shift_traffic", {"1": 90, version: 10})
    assert "version 2" in question.reason
    assert stage.weights() == {"1": 90, "2": 10}
    stage.days(1)
    assert stage.weights() == {"1": 70, "2": 30}
    assert len(stage.rows(ApprovalRow)) == 1
    stage.check_books()


def test_a_version_that_is_refused_costs_the_running_one_nothing(at: At) -> None:
    stage = at("canary")
    run = stage.ask("deploy", version=no_winner(stage))
    stage.settle()
    stage.answer("rejected")
    stage.days(7)

    assert (goal_of(stage, run).status, goal_of(stage, run).outcome) == ("failed", "rejected")
    assert (stage.champion(), stage.alias()) == ("2", "2")
    assert "rollback" not in stage.kinds()
    assert [a.status for a in stage.rows(ApprovalRow)] == ["rejected"]
    stage.check_books()


def test_a_goal_that_only_asks_what_would_happen_calls_off_no_rollout(at: At) -> None:
    stage = at("canary")
    run = stage.ask("deploy", version=no_winner(stage), dry_run=True)
    stage.settle()

    assert goal_of(stage, run).outcome == "dry_run"
    assert stage.weights() == {"1": 90, "2": 10}
    assert stage.rollout().status == "running"


@pytest.mark.parametrize("moment", ["canary", "ab_test"])
def test_an_approved_version_takes_the_place_without_a_second_question(at: At, moment: str) -> None:
    stage = at(moment)
    version = no_winner(stage)
    stage.ask("promote", version=version)
    stage.settle()
    writes = len(stage.traffic_writes())
    stage.answer("approved")
    stage.settle()

    assert stage.traffic_writes()[writes:] == [{"1": 100, "2": 0}, {"1": 90, version: 10}]
    assert stage.weights() == {"1": 90, version: 10}
    assert [a.status for a in stage.rows(ApprovalRow)] == ["used"]
    (old,), (new,) = stage.rows(RolloutRow, candidate="2"), stage.rows(RolloutRow, candidate=version)
    assert (old.status, new.status) == ("superseded", "running")
    assert old.id != new.id
    stage.check_books()


def test_a_version_that_beats_the_champion_takes_the_place_without_any_question(at: At) -> None:
    stage = at("canary")
    version = stage.register(until=(stage.clock.now() - days(4)).isoformat())
    run = stage.ask("deploy", version=version)
    stage.settle()

    (now,) = stage.rows(RunRow, id=run.id)
    assert now.facts["paired_win"]
    assert stage.rows(ApprovalRow) == []
    assert stage.weights() == {"1": 90, version: 10}
    stage.check_books()


def test_a_question_is_still_good_once_the_running_version_has_left_by_itself(at: At) -> None:
    stage = at("canary")
    version = no_winner(stage)
    stage.ask("deploy", version=version)
    stage.settle()
    question = pending(stage)
    stage.world.degrade("churn", Condition(version="2", error_ratio=0.5))
    stage.days(1)

    assert stage.rows(RolloutRow, candidate="2")[0].status == "rolled_back"
    assert stage.weights() == {"1": 100, version: 0}
    assert pending(stage).id == question.id
    stage.answer("approved")
    stage.settle()
    assert stage.weights() == {"1": 90, version: 10}
    assert [a.status for a in stage.rows(ApprovalRow)] == ["used"]
    stage.check_books()


def test_after_the_running_version_was_promoted_the_next_one_is_judged_against_it(at: At) -> None:
    stage = at("canary")
    version = no_winner(stage)
    run = stage.ask("deploy", version=version)
    stage.settle()
    first = pending(stage)
    for _ in range(7):
        stage.days(1)
        if stage.champion() == "2":
            break
    (waiting,) = stage.rows(RunRow, id=run.id)
    assert waiting.waits_for == "version 2 to end its bake window"
    assert stage.weights() == {"1": 0, "2": 100}

    stage.days(2)
    (void, second) = stage.rows(ApprovalRow)
    assert (void.id, void.status) == (first.id, "void")
    assert (second.status, second.args["weights"]) == ("pending", {"2": 90, version: 10})
    compared = [a.args["champion"] for a in stage.verified() if a.kind == "evaluate_candidate"]
    assert compared == ["1", "2"]
    stage.check_books()


def test_a_restart_between_the_answer_and_the_first_share_asks_nothing_again(at: At) -> None:
    stage = at("canary")
    version = no_winner(stage)
    stage.ask("deploy", version=version)
    stage.settle()
    stage.answer("approved")
    for _ in range(12):
        stage.tick()
        stage.crew.db.close()
        stage = stage.again()
    stage.settle()

    assert stage.weights() == {"1": 90, version: 10}
    assert [a.status for a in stage.rows(ApprovalRow)] == ["used"]
    stage.check_books()
    stage.crew.db.close()


def test_a_held_model_keeps_its_canary_whatever_a_person_wants_next(at: At) -> None:
    stage = at("canary")
    stage.hold(True)
    stage.ask("deploy", version=no_winner(stage))
    stage.days(3)

    assert stage.weights() == {"1": 90, "2": 10}
    assert stage.rollout().status == "running"
    assert stage.rows(ApprovalRow) == []


def test_of_two_staged_versions_the_one_that_a_person_approves_takes_the_traffic(at: At) -> None:
    stage = at("before")
    slow = type(stage.spec).model_validate({**stage.spec.model_dump(), "autonomy": {"register_candidate": "approve"}})
    stage.world._specs["churn"] = stage.spec = slow
    stage.crew.db.close()
    stage = stage.again()
    version = no_winner(stage)
    stage.days(1)
    assert pending(stage).action == "register_candidate"
    stage.ask("deploy", version=version)
    stage.settle()
    assert stage.weights() == {"1": 100, version: 0}
    stage.answer("approved", action="register_candidate")
    stage.settle()
    assert stage.weights() == {"1": 100, version: 0, "3": 0}
    assert pending(stage).args["weights"] == {"1": 90, version: 10}

    stage.answer("approved")
    stage.settle()
    assert stage.weights() == {"1": 90, version: 10}
    assert stage.rows(RolloutRow, candidate="3")[0].status == "superseded"
    assert [a.status for a in stage.rows(ApprovalRow)] == ["used", "used"]
    stage.check_books()
    stage.crew.db.close()
