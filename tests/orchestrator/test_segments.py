"""The relation turns within one segment: found, named, not taken for wrong labels, and remedied or handed to a person."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from orchestrator.segment_book import SegmentBook, segments_row
from orchestrator.segment_watch import watch_segments
from orchestrator.signals import Signal
from orchestrator.triage import take_in
from state.rows import DetectorRow, DiagnosisRow, IncidentRow, SignalRow
from tests.orchestrator.conftest import At, Quick
from tests.orchestrator.support import QUICK, Stage, Truth, days
from tools.drift.segments import Losses, SegmentLoss, references

MOVES_TRAFFIC = ("shift_traffic", "run_ab_test", "promote", "rollback", "stage_version", "retire_version")
WATCHED: dict[str, Any] = {
    "monitoring": {
        **QUICK["monitoring"], "cadence": days(10), "backtest": days(14), "min_blocks": 7, "recovery": days(2),
        "false_alarm_blocks": 8_000,
    },
    "training": {**QUICK["training"], "window": None, "holdout": days(14), "folds": 4},
    "truth": Truth(rows_per_day=300, history_days=60),
}  # fmt: skip
"""Enough history for a reference of the segments, and detectors as they are shipped."""
NUMBERS: dict[str, Any] = {
    "task": "regression",
    "objective": {"metric": "rmse", "op": "<=", "value": 3.0},
    "gates": [{"metric": "rmse", "op": "<=", "value": 3.0}],
    "training": {**WATCHED["training"], "candidates": [{"name": "ridge", "estimator": "ridge"}]},
}


def until_incident(stage: Stage, n_days: int) -> IncidentRow:
    for _ in range(n_days):
        stage.days(1)
        if stage.incidents():
            return stage.incidents()[0]
    raise AssertionError(f"no incident within {n_days} days")


def book(stage: Stage) -> SegmentBook:
    (row,) = stage.rows(DetectorRow, id=f"churn/segments/{stage.champion()}")
    return SegmentBook.from_state(dict(row.state))


def test_a_turn_within_one_plan_is_one_incident_that_names_it_and_ends_with_a_person(quick: Quick) -> None:
    with quick(seed=1, **WATCHED) as stage:
        stage.start()
        stage.days(4)
        stage.drift("segment", features=("plan",), level="a")
        incident = until_incident(stage, 6)
        assert (incident.cause, incident.body["segment"]) == ("segment_regression", "plan=a")
        assert incident.title == "churn: predictions have become worse in plan=a"

        stage.days(32)
        (incident,) = stage.incidents()
        assert (incident.status, incident.resolution) == ("closed", "escalated")
        assert [k for k in stage.kinds() if k in MOVES_TRAFFIC] == ["stage_version", "promote"]
        (told,) = [m for m in stage.world.state.messages if "degraded in plan=a" in m.text]
        assert "retraining does not help" in told.text
        backtests = [a for a in stage.verified() if a.kind == "backtest_recipe" and a.subject_id == incident.id]
        assert [a.args["segment"] for a in backtests] == ["plan=a"] * len(backtests)
        assert stage.world.model("churn").quarantined == []
        stage.check_books()


def test_the_diagnosis_says_that_the_loss_holds_outside(quick: Quick) -> None:
    with quick(seed=1, **WATCHED) as stage:
        stage.start()
        stage.days(4)
        stage.drift("segment", features=("plan",), level="a")
        until_incident(stage, 6)

        diagnosis: DiagnosisRow
        (diagnosis,) = stage.rows(DiagnosisRow)
        assert diagnosis.evidence_for[0].startswith("only in plan=a: roc_auc loss")
        assert "outside it" in diagnosis.evidence_for[0]
        assert diagnosis.alternatives["concept_drift"] == "the loss holds outside the segment"
        assert "only in plan=a" in diagnosis.alternatives["label_fault"]


def test_a_small_segment_is_found_that_the_whole_does_not_show(quick: Quick) -> None:
    """A quarter of the rows has lost its relation, which moves the whole by less than its own days do."""
    with quick(seed=3, **WATCHED) as stage:
        stage.start()
        stage.days(4)
        stage.drift("segment", 0.5, features=("plan",), level="c")
        for _ in range(30):
            stage.days(1)
            if stage.incidents():
                break

        signals: list[SignalRow] = stage.rows(SignalRow)
        assert [(signal.name, signal.body["segment"]) for signal in signals] == [("segment_alarm", "plan=c")]
        (incident,) = stage.incidents()
        assert (incident.cause, incident.body["segment"]) == ("segment_regression", "plan=c")


def test_a_segment_of_a_model_of_numbers_is_watched_as_well(quick: Quick) -> None:
    with quick(seed=2, **{**WATCHED, **NUMBERS}) as stage:
        stage.start()
        stage.days(4)
        stage.drift("segment", features=("plan",), level="b")

        incident = until_incident(stage, 6)

        assert (incident.cause, incident.body["segment"]) == ("segment_regression", "plan=b")


def test_a_challenger_that_wins_inside_the_segment_and_holds_on_the_whole_is_rolled_out(quick: Quick) -> None:
    """A number can be forecast better inside without being forecast worse outside: the levels have terms of their own."""
    with quick(seed=2, **{**WATCHED, **NUMBERS}) as stage:
        stage.start()
        stage.days(4)
        stage.drift("segment", 0.3, features=("plan",), level="b")
        stage.days(45)

        incident = stage.incidents()[0]
        assert incident.cause == "segment_regression"
        won = [d for d in stage.log() if d.kind == "observed" and d.topic == "backtest" and d.verdict == "win"]
        assert won[0].details["segment"] == "plan=b"
        assert won[0].details["whole_holds"]
        assert stage.champion() != "1"
        stage.check_books()


def test_flipped_labels_are_no_segment(quick: Quick) -> None:
    with quick(seed=1, **WATCHED) as stage:
        stage.start()
        stage.days(4)
        stage.drift("label_flip", 0.4)
        incident = until_incident(stage, 6)
        stage.days(4)

        assert incident.cause == "label_fault"
        assert {i.cause for i in stage.incidents()} == {"label_fault"}


def test_a_turn_of_all_rows_is_no_segment(quick: Quick) -> None:
    with quick(seed=1, **WATCHED) as stage:
        stage.start()
        stage.days(4)
        stage.drift("concept", 0.5)
        stage.days(12)

        assert stage.incidents()
        assert "segment_regression" not in {i.cause for i in stage.incidents()}


def test_a_segment_that_is_right_again_closes_as_recovered_and_a_relapse_is_news(quick: Quick) -> None:
    with quick(seed=1, **WATCHED) as stage:
        stage.start()
        stage.days(4)
        until = (stage.clock.now().date() + timedelta(days=5)).isoformat()
        stage.drift("segment", features=("plan",), level="a", until=until)
        incident = until_incident(stage, 6)
        assert incident.cause == "segment_regression"

        stage.days(18)
        (incident,) = stage.incidents()
        assert (incident.status, incident.resolution) == ("closed", "recovered")
        assert book(stage).raised["plan=a"]["over"]

        stage.drift("segment", features=("plan",), level="a")
        stage.days(6)
        assert [i.body.get("segment") for i in stage.incidents()] == ["plan=a", "plan=a"]


def test_no_segment_is_watched_where_the_spec_names_none(quick: Quick) -> None:
    watched = {**WATCHED, "monitoring": {**WATCHED["monitoring"], "segments": []}}
    with quick(seed=1, **watched) as stage:
        stage.start()
        stage.days(4)
        stage.drift("segment", features=("plan",), level="a")
        stage.days(8)

        assert stage.rows(DetectorRow, id="churn/segments/1") == []
        assert "segment_regression" not in {i.cause for i in stage.incidents()}


def test_the_first_live_blocks_stand_for_a_version_whose_training_left_none(quick: Quick) -> None:
    with quick(seed=1, **WATCHED) as stage:
        stage.start()
        (row,) = stage.rows(DetectorRow, id="churn/reference/1")
        stage.put(row.model_copy(update={"state": {**row.state, "segments": {}}}))
        stage.days(19)
        assert book(stage).references is None
        stage.days(3)
        known = book(stage).references
        assert known is not None
        assert known["plan=a"].inside.n == 20

        stage.drift("segment", features=("plan",), level="a")
        incident = until_incident(stage, 8)
        assert (incident.cause, incident.body["segment"]) == ("segment_regression", "plan=a")


def test_quarantined_days_are_left_out(quick: Quick) -> None:
    with quick(seed=1, **WATCHED) as stage:
        stage.start()
        stage.days(2)
        first = stage.clock.now().date()
        bad = [(first + timedelta(days=n)).isoformat() for n in range(4)]
        stage.crew.platform.outcomes.quarantine("churn", bad, reason="a test", key="setup-days")
        stage.drift("segment", features=("plan",), level="a", until=(first + timedelta(days=4)).isoformat())
        stage.days(8)

        assert stage.incidents() == []
        assert book(stage).raised == {}


@pytest.mark.parametrize("seed", [11, 12])
def test_healthy_weeks_raise_nothing_and_one_row_holds_all_segments(quick: Quick, seed: int) -> None:
    with quick(seed=seed, **WATCHED) as stage:
        stage.start()
        stage.days(40)

        assert [i for i in stage.incidents() if i.signal == "segment_alarm" or "segment" in i.body] == []
        rows = [row.id for row in stage.rows(DetectorRow) if "/segments/" in row.id]
        assert rows == ["churn/segments/1"]
        assert set(book(stage).detectors) == {"plan=a", "plan=b", "plan=c", "plan=d", "mobile=true", "mobile=false"}
        assert len(book(stage).recent) == 28
        stored = json.loads(json.dumps(book(stage).state()))
        assert SegmentBook.from_state(stored) == book(stage)


def watched(stage: Stage, z: float, *, outside: float = 0.2) -> tuple[SegmentBook, Losses]:
    """The book of a healthy segment, and three later blocks in which its loss is so much higher than that of the rest."""
    rng = np.random.default_rng(0)
    usual = {
        f"2026-01-{1 + day:02d}": {
            "plan=a": SegmentLoss(loss=0.2 + inside, n=50, outside=0.2 + rng.normal(0.0, 0.01))
        }
        for day in range(25) for inside in [rng.normal(0.0, 0.01)]
    }  # fmt: skip
    book = SegmentBook()
    book.watch(stage.spec, references(usual, tolerance=0.02))
    known = (book.references or {})["plan=a"]
    risen = outside + known.contrast + z * known.contrast_sd * (1 / 3 + 1 / known.inside.n) ** 0.5
    return book, {
        f"2026-02-0{day}": {"plan=a": SegmentLoss(loss=risen, n=50, outside=outside)} for day in (1, 2, 3)
    }  # fmt: skip


def test_an_alarm_inside_a_segment_is_no_evidence_about_a_rise_of_the_whole(quick: Quick) -> None:
    """Over few blocks chance raises a segment by a little more than the rest: that counts only where nothing else rose."""
    with quick() as stage:
        book, recent = watched(stage, 3.4)
        book.recent = dict(recent)
        assert book.confined_since(stage.spec, "2026-02-01", set()) is None, "no detector has alarmed"
        book.detectors["plan=a"].false_alarm_blocks = 1.0
        book.take(stage.spec, recent, set())
        assert book.detectors["plan=a"].alarm

        one = book.confined_since(stage.spec, "2026-02-01", set())
        assert one is not None
        assert (one.segment, one.n_blocks) == ("plan=a", 3)
        assert 2.8 < one.z < 4.0
        assert book.confined_since(stage.spec, "2026-02-01", set(), whole=True) is None


@pytest.mark.parametrize(
    ("z", "outside", "told"),
    [
        pytest.param(9.0, 0.2, {"segment", "confined"}, id="proved"),
        pytest.param(3.4, 0.2, {"perhaps"}, id="not-proved"),
        pytest.param(3.4, 0.22, set(), id="the-other-rows-are-worse-too"),
    ],
)
def test_a_missed_goal_says_which_segment_carries_or_may_carry_the_rise(
    quick: Quick, z: float, outside: float, told: set[str]
) -> None:
    missed = Signal(name="goal_missed", text="missed", details={"goal_id": "g", "loss": 0.3, "null": 0.25})
    with quick() as stage:
        book, blocks = watched(stage, z, outside=outside)
        stage.put(DetectorRow(id=segments_row("churn", "1"), model="churn", state=book.state()))
        cells = {name: {segment: loss.cells() for segment, loss in cell.items()} for name, cell in blocks.items()}
        with stage.crew.db.transaction() as conn:
            (signal,) = watch_segments(conn, stage.spec, "1", cells, [missed], bad=set(), fence=None)  # type: ignore[arg-type]

        assert {"segment", "confined", "perhaps"} & set(signal.details) == told


def test_a_rise_that_seemed_confined_and_is_everywhere_by_now_is_of_the_whole(quick: Quick) -> None:
    with quick(monitoring={**QUICK["monitoring"], "segments": []}) as stage:
        stage.start()
        stage.days(1)
        onset = stage.clock.now().date().isoformat()
        inside = {"loss": 0.4, "reference": 0.2, "null": 0.21, "confined": "only in plan=a: roc_auc loss 0.4000"}
        alarms = [
            Signal(
                name="segment_alarm", text="worse in plan=a", size=0.2, onset=onset,
                details={**inside, "segment": "plan=a", "segment_floor": 0.01, "segments": {"plan=a": 0.2}},
            ),
            Signal(
                name="loss_alarm", text="worse", size=0.2, onset=onset,
                details={"loss": 0.45, "reference": 0.2, "null": 0.21},
            ),
        ]  # fmt: skip
        seen = []
        for alarm in alarms:
            with stage.crew.db.transaction() as conn:
                take_in(stage.crew, conn, stage.spec, alarm, None)  # type: ignore[arg-type]
            seen += [(i.cause, i.title) for i in stage.incidents()]

        assert seen == [
            ("segment_regression", "churn: predictions have become worse in plan=a"),
            ("concept_drift", "churn: predictions have become worse"),
        ]
        changed = [d.change for d in stage.log() if d.kind == "incident_changed"]
        assert changed == ["opened", "rediagnosed", "joined"]


def test_a_segment_alarm_in_the_bake_window_rolls_back_to_the_previous_version(at: At) -> None:
    stage = at("bake")
    rng = np.random.default_rng(0)
    blocks: Losses = {
        f"2026-01-{1 + day:02d}": {
            "plan=a": SegmentLoss(loss=0.01 * rng.random(), n=50, outside=0.4 + 0.1 * rng.random())
        }
        for day in range(25)
    }  # fmt: skip
    watched = SegmentBook()
    watched.watch(stage.spec, references(blocks, tolerance=0.02))
    # A champion that was far better inside the segment in training than it can be.
    watched.detectors["plan=a"].false_alarm_blocks = 10.0
    stage.put(DetectorRow(id=segments_row("churn", "2"), model="churn", state=watched.state()))
    rollout = stage.rollout()
    rollout.body["since"] = (stage.clock.now() + timedelta(days=5)).isoformat()
    stage.put(rollout)
    stage.days(4)

    assert stage.kinds("rollback") == ["rollback"]
    assert (stage.champion(), stage.alias()) == ("1", "1")
    stage.check_books()
