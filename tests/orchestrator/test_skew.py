"""What is served differs from what training reads: the release of the feature view is taken back, nothing is retrained."""

from __future__ import annotations

from typing import Any

import pytest

from evals.world.faults import Fault, FaultKind, Killed
from evals.world.truth import Drift, Truth
from state.rows import ApprovalRow
from tests.orchestrator.conftest import Quick
from tests.orchestrator.support import MODEL, Stage

LONG = Truth(rows_per_day=200, history_days=40)
"""A history of which a few days out of training are a small part."""


def release(stage: Stage, share: float = 0.1, *, keep_previous: bool = True, until: str | None = None) -> str:
    """A revision of the feature view that serves the mean of `spend` for some keys; the first day that it serves."""
    start = stage.world.state.next_day
    skew = Drift(kind="skew", start=start, until=until, magnitude=share, features=("spend",))
    stage.world.release_features(MODEL, skew, keep_previous=keep_previous)
    return start


def rollbacks(stage: Stage) -> list[dict[str, Any]]:
    return [dict(e.args) for e in stage.world.effects if e.method == "features.rollback"]


def test_a_skewed_release_is_taken_back_and_its_days_are_left_out(quick: Quick) -> None:
    with quick(truth=LONG) as stage:
        stage.start()
        stage.days(5)
        first = release(stage)
        stage.days(3)

        (incident,) = stage.incidents()
        assert (incident.cause, incident.status, incident.resolution) == ("skew", "closed", "features_rolled_back")
        assert rollbacks(stage) == [{"revision": "1"}]
        assert stage.world.model(MODEL).quarantined == [first]
        assert stage.kinds("train_candidates") == ["train_candidates"], "the first champion's"
        assert any("spend" in m.text and "returned from revision 2 to 1" in m.text for m in stage.world.state.messages)
        stage.check_books()


@pytest.mark.parametrize("kind", ["outage", "timeout", "not_applied", "crash_after"])
def test_a_rollback_is_made_once_whatever_happens_to_it(quick: Quick, kind: FaultKind) -> None:
    with quick(truth=LONG) as stage:
        stage.start()
        stage.days(5)
        release(stage)
        stage.world.faults.add(Fault(method="features.rollback", kind=kind))
        here = stage
        try:
            here.days(1)
        except Killed:
            here = stage.again()
            here.settle()
        here.days(3)

        assert rollbacks(here) == [{"revision": "1"}]
        assert [i.resolution for i in here.incidents()] == ["features_rolled_back"]
        here.check_books()


def test_where_nothing_can_be_rolled_back_a_person_is_told_once(quick: Quick) -> None:
    with quick(truth=LONG) as stage:
        stage.start()
        stage.days(5)
        first = release(stage, keep_previous=False)
        stage.days(4)

        (incident,) = stage.incidents()
        assert (incident.cause, incident.status) == ("skew", "open")
        assert rollbacks(stage) == []
        assert len(stage.world.model(MODEL).quarantined) == 4
        assert stage.world.model(MODEL).quarantined[0] == first
        told = [m for m in stage.world.state.messages if "keeps no earlier revision" in m.text]
        assert len(told) == 1
        stage.check_books()


def test_a_skew_that_goes_on_after_the_rollback_is_not_answered_with_another(quick: Quick) -> None:
    with quick(truth=LONG) as stage:
        stage.start()
        stage.days(5)
        release(stage)
        stage.drift("skew", 0.2, features=("visits",))
        stage.days(4)

        (incident,) = stage.incidents()
        assert (incident.cause, incident.status) == ("skew", "open")
        assert rollbacks(stage) == [{"revision": "1"}]
        assert any("values still differ" in m.text for m in stage.world.state.messages)


def test_a_person_may_keep_the_release_and_its_days_are_still_left_out(quick: Quick) -> None:
    with quick(truth=LONG, autonomy={"rollback_features": "approve"}) as stage:
        stage.start()
        stage.days(5)
        release(stage)
        stage.days(1)
        stage.days(1)
        assert len([q for q in stage.rows(ApprovalRow) if q.action == "rollback_features"]) == 1
        stage.answer("rejected", action="rollback_features")
        stage.settle()
        stage.days(1)

        assert rollbacks(stage) == []
        assert len(stage.world.model(MODEL).quarantined) == 3
        assert [i.cause for i in stage.incidents()] == ["skew"]


def test_a_store_that_does_not_answer_stops_no_other_look(quick: Quick) -> None:
    with quick(truth=LONG) as stage:
        stage.start()
        stage.world.faults.add(Fault(method="features.offline", kind="outage", times=None))
        stage.days(3)

        assert stage.incidents() == []
        noted = [d for d in stage.log() if d.kind == "observed" and d.verdict == "not_compared"]
        assert len(noted) == 3


def test_faulty_values_are_known_as_skew_once_the_store_can_be_asked(quick: Quick) -> None:
    with quick(truth=LONG) as stage:
        stage.start()
        stage.days(5)
        outage = Fault(method="features.*", kind="outage", times=None)
        stage.world.faults.add(outage)
        first = release(stage, 0.3)
        stage.days(2)
        (incident,) = stage.incidents()
        assert (incident.cause, incident.body["quarantined"]) == ("data_fault", incident.body["days"])

        stage.world.faults.clear()
        stage.days(5)
        (incident,) = stage.incidents()
        assert (incident.cause, incident.resolution) == ("skew", "features_rolled_back")
        assert rollbacks(stage) == [{"revision": "1"}]
        assert len(incident.body["days"]) == 3  # type: ignore[arg-type]
        assert stage.world.model(MODEL).quarantined == incident.body["days"]
        assert first == incident.body["days"][0]
        stage.check_books()
