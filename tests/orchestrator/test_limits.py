"""What still happens under the kill switch, a hold, a freeze, in advise mode and with less autonomy."""

from __future__ import annotations

from datetime import timedelta

import pytest

from evals.world.records import Condition
from orchestrator.context import _labels
from orchestrator.people import throw_halt
from state.rows import ApprovalRow, RunRow
from tests.orchestrator.conftest import At, Quick
from tests.orchestrator.support import Stage, days


def test_under_the_kill_switch_a_failing_canary_is_rolled_back_and_nothing_else_moves(at: At) -> None:
    stage = at("canary")
    stage.switch("halt", on=True)
    before = stage.kinds()
    stage.days(2)
    assert stage.kinds() == before
    assert stage.weights() == {"1": 90, "2": 10}

    stage.world.degrade("churn", Condition(version="2", error_ratio=0.5))
    stage.days(1)
    assert stage.kinds()[len(before) :] == ["rollback"]
    assert stage.weights() == {"1": 100, "2": 0}

    stage.switch("halt", on=False)
    stage.days(1)
    assert stage.weights() == {"1": 100}
    stage.check_books()


def test_what_the_kill_switch_stopped_goes_on_as_soon_as_it_is_released(at: At) -> None:
    stage = at("canary")

    def throw(on: bool) -> None:
        with stage.crew.db.transaction() as conn:
            throw_halt(conn, on=on, user="ann", reason="outage", stamp=stage.crew.stamp())

    throw(True)
    stage.days(1)
    assert stage.weights() == {"1": 90, "2": 10}
    throw(False)
    stage.settle()
    assert stage.weights() == {"1": 70, "2": 30}


