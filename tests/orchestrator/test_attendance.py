"""What passes while nobody looks: a stop is no fault of the data and no health, and a replay that ended is another time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from orchestrator.cursor import block_start
from state.decisions import Observed
from state.rows import BlockRow, DetectorRow, RunRow, SwitchRow
from tests.orchestrator.conftest import At, Quick
from tests.orchestrator.support import MODEL, QUICK, Stage, days

LOOKING = {**QUICK["monitoring"], "drift_window": days(6), "cadence": days(60)}


def stop(stage: Stage, n_days: int, *, servers: bool) -> None:
    """Days that pass with nobody looking; without `servers`, the data plane is down as well and answers nothing."""
    if servers:
        stage.world.advance(n_days)
        return
    without_traffic(stage, n_days)


def without_traffic(stage: Stage, n_days: int) -> None:
    model = stage.world.model(MODEL)
    route, model.route = model.route, None
    stage.world.advance(n_days)
    model.route = route


def operation(stage: Stage) -> list[Observed]:
    return [d for d in stage.log() if isinstance(d, Observed) and d.topic == "operation"]


def state(stage: Stage, name: str) -> dict[str, Any]:
    [row] = [row for row in stage.rows(DetectorRow) if row.id == f"{MODEL}/{name}"]
    return dict(row.state)


def measured(stage: Stage) -> list[str]:
    return sorted(row.block for row in stage.rows(BlockRow) if row.topic == "profile/1")


def test_rows_that_are_missing_while_the_system_was_stopped_are_no_fault(quick: Quick) -> None:
    with quick(monitoring=LOOKING) as stage:
        stage.start()
        stage.days(7)
        before = stage.clock.now()
        stop(stage, 3, servers=False)
        stage.settle()
        assert stage.incidents() == []
        assert len(measured(stage)) == 7

        stage.days(1)
        assert stage.incidents() == []
        assert len(measured(stage)) == 8
        [said] = operation(stage)
        assert (said.verdict, said.details["from"]) == ("stopped", before.isoformat())
        stage.check_books()


def test_a_day_without_rows_after_the_stop_is_a_fault_as_ever(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(7)
        stop(stage, 3, servers=False)
        stage.days(2)
        assert stage.incidents() == []
        without_traffic(stage, 1)
        stage.settle()
        assert [incident.cause for incident in stage.incidents()] == ["data_fault"]


def test_what_servers_answered_during_the_stop_is_measured_and_judged_by_its_content(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(7)
        until = (stage.clock.now() + timedelta(days=2)).date().isoformat()
        stage.drift("unit", 1_000.0, features=("spend",), until=until)
        stop(stage, 4, servers=True)
        stage.settle()

        assert len(measured(stage)) == 11
        [incident] = stage.incidents()
        assert incident.cause == "data_fault"
        assert len(incident.body["days"]) == 2  # type: ignore[arg-type]
        assert len(operation(stage)) == 1


def test_a_drift_window_is_longer_by_the_days_in_which_nothing_was_served(quick: Quick) -> None:
    with quick(monitoring=LOOKING) as stage:
        stage.start()
        stage.days(4)
        stop(stage, 5, servers=False)
        stage.days(1)
        assert [d for d in stage.log() if isinstance(d, Observed) and d.topic == "drift"] == []
        stage.days(1)
        [tested] = [d for d in stage.log() if isinstance(d, Observed) and d.topic == "drift"]
        assert tested.verdict == "none"
        assert state(stage, "cursor")["paused"] == 0


def test_health_does_not_hold_while_nobody_looks(quick: Quick) -> None:
    with quick(monitoring={**QUICK["monitoring"], "recovery": days(3)}) as stage:
        stage.start()
        stage.days(3)
        until = (stage.clock.now() + timedelta(days=1)).date().isoformat()
        stage.drift("unit", 1_000.0, features=("spend",), until=until)
        stage.days(2)
        stop(stage, 6, servers=False)
        stage.settle()
        assert [incident.status for incident in stage.incidents()] == ["open"]
        stage.days(1)
        assert [incident.status for incident in stage.incidents()] == ["open"]
        stage.days(1)
        assert [incident.resolution for incident in stage.incidents()] == ["quarantined"]


def test_a_bake_window_and_a_canary_step_do_not_pass_while_nobody_looks(at: At) -> None:
    for moment, left in (("bake", "bake"), ("canary", "canary")):
        stage = at(moment)
        weights = stage.weights()
        stop(stage, 8, servers=False)
        stage.settle()
        assert (stage.rollout().phase, stage.weights()) == (left, weights)
        stage.days(1)
        assert (stage.rollout().phase, stage.weights()) != (left, weights)
        assert stage.rollout().status != "rolled_back"


def test_the_horizon_of_an_ab_test_is_later_by_the_stop_and_its_rows_still_count(at: At) -> None:
    stage = at("ab_test")
    since = stage.rollout().body["since"]
    stop(stage, 8, servers=False)
    stage.settle()
    rollout = stage.rollout()
    assert (rollout.phase, rollout.body["since"]) == ("ab_test", since)
    assert rollout.body["paused"] == {"since": since, "seconds": days(8).total_seconds()}
    stage.days(3)
    assert (stage.rollout().phase, stage.champion()) == ("bake", "2")
    stage.check_books()


def go_live(stage: Stage, n_days: int) -> None:
    """The replay ends, and live operation begins `n_days` later with no row between."""
    stage.world.state.next_day = (stage.clock.now() + timedelta(days=n_days)).date().isoformat()
    stage.clock.advance_to(stage.clock.now() + timedelta(days=n_days))
    stage.switch("domain_time", at=None)


def replaying(stage: Stage) -> None:
    stage.switch("domain_time", at=stage.clock.now().isoformat())


def test_live_operation_after_a_replay_begins_at_the_present_block(quick: Quick) -> None:
    with quick(monitoring=LOOKING) as stage:
        replaying(stage)
        stage.start()
        stage.days(9)
        ended = stage.clock.now()
        assert state(stage, "loss/1")["n_blocks"] == 9
        assert len(state(stage, "segments/1")["recent"]) == 9
        go_live(stage, 4_000)
        stage.settle()

        [said] = operation(stage)
        assert said.verdict == "live"
        assert said.details == {"replay_ended": ended.isoformat(), "block": stage.clock.now().date().isoformat()}
        start = block_start(stage.clock.now(), stage.spec).isoformat()
        assert state(stage, "cursor") == {"traffic": start, "outcomes": start, "drift": start, "paused": 0}
        assert state(stage, "loss/1")["n_blocks"] == 0
        assert state(stage, "segments/1")["recent"] == {}
        assert state(stage, "cadence")["at"] == stage.clock.now().isoformat()
        assert (len(measured(stage)), stage.incidents()) == (9, [])

        stage.days(6)
        assert (len(measured(stage)), stage.incidents()) == (15, [])
        assert state(stage, "loss/1")["n_blocks"] == 6
        assert len(operation(stage)) == 1
        stage.check_books()


def test_live_traffic_is_not_measured_against_the_volume_of_the_replay(quick: Quick) -> None:
    with quick() as stage:
        replaying(stage)
        stage.start()
        stage.days(9)
        go_live(stage, 30)
        for _ in range(2):  # nobody has been pointed at the new address yet
            without_traffic(stage, 1)
            stage.settle()
        stage.days(1)
        assert stage.incidents() == []


def test_windows_that_a_replay_left_open_begin_anew(at: At) -> None:
    stage = at("bake")
    replaying(stage)
    stage.settle()
    go_live(stage, 300)
    stage.settle()

    now = stage.clock.now().isoformat()
    assert (stage.rollout().phase, stage.rollout().body["since"]) == ("bake", now)
    [run] = [run for run in stage.rows(RunRow) if run.status != "finished"]
    assert datetime.fromisoformat(run.body["unhealthy_at"]) == stage.clock.now()
    stage.days(1)
    assert stage.rollout().status == "completed"


def test_a_model_that_was_watched_before_looks_were_noted_goes_on(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(3)
        # As an earlier release left it: its domain time is that of a replay that has ended.
        stage.switch(f"replay/{MODEL}", at=stage.clock.now().isoformat())
        with stage.crew.db.transaction() as conn:
            conn.exec_driver_sql(f"delete from detector_states where id = '{MODEL}/attended'")
        assert [row for row in stage.rows(SwitchRow) if row.id == "domain_time"] == []
        go_live(stage, 50)
        stage.settle()
        assert [d.verdict for d in operation(stage)] == ["live"]
        assert stage.incidents() == []


def test_a_clock_that_steps_back_is_no_stop(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(2)
        at = state(stage, "attended")["at"]
        stage.clock._now -= timedelta(hours=2)
        stage.settle()
        assert state(stage, "attended")["at"] == at
        stage.clock._now += timedelta(hours=2)
        stage.days(1)
        assert operation(stage) == []
