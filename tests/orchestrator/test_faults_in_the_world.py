"""What is broken or harmless out there: data faults, drift without harm, dead servers, bad bakes, no remedy."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import pytest
from pydantic import JsonValue

from evals.world.faults import Fault
from evals.world.records import Condition
from orchestrator.context import failed_in_a_row
from state import store
from state.rows import ActionRow, ApprovalRow, DetectorRow, RolloutRow, RunRow, SignalRow
from tests.orchestrator.conftest import At, Quick
from tests.orchestrator.support import QUICK, Stage, Truth, days

MOVES_TRAFFIC = ("shift_traffic", "run_ab_test", "promote", "rollback", "stage_version", "retire_version")


def day_before(stage: Stage) -> str:
    return (stage.clock.now() - timedelta(days=1)).date().isoformat()


def test_a_unit_fault_is_quarantined_and_told_and_leaves_traffic_alone(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(3)
        until = (stage.clock.now() + timedelta(days=2)).date().isoformat()
        stage.drift("unit", 1_000.0, features=("spend",), until=until)
        stage.days(1)
        first = day_before(stage)
        (incident,) = stage.incidents()
        assert (incident.cause, incident.status) == ("data_fault", "open")
        assert stage.world.model("churn").quarantined == [first]
        told = [m for m in stage.world.state.messages if "data_fault" in m.title]
        assert len(told) == 1
        assert "spend" in told[0].text

        stage.days(1)
        second = day_before(stage)
        (incident,) = stage.incidents()
        assert incident.body["days"] == incident.body["quarantined"] == [first, second]

        stage.days(2)
        (incident,) = stage.incidents()
        assert (incident.status, incident.resolution) == ("closed", "quarantined")
        assert [k for k in stage.kinds() if k in MOVES_TRAFFIC] == ["stage_version", "promote"]
        assert stage.weights() == {"1": 100}

        stage.days(6)
        trainings = [a for a in stage.verified() if a.kind == "backtest_recipe"]
        assert trainings
        assert all(a.args["excluded_days"] == [first, second] for a in trainings)
        stage.check_books()


def test_no_model_learns_while_a_data_fault_is_open_and_not_contained(at: At) -> None:
    stage = at("before")
    # Taking the day out is not possible for now, and the loss alarm is due on the same day.
    stage.world.faults.add(Fault(method="outcomes.quarantine", kind="outage", times=None))
    stage.drift("unit", 1_000.0, features=("spend",))
    stage.days(1)

    assert "data_fault" in {incident.cause for incident in stage.incidents()}
    assert stage.kinds("backtest_recipe") == []
    assert stage.kinds("train_candidates") == ["train_candidates"]
    assert any("training-on-bad-data" in d.rules for d in stage.log() if d.kind == "action_decided")


def test_a_covariate_shift_without_harm_is_recorded_and_moves_no_traffic(quick: Quick) -> None:
    watched = {**QUICK["monitoring"], "drift_window": days(14), "drift_alpha_per_year": 0.5, "cadence": days(60)}
    recipe = {**QUICK["training"], "window": None}
    with quick(monitoring=watched, truth=Truth(rows_per_day=150, history_days=90), training=recipe) as stage:
        stage.start()
        stage.drift("covariate", 0.6, features=("visits",))
        stage.days(15)

        assert [s.name for s in stage.rows(SignalRow)] == ["major_drift"]
        (incident,) = stage.incidents()
        assert (incident.cause, incident.resolution) == ("covariate_shift_harmless", "not_remediable")
        assert [k for k in stage.kinds() if k in MOVES_TRAFFIC] == ["stage_version", "promote"]
        stage.check_books()


def test_a_dead_champion_is_restarted_and_its_incident_closes_after_sustained_health(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(1)
        stage.world.degrade("churn", Condition(version="1", dead=True))
        stage.world.model("churn").conditions.clear()
        stage.days(1)
        (incident,) = stage.incidents()
        assert (incident.cause, incident.status) == ("serving_fault", "open")
        assert stage.kinds()[-1] == "restart_server"
        assert stage.world.model("churn").servers["1"].alive

        stage.days(1)
        (incident,) = stage.incidents()
        assert (incident.status, incident.resolution) == ("closed", "recovered")
        stage.check_books()


def test_a_server_that_dies_again_is_restarted_again_within_the_same_incident(quick: Quick) -> None:
    with quick(monitoring={**QUICK["monitoring"], "recovery": days(3)}) as stage:
        stage.start()
        for _ in range(2):
            stage.world.model("churn").servers["1"].alive = False
            stage.days(1)

        (incident,) = stage.incidents()
        assert incident.status == "open"
        assert stage.kinds("restart_server") == ["restart_server"] * 2
        assert stage.world.model("churn").servers["1"].alive
        stage.check_books()


def test_a_new_champion_whose_server_fails_in_its_bake_window_gives_way_to_the_warm_one(at: At) -> None:
    stage = at("bake")
    assert (stage.champion(), stage.rollout().phase) == ("2", "bake")
    stage.world.model("churn").servers["2"].alive = False
    stage.days(1)

    assert (stage.champion(), stage.alias(), stage.weights()) == ("1", "1", {"1": 100})
    assert stage.rollout().status == "rolled_back"
    assert "restart_server" not in stage.kinds()
    stage.days(1)
    # The drift is still there: what opens after these two is a new remedy, not a repetition.
    assert [i.resolution for i in stage.incidents()][:2] == ["rolled_back", "rolled_back"]
    assert stage.incidents()[1].cause == "bad_release"
    stage.check_books()


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param(Condition(version="2", error_ratio=0.2), id="errors"),
        pytest.param(Condition(version="2", latency_ratio=20.0), id="latency"),
    ],
)
def test_a_new_champion_that_harms_the_service_in_its_bake_window_is_rolled_back_in_one_write(
    at: At, condition: Condition
) -> None:
    stage = at("bake")
    before = len(stage.traffic_writes())
    stage.world.degrade("churn", condition)
    stage.days(1)

    assert stage.traffic_writes()[before:] == [{"1": 100, "2": 0}]
    assert (stage.champion(), stage.alias()) == ("1", "1")
    assert stage.rollout().status == "rolled_back"
    stage.check_books()


def test_a_loss_alarm_in_the_bake_window_rolls_back_to_the_previous_version(at: At) -> None:
    stage = at("bake")
    with stage.crew.db.transaction() as conn:
        reference = store.get(conn, DetectorRow, "churn/reference/2")
        assert reference is not None
    # A champion that was far better in training than it is now, so that its first labelled days alarm.
    stage.put(reference.model_copy(update={"state": {"losses": [0.01, 0.011, 0.012, 0.01]}}))
    (run,) = [r for r in stage.rows(RunRow) if r.status == "waiting"]
    rollout = stage.rollout()
    rollout.body["since"] = (stage.clock.now() + timedelta(days=5)).isoformat()
    stage.put(rollout)
    stage.days(5)

    assert stage.kinds("rollback") == ["rollback"]
    assert (stage.champion(), stage.alias()) == ("1", "1")
    assert run.id
    assert any(i.cause == "bad_release" or i.resolution == "rolled_back" for i in stage.incidents())
    stage.check_books()


def test_where_neither_version_is_ready_weights_stay_and_a_person_is_called(at: At) -> None:
    stage = at("bake")
    stage.world.model("churn").servers["1"].alive = False
    stage.world.model("churn").servers["2"].alive = False
    stage.days(1)

    assert stage.weights() == {"1": 0, "2": 100}
    assert [m.text for m in stage.messages() if "not ready to take the traffic back" in m.text]


def test_the_block_in_which_training_ended_is_no_part_of_a_drift_window(quick: Quick) -> None:
    """Blocks of several days stand on the calendar, and a replay may begin inside one."""
    coarse = {**QUICK["monitoring"], "block": days(4), "drift_window": days(20), "backtest": days(12), "min_blocks": 2}
    with quick(monitoring=coarse, truth=Truth(rows_per_day=50, history_days=30)) as stage:
        stage.start()
        stage.days(22)
        (drift,) = stage.rows(DetectorRow, id="churn/drift")
        assert drift.state["level"] == "none"


def test_a_loss_that_retraining_does_not_help_closes_as_not_remediable_and_stays_quiet(quick: Quick) -> None:
    calm = {**QUICK["monitoring"], "cadence": days(100)}
    with quick(monitoring=calm) as stage:
        stage.start()
        stage.days(1)
        stage.drift("signal_loss", 0.8)
        stage.days(20)

        incidents = stage.incidents()
        assert [i.resolution for i in incidents] == ["not_remediable"] * len(incidents)
        assert 1 <= len(incidents) <= 2
        assert stage.weights() == {"1": 100}
        assert "train_candidates" not in stage.kinds()[6:]
        known = len(incidents)
        # Once it has settled at its new level, it is no news any more.
        stage.days(10)
        assert len(stage.incidents()) == known
        stage.check_books()


def test_a_win_whose_candidate_misses_a_gate_says_so_and_the_next_win_is_tried_again(quick: Quick) -> None:
    with quick(monitoring={**QUICK["monitoring"], "cadence": days(3)}) as stage:
        stage.start()
        strict = type(stage.spec.gates[0])(metric="roc_auc", op=">=", value=0.99)
        stage.spec = stage.spec.model_copy(update={"gates": [strict]})
        stage.world._specs["churn"] = stage.spec
        stage = stage.again()
        stage.drift("concept", 0.5)
        stage.days(24)

        incidents = [i for i in stage.incidents() if i.signal == "challenger_better"]
        assert len(incidents) >= 2
        assert {i.resolution for i in incidents} == {"gates_failed"}
        assert stage.weights() == {"1": 100}
        # Newer rows make another candidate: only the cadence paces it, not the size of the last win.
        assert stage.kinds().count("train_candidates") == 1 + len(stage.incidents())
        assert stage.rows(DetectorRow, id="churn/quiet/challenger_better") == []
        stage.check_books()


def rollout(stage: Stage, status: Literal["superseded", "completed", "rolled_back"], **body: JsonValue) -> RolloutRow:
    return RolloutRow(
        id=stage.crew.ids.new_id(), model="churn", status=status, candidate="9", stable="1", phase="canary", body=body,
        started_at=stage.clock.now(),
    )  # fmt: skip


@pytest.mark.parametrize(("newer", "n_failed"), [
    pytest.param([("rolled_back", True), ("rolled_back", True)], 2, id="two"),
    pytest.param([("rolled_back", True), ("superseded", False), ("rolled_back", True)], 2, id="one-made-way-between"),
    pytest.param([("rolled_back", True), ("rolled_back", False)], 1, id="one-could-not-be-measured"),
    pytest.param([("rolled_back", True), ("completed", False), ("rolled_back", True)], 1, id="one-came-through-between"),
    pytest.param([("rolled_back", True), ("rolled_back", True), ("completed", False)], 0, id="the-last-one-came-through"),
])  # fmt: skip
def test_remedies_that_fail_live_one_after_the_other_are_counted(
    quick: Quick, newer: list[tuple[Literal["superseded", "completed", "rolled_back"], bool]], n_failed: int
) -> None:
    with quick() as stage:
        stage.crew.db.upgrade()
        for status, failed in newer:
            stage.put(rollout(stage, status, **({"failed_live": True} if failed else {})))
        with stage.crew.db.snapshot() as conn:
            assert len(failed_in_a_row(conn, "churn")) == n_failed


def test_a_second_version_in_a_row_that_fails_live_calls_a_person(at: At) -> None:
    stage = at("canary")
    stage.world.degrade("churn", Condition(version=None, error_ratio=0.5))
    stage.world.degrade("churn", Condition(version="2", error_ratio=0.5))
    stage.days(3)
    stage.put(rollout(stage, "superseded"))  # says nothing about the next one
    calls = []
    for _ in range(45):
        stage.days(1)
        calls = [m.text for m in stage.messages() if "fails under live traffic, as version" in m.text]
        if calls:
            break

    off = [row.candidate for row in stage.rows(RolloutRow) if row.status == "rolled_back"]
    assert off[0] == "2", "the first one is part of its incident, and calls nobody"
    assert calls and calls[0].startswith(f"Version {off[1]} fails under live traffic, as version 2 did")

    staged = stage.kinds().count("stage_version")
    for _ in range(45):
        stage.days(1)
        if stage.rows(ApprovalRow):
            break
    (asked,) = stage.rows(ApprovalRow)
    assert (asked.action, asked.status) == ("stage_version", "pending")
    assert "the last two versions failed under live traffic" in asked.reason
    stage.days(5)
    assert stage.kinds().count("stage_version") == staged, "nobody has said that a third one may be tried"
    assert stage.weights() == {"1": 100}
    stage.check_books()


def failed_trainings(stage: Stage) -> int:
    return sum(a.kind == "train_candidates" and a.state == "failed" for a in stage.rows(ActionRow))


def test_after_three_failed_trainings_a_person_is_told_and_the_next_attempt_comes_a_cadence_later(at: At) -> None:
    stage = at("before")
    stage.world.model("churn").export_difference = 0.2
    stage.days(4)
    (incident,) = stage.incidents()
    assert (incident.status, failed_trainings(stage)) == ("open", 3)

    stage.days(stage.spec.monitoring.cadence.days)
    assert failed_trainings(stage) == 4
    (told,) = [m.text for m in stage.messages() if "train_candidates fails" in m.text]
    assert "differs by 0.2, more than 0.0001" in told
    (incident,) = stage.incidents()
    assert incident.status == "open"
    assert [v.version for v in stage.world.model("churn").versions] == ["1"]
    assert stage.weights() == {"1": 100}
    stage.check_books()


def test_a_training_that_succeeds_after_a_pause_remedies_the_same_incident(at: At) -> None:
    stage = at("before")
    stage.world.model("churn").export_difference = 0.2
    stage.days(6)
    stage.world.model("churn").export_difference = 0.0
    stage.days(stage.spec.monitoring.cadence.days + 10)

    assert failed_trainings(stage) == 3
    assert stage.champion() == "2"
    (incident,) = stage.incidents()
    assert incident.resolution == "recovered"
    stage.check_books()


def test_a_failure_that_is_overcome_is_forgotten(at: At) -> None:
    stage = at("before")
    for nth in (1, 3):
        stage.world.faults.add(Fault(method="pipelines.submit", kind="fails", nth=nth, times=1))
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="rejected"))
    stage.days(13)

    assert sum(a.state == "failed" for a in stage.rows(ActionRow)) == 3
    assert stage.champion() == "2"
    stage.check_books()


def test_where_outcomes_are_affected_no_cadence_backtest_runs(quick: Quick) -> None:
    with quick(outcomes="affected") as stage:
        stage.start()
        stage.days(20)
        assert "backtest_recipe" not in stage.kinds()
        stage.check_books()


@pytest.mark.parametrize(
    ("magnitude", "margin", "promoted"),
    [pytest.param(1.0, 0.001, True, id="better"), pytest.param(0.45, 0.5, False, id="no-better-than-the-champion")],
)
def test_where_outcomes_are_affected_only_a_better_arm_is_promoted(
    quick: Quick, magnitude: float, margin: float, promoted: bool
) -> None:
    rollout = {
        **QUICK["rollout"],
        "ab_test": {"percent": 50, "horizon": days(14), "minimum_samples": 50, "margin": margin},
    }
    with quick(rollout=rollout, outcomes="affected") as stage:
        stage.drift("concept", magnitude)
        stage.start()
        stage.days(8)
        assert "backtest_recipe" not in stage.kinds()
        assert stage.kinds("run_ab_test") or stage.kinds("shift_traffic")
        if not promoted:
            # The world turns back: what the candidate learned is wrong again.
            stage.drift("concept", -magnitude)
        stage.days(22)

        assert stage.kinds("promote") == ["promote"] * (1 + promoted)
        assert stage.champion() == ("2" if promoted else "1")
        if not promoted:
            assert stage.weights() == {"1": 100}
            assert stage.rollout().status == "rolled_back"
        stage.check_books()