def test_under_the_kill_switch_a_data_fault_is_told_and_not_acted_upon(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(3)
        stage.switch("halt", on=True)
        stage.drift("unit", 1_000.0, features=("spend",))
        stage.days(2)

        assert [i.cause for i in stage.incidents()] == ["data_fault"]
        assert stage.world.model("churn").quarantined == []
        assert stage.kinds()[6:] == ["notify"]
        stage.check_books()


def test_c15_a_hold_writes_nothing_for_as_long_as_it_lasts_and_a_resume_goes_on_where_it_stood(at: At) -> None:
    stage = at("canary")
    stage.days(1)
    assert stage.weights() == {"1": 70, "2": 30}
    stage.hold(True)
    effects = len(stage.world.effects)
    stage.days(20)
    assert [e.method for e in stage.world.effects][effects:] == []
    assert stage.rollout().status == "running"

    stage.hold(False)
    stage.settle()
    assert stage.weights() == {"1": 50, "2": 50}
    assert [run.subject_kind for run in stage.rows(RunRow)] == ["goal", "incident"]
    stage.check_books()


def test_a_freeze_lets_nothing_but_a_rollback_through_and_ends_by_itself(quick: Quick, at: At) -> None:
    stage = at("canary")
    start = stage.clock.now()
    freeze = {"start": start, "end": start + timedelta(days=3), "why": "year end"}
    stage = frozen(stage, freeze)
    stage.days(2)
    assert stage.weights() == {"1": 90, "2": 10}

    stage.days(1)
    assert stage.weights() == {"1": 70, "2": 30}
    stage.check_books()
    stage.crew.db.close()


def test_a_failing_canary_leaves_within_a_freeze(at: At) -> None:
    stage = at("canary")
    start = stage.clock.now()
    stage = frozen(stage, {"start": start, "end": start + timedelta(days=30)})
    stage.world.degrade("churn", Condition(version="2", error_ratio=0.5))
    stage.days(1)

    assert stage.weights() == {"1": 100, "2": 0}
    stage.crew.db.close()


def frozen(stage: Stage, freeze: dict[str, object]) -> Stage:
    """The same model under a spec that declares a freeze."""
    spec = type(stage.spec).model_validate({**stage.spec.model_dump(), "freezes": [freeze]})
    stage.world._specs["churn"] = spec
    stage.crew.db.close()
    stage.spec = spec
    return stage.again()


def test_in_advise_mode_the_verdict_is_recorded_and_nothing_is_done(at: At) -> None:
    stage = at("before")
    stage.switch("mode", mode="advise")
    effects = len(stage.world.effects)
    stage.days(20)

    assert len(stage.world.effects) == effects
    assert [i.status for i in stage.incidents()] == ["open"]
    denied = [d for d in stage.log() if d.kind == "action_decided" and d.verdict == "deny"]
    assert {d.action for d in denied} == {"backtest_recipe"}
    assert {rule for d in denied for rule in d.rules} >= {"advise-mode"}
    stage.check_books()


def test_with_autonomy_approve_a_person_answers_before_every_such_action(quick: Quick) -> None:
    with quick(autonomy={"train_candidates": "approve"}) as stage:
        stage.drift("concept", 0.5)
        stage.start()
        assert [(a.action, a.status) for a in stage.rows(ApprovalRow)] == [("train_candidates", "pending")]
        assert stage.champion() is None

        stage.answer("approved")
        stage.settle()
        assert stage.champion() == "1"
        stage.check_books()


def test_with_autonomy_observe_an_incident_opens_and_a_person_gets_it_in_the_end(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        watched = type(stage.spec).model_validate({**stage.spec.model_dump(), "autonomy": {"reversible": "observe"}})
        stage.world._specs["churn"] = watched
        stage.crew.db.close()
        stage.spec = watched
        stage = stage.again()
        stage.drift("concept", 1.0)
        stage.days(22)

        assert stage.incidents()
        assert {i.resolution for i in stage.incidents()} <= {"escalated", None}
        assert any(i.resolution == "escalated" for i in stage.incidents())
        assert any("denied" in m.text for m in stage.messages())
        assert stage.weights() == {"1": 100}
        stage.crew.db.close()


def test_a_person_who_leaves_a_faulty_day_in_is_not_asked_about_the_next_one(quick: Quick) -> None:
    with quick(autonomy={"quarantine_data": "approve"}) as stage:
        stage.start()
        stage.days(3)
        until = (stage.clock.now() + timedelta(days=4)).date().isoformat()
        stage.drift("unit", 1_000.0, features=("spend",), until=until)
        stage.days(1)
        stage.answer("rejected")
        stage.settle()
        stage.days(4)
        assert [i.resolution for i in stage.incidents() if i.cause == "data_fault"] == ["rejected"]
        assert len(stage.rows(ApprovalRow)) == 1
        assert stage.world.model("churn").quarantined == []

        stage.days(2)
        stage.drift("unit", 1_000.0, features=("spend",))
        stage.days(1)
        assert len(stage.rows(ApprovalRow)) == 2, "after sound days it is a new fault"
        stage.check_books()


def test_what_waits_for_a_fault_to_be_contained_is_not_given_up(at: At) -> None:
    """Somebody has to answer for the days of the fault: until then the promotion waits, and after two weeks a person is
    called to it."""
    stage = at("ab_test")
    spec = type(stage.spec).model_validate({**stage.spec.model_dump(), "autonomy": {"quarantine_data": "approve"}})
    stage.world._specs["churn"] = spec
    stage.crew.db.close()
    stage.spec = spec
    stage = stage.again()
    until = (stage.clock.now() + days(2)).date().isoformat()
    stage.drift("unit", 1000.0, features=("spend",), until=until)
    stage.days(19)

    assert stage.rollout().status == "running"
    assert stage.weights() == {"1": 50, "2": 50}
    (called,) = [m for m in stage.messages() if "promote is denied" in m.text]
    assert "neither repaired nor quarantined" in called.text
    stage.answer("approved", action="quarantine_data")
    stage.days(1)
    while stage.rows(ApprovalRow, status="pending"):
        stage.answer("approved", action="quarantine_data")
        stage.days(1)
    stage.days(1)
    assert stage.champion() == "2"
    stage.crew.db.close()


@pytest.mark.parametrize("share", [10, 30])
def test_a_person_who_says_no_to_the_next_step_gets_the_old_champion_back(at: At, share: int) -> None:
    stage = at("canary")
    spec = type(stage.spec).model_validate({**stage.spec.model_dump(), "autonomy": {"risky": "approve"}})
    stage.world._specs["churn"] = spec
    stage.crew.db.close()
    stage.spec = spec
    stage = stage.again()
    stage.days(1)
    if share == 30:
        stage.answer("approved")
        stage.settle()
        assert stage.weights() == {"1": 70, "2": 30}
        stage.days(1)
    stage.answer("rejected")
    stage.settle()

    assert stage.weights()["1"] == 100
    assert stage.kinds("promote") == ["promote"]
    assert [i.status for i in stage.incidents()] == ["open"]
    stage.crew.db.close()


def test_labels_of_weekly_rows_are_not_stale_between_two_weeks(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.clock.advance_to(stage.clock.now() + timedelta(days=12))
        weekly = stage.spec.monitoring.model_copy(update={"block": timedelta(days=7)})
        ages = []
        for spec in (stage.spec, stage.spec.model_copy(update={"monitoring": weekly})):
            with stage.crew.db.transaction() as conn:
                ages.append(_labels(stage.crew, conn, spec)["fresh_label_age_min"])
        assert ages[0] > 7 * 24 * 60 > ages[1]  # type: ignore[operator]
