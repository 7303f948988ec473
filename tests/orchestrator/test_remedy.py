"""A concept drift from its first signal to sustained health, and the months in which nothing happens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from state.rows import DiagnosisRow, OutboxRow, RunRow
from tests.orchestrator.conftest import At
from tests.orchestrator.support import staged

FIRST = ["validate_data", "engineer_features", "train_candidates", "register_candidate", "stage_version", "promote"]
REMEDY = [
    "validate_data", "backtest_recipe", "engineer_features", "train_candidates", "register_candidate", "stage_version",
    "shift_traffic", "shift_traffic", "run_ab_test", "promote", "retire_version",
]  # fmt: skip


def test_a_concept_drift_is_remedied_step_by_step_and_its_incident_closes(at: At) -> None:
    stage = at("after")

    (incident,) = stage.incidents()
    assert (incident.signal, incident.cause) == ("loss_alarm", "concept_drift")
    assert (incident.status, incident.resolution) == ("closed", "recovered")
    assert stage.kinds() == [*FIRST, *REMEDY]
    assert stage.traffic_writes() == [
        {"1": 100}, {"1": 90, "2": 10}, {"1": 70, "2": 30}, {"1": 50, "2": 50}, {"1": 0, "2": 100},
    ]  # fmt: skip
    assert (stage.alias(), stage.champion(), stage.weights()) == ("2", "2", {"2": 100})
    assert (stage.rollout().status, stage.rollout().phase) == ("completed", "completed")
    stage.check_books()


def test_the_new_champion_does_less_harm_than_the_old_one_would_have(at: At) -> None:
    stage = at("after")

    harm = list(stage.world.harm("churn").values())

    assert sum(harm[-2:]) < sum(harm[4:6]) / 2


def test_every_message_reaches_people_once_whatever_is_restarted(at: At) -> None:
    stage = at("bake")
    for _ in range(3):
        stage.days(1)
        stage = stage.again()
        stage.settle()

    keys = Counter(message.key for message in stage.world.state.messages)
    assert keys
    assert set(keys.values()) == {1}
    assert {row.status for row in stage.rows(OutboxRow)} == {"sent"}
    assert set(keys) == {row.key for row in stage.rows(OutboxRow)}


def test_a_diagnosis_names_what_speaks_for_it_and_what_else_was_looked_at(at: At) -> None:
    (diagnosis,) = at("after").rows(DiagnosisRow)

    assert diagnosis.cause == "concept_drift"
    assert any("loss" in reason for reason in diagnosis.evidence_for)
    assert set(diagnosis.alternatives) >= {"data_fault", "serving_fault", "bad_release", "covariate_shift_harmful"}


def test_sixty_quiet_days_bring_backtests_on_the_cadence_and_nothing_else(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        stage.start()
        effects = len(stage.world.effects)
        stage.days(60)

        assert stage.incidents() == []
        done = Counter(stage.kinds()) - Counter(FIRST)
        assert set(done) == {"validate_data", "backtest_recipe"}
        assert [e.method for e in stage.world.effects][effects:] == ["pipelines.submit"] * done["backtest_recipe"]
        assert {run.outcome for run in stage.rows(RunRow)} == {"first_champion", "no_verdict", "lose"}
        assert stage.weights() == {"1": 100}
        stage.check_books()
