"""What joins an incident, and what that makes of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from orchestrator.runs import end_run
from orchestrator.signals import Signal
from orchestrator.triage import take_in
from state.rows import ApprovalRow, DetectorRow, DiagnosisRow, IncidentRow, RunRow
from tests.orchestrator.conftest import Quick
from tests.orchestrator.support import Stage

LOSS: dict[str, Any] = {"loss": 0.4, "reference": 0.2, "null": 0.21}
DRIFT = Signal(name="major_drift", text="drift major", size=0.5, details={"features": ["spend"]})
ALARM = Signal(name="loss_alarm", text="worse", size=0.2, details=LOSS)
MISSED = Signal(name="goal_missed", text="misses the goal", size=0.1, details={"goal_id": "g", **LOSS})
OUT_OF_REACH = MISSED.model_copy(update={"details": {"goal_id": "g", **LOSS, "loss": 0.2}})
OFF = Signal(name="calibration_lost", text="probabilities are off", size=2.0)
WON = Signal(
    name="challenger_better", text="a newer fit wins", size=4.0,
    details={"z": 4.0, "paired_z": 4.0, "paired_evidence": "e"},
)  # fmt: skip
SKEW = Signal(
    name="skew", text="spend: 9 % of keys differ", size=0.1, block="2026-03-02", details={"skewed": ["spend"]}
)


@pytest.mark.parametrize(
    ("first", "second", "causes", "because"),
    [
        pytest.param(DRIFT, ALARM, ["covariate_shift_harmless", "covariate_shift_harmful"], "0.4000", id="harm-shows"),
        pytest.param(DRIFT, MISSED, ["covariate_shift_harmless", "covariate_shift_harmful"], "goal", id="a-goal-does"),
        pytest.param(OUT_OF_REACH, ALARM, ["insufficient_evidence", "concept_drift"], "goal", id="a-cause-is-known"),
        pytest.param(OFF, ALARM, ["prior_shift", "concept_drift"], "are off", id="the-ranking-is-worse-too"),
        pytest.param(WON, DRIFT, ["stale_model", "stale_model"], "beats the champion", id="a-win-is-not-forgotten"),
        pytest.param(ALARM, MISSED, ["concept_drift", "concept_drift"], "0.4000", id="an-alarm-is-not-forgotten"),
        pytest.param(SKEW, ALARM, ["skew", "skew"], "9 % of keys", id="skew-explains-a-loss"),
    ],
)
def test_a_signal_that_joins_is_judged_with_what_its_incident_knows(
    quick: Quick, first: Signal, second: Signal, causes: list[str], because: str
) -> None:
    with quick() as stage:
        stage.start()
        stage.days(1)
        seen = []
        for signal in (first, second):
            if signal is DRIFT:
                level: dict[str, Any] = {"level": "major", "features": ["spend"], "until": "2026-03-02"}
                stage.put(DetectorRow(id="churn/drift", model="churn", state=level))
            with stage.crew.db.transaction() as conn:
                take_in(stage.crew, conn, stage.spec, signal, None)  # type: ignore[arg-type]
            (incident,) = stage.incidents()
            seen.append(incident.cause)

        assert seen == causes
        newest: DiagnosisRow = stage.rows(DiagnosisRow)[-1]
        assert any(because in reason for reason in newest.evidence_for), newest
        changed = [d.change for d in stage.log() if d.kind == "incident_changed"]
        assert changed == (["opened", "joined"] if causes[0] == causes[1] else ["opened", "rediagnosed", "joined"])


def test_everything_that_was_said_of_the_champion_stays_quiet_once_it_is_answered_and_nothing_about_the_one_before(
    quick: Quick,
) -> None:
    with quick() as stage:
        stage.start()
        stage.days(1)

        def hear(signal: Signal) -> list[str]:
            with stage.crew.db.transaction() as conn:
                take_in(stage.crew, conn, stage.spec, signal, None)  # type: ignore[arg-type]
            return [incident.signal for incident in stage.rows(IncidentRow, status="open")]

        assert hear(WON) == hear(DRIFT) == ["challenger_better"]
        champion: DetectorRow
        (champion,) = stage.rows(DetectorRow, id="churn/champion")
        stage.put(champion.model_copy(update={"state": {**champion.state, "version": "2"}}))
        for signal in (DRIFT, ALARM):
            hear(signal)
        (incident,) = stage.incidents()
        (run,) = [run for run in stage.rows(RunRow) if run.subject_id == incident.id]
        with stage.crew.db.transaction() as conn:
            end_run(stage.crew, conn, run, "escalated", fence=None)  # type: ignore[arg-type]

        assert hear(DRIFT) == hear(ALARM) == [], "answered, and no larger"
        assert hear(WON) == ["challenger_better"], "it had beaten another champion"


def doubted(stage: Stage) -> RunRow | None:
    """The run of the incident of labels in doubt, if there is one."""
    doubts = [incident.id for incident in stage.rows(IncidentRow, status="open") if incident.body.get("in_doubt")]
    return next((run for run in stage.rows(RunRow) if run.subject_id in doubts), None)


def question_of(run: RunRow, now: datetime) -> ApprovalRow:
    return ApprovalRow(
        id="q", model=run.model, status="pending", action_key="k", action="quarantine_data", args={}, binding_sha256="b",
        roles=["approver"], reason="labels in doubt", asked_at=now, expires_at=now + timedelta(days=7), run_id=run.id,
    )  # fmt: skip


def test_labels_that_were_in_doubt_beside_an_incident_of_the_same_change_become_part_of_it(quick: Quick) -> None:
    doubt = Signal(
        name="label_fault", text="in doubt", size=3.0, onset="2026-03-02", blocks=["2026-03-02"],
        details={"in_doubt": True, "asking": False, "for": ["a step"], "against": [], "symptom": ALARM.model_dump()},
    )  # fmt: skip
    with quick() as stage:
        stage.start()
        stage.days(1)
        for signal in (ALARM, doubt, ALARM):
            if signal is not doubt and (asking := doubted(stage)) is not None:
                stage.put(question_of(asking, stage.clock.now()))
            for run in stage.rows(RunRow, status=["ready", "waiting"]):
                # A version is on its way: the incident of the loss goes on with that.
                stage.put(run.model_copy(update={"body": {**run.body, "rollout_id": "r"}}))
            with stage.crew.db.transaction() as conn:
                take_in(stage.crew, conn, stage.spec, signal, None)  # type: ignore[arg-type]

        first, cleared = stage.rows(IncidentRow)
        assert (first.status, first.cause) == ("open", "concept_drift")
        assert (cleared.status, cleared.cause, cleared.resolution) == ("closed", "concept_drift", "joined")
        assert cleared.body["part_of"] == first.id
        assert [row.status for row in stage.rows(ApprovalRow)] == ["void"], "nobody need answer it any more"


def test_a_faulty_block_whose_rows_came_late_does_not_bring_a_refused_question_back(quick: Quick) -> None:
    fault = Signal(
        name="data_fault", text="spend is off",
        details={"findings": [{"kind": "unit", "feature": "spend", "detail": "1000 times as large"}]},
    )  # fmt: skip
    with quick() as stage:
        stage.start()
        for day in (10, 11, 5, 12):
            with stage.crew.db.transaction() as conn:
                signal = fault.model_copy(update={"block": f"2026-03-{day:02}"})
                take_in(stage.crew, conn, stage.spec, signal, None)  # type: ignore[arg-type]
            for run in stage.rows(RunRow, status=["ready", "waiting"]):
                with stage.crew.db.transaction() as conn:
                    end_run(stage.crew, conn, run, "rejected", fence=None)  # type: ignore[arg-type]

        assert [incident.body["days"] for incident in stage.rows(IncidentRow)] == [["2026-03-10"]]
