"""A change of the data that stays becomes the new normal; one that contradicts the contract never does."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from evals.world.platform import build
from orchestrator.faulty_days import unjudged_days
from state import store
from state.rows import ApprovalRow, DetectorRow, RunRow, SignalRow
from tests.orchestrator.conftest import Quick
from tests.orchestrator.support import MODEL, QUICK, Stage, Truth, days

LONG = Truth(rows_per_day=200, history_days=40)
"""A history of which a few days out of training are a small part."""
LASTING: dict[str, Any] = {**QUICK["monitoring"], "cadence": days(60), "lasting_blocks": 3}


def told(stage: Stage) -> list[str]:
    return [m.text for m in stage.world.state.messages if "new normal, no" in m.text]


@pytest.mark.parametrize(
    ("kind", "magnitude", "more", "words"),
    [
        pytest.param("new_level", 0.4, {"features": ("plan",)}, "plan: ", id="a-new-level"),
        pytest.param("missing", 0.35, {"features": ("spend",)}, "spend: 3", id="values-missing"),
        pytest.param("skew", 0.4, {"features": ("spend",)}, "spend: ", id="a-default"),
    ],
)
def test_a_change_that_stays_is_quarantined_for_a_while_and_then_normal(
    quick: Quick, kind: str, magnitude: float, more: dict[str, Any], words: str
) -> None:
    with quick(truth=LONG, monitoring=LASTING) as stage:
        stage.start()
        stage.days(6)
        start = stage.clock.now().date()
        stage.drift(kind, magnitude, **more)
        if kind == "skew":
            stage.crew = without_offline_values(stage)
        stage.days(8)

        (incident,) = stage.incidents()
        assert (incident.cause, incident.status, incident.resolution) == ("data_fault", "closed", "new_normal")
        assert stage.world.model(MODEL).quarantined == [(start + days(n)).isoformat() for n in range(3)]
        (text,) = told(stage)
        assert words in text and f"since {start}" in text
        assert [d.verdict for d in stage.log() if d.kind == "observed" and d.verdict == "lasting"] == ["lasting"]
        stage.check_books()


def test_a_fault_in_every_block_is_one_incident_where_blocks_are_longer_than_the_recovery(quick: Quick) -> None:
    long_blocks = {**LASTING, "block": days(2), "recovery": timedelta(hours=12), "backtest": days(8)}
    with quick(truth=replace(LONG, history_days=60), monitoring=long_blocks) as stage:
        stage.start()
        stage.days(12)
        stage.drift("new_level", 0.4, features=("plan",))
        stage.days(10)

        faults = [row.resolution for row in stage.incidents() if row.cause == "data_fault"]
        assert faults == ["new_normal"]


def without_offline_values(stage: Stage) -> Any:
    """The crew of a model whose served values nobody can compare."""
    return replace(stage.crew, platform=replace(stage.crew.platform, features=None))


def test_row_counts_need_no_such_rule(quick: Quick) -> None:
    """Every block counts in the calendar, whatever was found in it: a lasting count explains itself within days."""
    with quick(truth=LONG, monitoring=LASTING) as stage:
        stage.start()
        stage.days(14)
        stage.drift("volume", 0.1)
        stage.days(5)

        assert 1 <= len(stage.world.model(MODEL).quarantined) <= 2
        assert told(stage) == []


def test_what_contradicts_the_contract_never_becomes_normal(quick: Quick) -> None:
    with quick(truth=LONG, monitoring=LASTING) as stage:
        stage.start()
        stage.days(6)
        stage.drift("unit", 1000.0, features=("spend",))
        stage.days(6)

        assert len(stage.world.model(MODEL).quarantined) == 6
        assert told(stage) == []


def test_a_healthy_block_begins_the_count_anew(quick: Quick) -> None:
    with quick(truth=LONG, monitoring=LASTING) as stage:
        stage.start()
        stage.days(6)
        for _ in range(2):
            until = (stage.clock.now().date() + days(2)).isoformat()
            stage.drift("missing", 0.35, features=("spend",), until=until)
            stage.days(3)

        assert len(stage.world.model(MODEL).quarantined) == 4
        assert told(stage) == []


def test_a_person_is_asked_no_more_once_the_change_has_lasted(quick: Quick) -> None:
    with quick(truth=LONG, monitoring=LASTING, autonomy={"quarantine_data": "approve"}) as stage:
        stage.start()
        stage.days(6)
        stage.drift("new_level", 0.4, features=("plan",))
        stage.days(8)

        questions = stage.rows(ApprovalRow)
        assert [q.status for q in questions] == ["void"]
        assert stage.world.model(MODEL).quarantined == []
        assert [i.resolution for i in stage.incidents()] == ["new_normal"]
        stage.check_books()


def test_another_fault_before_the_incident_closes_is_a_fault(quick: Quick) -> None:
    with quick(truth=LONG, monitoring={**LASTING, "recovery": days(2)}) as stage:
        stage.start()
        stage.days(6)
        stage.drift("missing", 0.35, features=("spend",))
        stage.days(4)
        stage.drift("unit", 1000.0, features=("visits",), until=(stage.clock.now().date() + days(1)).isoformat())
        stage.days(4)

        (incident,) = stage.incidents()
        assert (incident.status, incident.resolution) == ("closed", "quarantined")
        assert len(stage.world.model(MODEL).quarantined) == 4


def test_a_question_about_faulty_days_stays_the_same_while_more_days_join(quick: Quick) -> None:
    with quick(truth=LONG, monitoring=LASTING, autonomy={"quarantine_data": "approve"}) as stage:
        stage.start()
        stage.days(6)
        first = stage.clock.now().date()
        stage.drift("unit", 1000.0, features=("spend",), until=(first + days(5)).isoformat())
        stage.days(4)
        (question,) = stage.rows(ApprovalRow)
        assert (question.status, question.args["days"]) == ("pending", [first.isoformat()])
        assert len([m for m in stage.messages() if "quarantine" in m.title + m.text]) == 1

        stage.answer("approved")
        stage.settle()
        assert stage.world.model(MODEL).quarantined == [first.isoformat()]
        rest = [(first + days(n)).isoformat() for n in (1, 2, 3)]
        (second,) = stage.rows(ApprovalRow, status="pending")
        assert second.args["days"] == [*rest], "what came in the meantime is asked about in one go"
        (run,) = [run for run in stage.rows(RunRow, status="waiting") if run.id == second.run_id]
        cited = set(run.body["evidence"])
        signals = [row for row in stage.rows(SignalRow) if row.incident_id == run.subject_id]
        assert all(cited & set(row.evidence_ids) for row in signals), "every day that is named is cited"
        stage.answer("approved")
        stage.days(1)
        stage.check_books()


def test_days_that_wait_for_a_yes_to_their_quarantine_raise_nothing_else(quick: Quick) -> None:
    """The incident of the fault is their cause, whoever has not answered yet."""
    with quick(truth=LONG, monitoring=LASTING, autonomy={"quarantine_data": "approve"}) as stage:
        stage.start()
        stage.days(6)
        stage.drift("unit", 1000.0, features=("spend",))
        first = stage.clock.now().date()
        stage.days(14)

        with stage.crew.db.snapshot() as conn:
            assert unjudged_days(stage.crew, conn, stage.spec) == {(first + days(n)).isoformat() for n in range(14)}
            losses = store.get(conn, DetectorRow, f"{MODEL}/loss/1")
        assert losses is not None
        assert str(losses.state["last_block"]) < first.isoformat()
        assert stage.world.model(MODEL).quarantined == []
        assert [i.cause for i in stage.incidents()] == ["data_fault"]
        assert [row.name for row in stage.rows(SignalRow)] != []
        assert {row.name for row in stage.rows(SignalRow)} <= {"data_fault"}


def test_days_that_were_served_are_training_days_that_a_quarantine_leaves(quick: Quick) -> None:
    with quick(truth=LONG, monitoring=LASTING) as stage:
        stage.start()
        n_history = len(build(stage.world).data.days(MODEL))
        stage.days(10)
        stage.drift("unit", 1000.0, features=("spend",))
        n_faulty = n_history // 4 + 1  # more than a fifth of the history with them, and less of all days
        stage.days(n_faulty)

        assert 100 * n_faulty / (n_history + n_faulty) > 20
        assert 100 * n_faulty / (n_history + 10 + n_faulty) < 20
        assert len(stage.world.model(MODEL).quarantined) == n_faulty
        assert stage.rows(ApprovalRow) == []
