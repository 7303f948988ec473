"""Rows that do not come, come twice, come late or come with a column of their own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from orchestrator.traffic_book import read_book
from state.rows import ApprovalRow, DetectorRow
from tests.orchestrator.conftest import Quick
from tests.orchestrator.support import QUICK, Stage, Truth, days

LEARNS = ("train_candidates", "backtest_recipe", "recalibrate")
PATIENT: dict[str, Any] = {**QUICK["monitoring"], "recovery": days(3)}


def day_before(stage: Stage, n_days: int = 1) -> str:
    return (stage.clock.now() - timedelta(days=n_days)).date().isoformat()


def lose_a_day(stage: Stage) -> str:
    """Live through a day whose rows do not come."""
    until = (stage.clock.now() + timedelta(days=1)).date().isoformat()
    stage.drift("no_rows", until=until)
    stage.days(1)
    return day_before(stage)


def test_a_missing_day_is_told_and_waited_for_and_nothing_learns_meanwhile(quick: Quick) -> None:
    with quick(monitoring=PATIENT) as stage:
        stage.start()
        stage.days(7)
        hole = lose_a_day(stage)

        (incident,) = stage.incidents()
        assert (incident.cause, incident.status) == ("data_fault", "open")
        assert f"no rows in the block of {hole}" in stage.world.state.messages[-1].text

        learned = [kind for kind in stage.kinds() if kind in LEARNS]
        stage.days(2)
        # The cadence's backtest is due, and denied while the day may still come.
        assert [kind for kind in stage.kinds() if kind in LEARNS] == learned
        assert any("training-on-bad-data" in d.rules for d in stage.log() if d.kind == "action_decided")
        assert stage.world.model("churn").quarantined == []

        stage.days(4)
        (incident,) = stage.incidents()
        assert (incident.status, incident.resolution) == ("closed", "quarantined")
        assert stage.world.model("churn").quarantined == [hole]
        assert len([m for m in stage.world.state.messages if "data_fault" in m.title]) == 1
        backtests = [a for a in stage.verified() if a.kind == "backtest_recipe"]
        assert backtests and all(a.args["excluded_days"] == [hole] for a in backtests)
        stage.check_books()


def test_a_missing_day_that_comes_in_time_is_looked_at_and_used(quick: Quick) -> None:
    with quick(monitoring=PATIENT) as stage:
        stage.start()
        stage.days(5)
        hole = lose_a_day(stage)
        stage.days(1)
        stage.world.backfill("churn", hole)
        stage.settle()

        with stage.crew.db.transaction() as conn:
            book = read_book(conn, stage.spec)
        assert book.holes == []
        assert book.served[hole] > 100
        stage.days(4)
        (incident,) = stage.incidents()
        assert (incident.status, incident.resolution) == ("closed", "arrived")
        assert stage.world.model("churn").quarantined == []
        stage.check_books()


def test_a_missing_day_that_comes_spoilt_is_quarantined(quick: Quick) -> None:
    with quick(monitoring=PATIENT) as stage:
        stage.start()
        stage.days(5)
        stage.drift("unit", 1_000.0, features=("spend",), until=(stage.clock.now() + days(1)).date().isoformat())
        hole = lose_a_day(stage)
        stage.world.backfill("churn", hole)
        stage.days(1)

        (incident,) = stage.incidents()
        assert (incident.cause, incident.body["days"]) == ("data_fault", [hole])
        assert stage.world.model("churn").quarantined == [hole]
        stage.check_books()


def test_a_hole_is_waited_for_while_another_fault_is_contained(quick: Quick) -> None:
    with quick(monitoring=PATIENT) as stage:
        stage.start()
        stage.days(5)
        stage.drift("unit", 1_000.0, features=("spend",), until=(stage.clock.now() + days(1)).date().isoformat())
        stage.days(1)
        first = day_before(stage)
        hole = lose_a_day(stage)

        (incident,) = stage.incidents()
        assert (incident.body["days"], incident.body["quarantined"]) == ([first, hole], [first])
        stage.days(3)
        (incident,) = stage.incidents()
        assert incident.body["days"] == incident.body["quarantined"] == [first, hole]


def test_a_dead_server_explains_its_missing_rows(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(5)
        stage.world.model("churn").servers["1"].alive = False
        stage.days(1)

        assert [incident.cause for incident in stage.incidents()] == ["serving_fault"]


def test_rows_that_are_sent_twice_spoil_their_day(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(6)
        stage.drift("repeated", 0.5, until=(stage.clock.now() + days(1)).date().isoformat())
        stage.days(1)

        (incident,) = stage.incidents()
        assert incident.cause == "data_fault"
        assert "repeat another row" in str(incident.body["text"])
        assert stage.world.model("churn").quarantined == [day_before(stage)]
        stage.days(3)
        assert [incident.resolution for incident in stage.incidents()] == ["quarantined"]
        stage.check_books()


def test_late_rows_spoil_the_days_that_they_were_added_to(quick: Quick) -> None:
    with quick(monitoring={**QUICK["monitoring"], "cadence": days(200)}) as stage:
        stage.start()
        stage.days(24)
        stage.drift("late_rows", 0.4, until=(stage.clock.now() + days(1)).date().isoformat())
        stage.days(1)

        (incident,) = stage.incidents()
        assert "event time far behind" in str(incident.body["text"])
        assert stage.world.model("churn").quarantined == [day_before(stage, 22)]
        stage.days(3)
        # They were counted once: the same rows are no news at the next look.
        assert [incident.resolution for incident in stage.incidents()] == ["quarantined"]
        stage.check_books()


def test_a_new_column_is_told_and_spoils_nothing(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(6)
        stage.drift("extra", 1.0)
        stage.days(3)

        assert stage.incidents() == []
        said = [d.summary for d in stage.log() if d.kind == "observed" and d.topic == "data_quality"]
        assert len([text for text in said if "does not know" in text]) == 1, "from the second day on it is usual"


def test_a_column_that_disappears_is_a_data_fault(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(2)
        stage.drift("missing", 1.0, features=("spend",))
        stage.days(1)

        (incident,) = stage.incidents()
        assert incident.cause == "data_fault"
        assert "spend: no usable value" in str(incident.body["text"])


@pytest.mark.parametrize("rows_per_day", [3, 15, 200])
def test_a_healthy_month_of_any_size_opens_no_incident(quick: Quick, rows_per_day: int) -> None:
    calm = {**QUICK["monitoring"], "cadence": days(200)}
    with quick(monitoring=calm, truth=Truth(rows_per_day=rows_per_day, history_days=90), gates=[]) as stage:
        stage.start()
        stage.days(35)

        assert [incident.title for incident in stage.incidents()] == []


def test_the_book_of_traffic_survives_a_new_champion(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(3)
        rows = stage.rows(DetectorRow, id="churn/traffic")[0].state["rows"]
        assert isinstance(rows, dict)
        assert len(rows) == 3


def test_a_yes_to_a_quarantine_covers_every_faulty_day_that_the_question_names(quick: Quick) -> None:
    with quick(monitoring=PATIENT) as stage:
        stage.start()
        stage.days(2)
        stage.drift("missing", 1.0, features=("spend",))
        stage.days(6)
        (question,) = stage.rows(ApprovalRow, status="pending")
        assert question.action == "quarantine_data"

        stage.answer("approved", action="quarantine_data")
        stage.settle()

        (incident,) = stage.incidents()
        faulty = incident.body["days"]
        assert isinstance(faulty, list)
        out = stage.world.model("churn").quarantined
        assert set(map(str, question.args["days"])) <= set(out)
        # What came after it was asked is asked about now, in one go.
        (rest,) = stage.rows(ApprovalRow, status="pending")
        assert rest.args["days"] == [day for day in faulty if day not in out] != []
        stage.answer("approved", action="quarantine_data")
        stage.settle()
        assert stage.world.model("churn").quarantined == faulty
        stage.check_books()
