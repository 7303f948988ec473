"""Kills, outages and rivals: the same end, each effect once, and a log that verifies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from evals.world.faults import Fault, FaultKind, Killed
from orchestrator.aims import call_off
from orchestrator.graph import build_graph
from orchestrator.loop import tick
from state import leases, store
from state.errors import StaleRevision
from state.rows import ActionRow, DetectorRow, RolloutRow
from tests.orchestrator.conftest import At, Quick
from tests.orchestrator.support import Stage

DAYS_LEFT = 9
"""From the moment `before` to sustained health."""


def live_on(stage: Stage, *, killed: Callable[[Stage, str], None]) -> Stage:
    """Live to the end of the remedy; whenever the control plane is killed, another one takes over."""
    for _ in range(DAYS_LEFT):
        stage.world.advance()
        for _ in range(400):
            try:
                stage.settle()
                break
            except Killed as exc:
                stage.world.kill()
                stage.crew.db.close()
                stage = stage.again()
                killed(stage, str(exc))
        else:
            raise AssertionError("killed for ever")
    return stage


@pytest.fixture
def undisturbed(at: At) -> list[tuple[str, str]]:
    return at("after").story()


@pytest.mark.parametrize(
    ("kind", "effects_only", "step"),
    [
        pytest.param("crash_before", True, 1, id="before-every-effect"),
        pytest.param("crash_after", True, 1, id="after-every-effect"),
        # Every effect and every look would be a thousand restarts; a stride that is prime to the calls of a tick meets all.
        pytest.param("crash_before", False, 17, id="before-every-17th-call"),
        pytest.param("crash_after", False, 19, id="after-every-19th-call"),
    ],
)
def test_a_kill_at_any_moment_changes_nothing_about_the_end(
    at: At, undisturbed: list[tuple[str, str]], kind: FaultKind, effects_only: bool, step: int
) -> None:
    stage = at("before")
    kills: list[str] = []

    def arm(stage: Stage, where: str) -> None:
        # A call that is repeated after the restart is let through, the next one is hit.
        again = kind == "crash_before" or kills[-1:] == [where]
        kills.append(where)
        stage.world.faults.clear()
        stage.world.faults.add(Fault(method="*", kind=kind, nth=step + again, effects_only=effects_only))

    stage.world.faults.add(Fault(method="*", kind=kind, nth=step, effects_only=effects_only))
    stage = live_on(stage, killed=arm)

    assert len(kills) >= 10
    assert stage.story() == undisturbed
    assert (stage.champion(), stage.alias(), stage.weights()) == ("2", "2", {"2": 100})
    assert [i.resolution for i in stage.incidents()] == ["recovered"]
    stage.check_books()
    stage.crew.db.close()


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        pytest.param("timeout", 1, id="done-but-timed-out"),
        pytest.param("outage", 3, id="three-calls-without-an-answer"),
    ],
)
def test_an_unavailable_port_delays_and_changes_nothing_about_the_end(
    at: At, undisturbed: list[tuple[str, str]], kind: FaultKind, times: int
) -> None:
    stage = at("before")
    for method in (
        "pipelines.*",
        "registry.*",
        "servers.*",
        "mesh.*",
        "metrics.*",
        "outcomes.*",
        "data.*",
        "features.*",
        "notifier.*",
    ):
        for nth in (2, 40):
            stage.world.faults.add(Fault(method=method, kind=kind, nth=nth, times=times))

    stage = live_on(stage, killed=lambda *_: None)

    assert stage.story() == undisturbed
    assert stage.weights() == {"2": 100}
    stage.check_books()


def test_a_rejected_effect_is_a_recorded_failure_and_tried_again(at: At) -> None:
    stage = at("before")
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="rejected"))

    stage.days(DAYS_LEFT + 1)

    failed = [row for row in stage.rows(ActionRow) if row.state == "failed"]
    assert [row.kind for row in failed] == ["shift_traffic"]
    again = [row for row in stage.verified() if row.args == failed[0].args and row.kind == "shift_traffic"]
    assert [row.attempt for row in again] == [2]
    assert stage.champion() == "2"
    stage.check_books()


def test_threads_may_be_thrown_away_between_any_two_ticks(at: At, undisturbed: list[tuple[str, str]]) -> None:
    stage = at("before")
    for _ in range(DAYS_LEFT):
        stage.world.advance()
        for _ in range(200):
            if tick(stage.crew, build_graph(InMemorySaver()), stage.spec).outcome == "quiet":
                break

    assert stage.story() == undisturbed
    stage.check_books()


def test_of_two_workers_one_has_the_lease_and_the_other_leaves_the_model_alone(at: At) -> None:
    stage = at("before")
    stage.settle()
    rival = stage.again(owner="worker-2")
    stage.world.advance()

    assert rival.tick().outcome == "not_ours"
    stage.settle()
    assert stage.weights() == {"1": 90, "2": 10}
    stage.check_books()
    rival.crew.db.close()


def test_a_worker_whose_lease_passed_on_writes_nothing_and_adds_no_effect(at: At) -> None:
    stage = at("before")
    stage.settle()
    stage.world.advance()
    rival = stage.again(owner="worker-2")
    platform, effects = stage.crew.platform, list(stage.world.effects)
    submit = platform.pipelines.submit
    stolen = itertools.count()

    def slow(*args: object, **kwargs: object) -> object:
        # While this worker hangs in a call, its lease runs out and another one finishes the work.
        if next(stolen) == 0:
            with rival.crew.db.transaction() as conn:
                lease = leases.holder(conn, "model/churn")
                assert lease is not None
                leases.release(conn, lease)
            rival.settle()
        return submit(*args, **kwargs)  # type: ignore[arg-type]

    platform.pipelines.submit = slow  # type: ignore[method-assign,assignment]
    with pytest.raises(StaleRevision):
        stage.settle()

    assert rival.weights() == {"1": 90, "2": 10}
    assert len(stage.world.effects) > len(effects)
    rival.check_books()
    rival.crew.db.close()


@pytest.fixture
def interrupted(at: At) -> Iterator[Stage]:
    """A control plane that comes back after it was killed between the intent of a 10 % step and its effect."""
    stage = at("before")
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="crash_before"))
    stage.world.advance()
    with pytest.raises(Killed):
        stage.settle()
    stage.crew.db.close()
    stage = stage.again()
    yield stage
    stage.crew.db.close()


def test_an_interrupted_effect_that_is_absent_happens_only_where_policy_still_allows_it(interrupted: Stage) -> None:
    interrupted.switch("halt", on=True)
    interrupted.settle()

    assert interrupted.weights() == {"1": 100, "2": 0}
    (failed,) = [row for row in interrupted.rows(ActionRow) if row.state == "failed"]
    assert failed.kind == "shift_traffic"
    assert failed.message.startswith("policy no longer allows it")

    interrupted.switch("halt", on=False)
    interrupted.days(1)
    assert interrupted.weights() == {"1": 90, "2": 10}
    interrupted.check_books()


def test_an_interrupted_effect_that_is_absent_and_still_allowed_happens_once(interrupted: Stage) -> None:
    interrupted.settle()

    assert interrupted.weights() == {"1": 90, "2": 10}
    assert [row.attempt for row in interrupted.verified() if row.kind == "shift_traffic"] == [1]
    interrupted.check_books()


def test_an_interrupted_effect_that_is_present_is_adopted_even_under_the_kill_switch(at: At) -> None:
    stage = at("before")
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="crash_after"))
    stage.world.advance()
    with pytest.raises(Killed):
        stage.settle()
    stage.crew.db.close()
    stage = stage.again()
    stage.switch("halt", on=True)
    stage.settle()

    shift = [row for row in stage.rows(ActionRow) if row.kind == "shift_traffic"]
    assert [(row.state, row.attempt) for row in shift] == [("verified", 1)]
    assert stage.weights() == {"1": 90, "2": 10}
    stage.check_books()
    stage.crew.db.close()


def test_an_effect_that_stays_unknown_stops_what_is_risky_and_is_settled_when_it_can_be_seen(at: At) -> None:
    stage = at("before")
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="outage", times=None))
    stage.days(1)

    (unknown,) = [row for row in stage.rows(ActionRow) if row.state == "unknown"]
    assert unknown.kind == "shift_traffic"
    assert [m.title for m in stage.messages() if "unknown" in m.title] == [
        "churn: the effect of shift_traffic is unknown"
    ]

    stage.world.faults.clear()
    stage.days(1)
    assert {row.state for row in stage.rows(ActionRow)} <= {"verified"}
    assert stage.weights() == {"1": 90, "2": 10}
    stage.check_books()


def test_weights_that_the_data_plane_did_not_take_over_are_pushed_again_and_never_called_done(at: At) -> None:
    stage = at("before")
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="not_applied"))
    stage.days(1)
    assert [row.state for row in stage.rows(ActionRow) if row.kind == "shift_traffic"] == ["unknown"]

    stage.days(1)
    route = stage.world.model("churn").route
    assert route is not None
    assert route.applied == {"1": 90, "2": 10}
    assert [row.state for row in stage.rows(ActionRow) if row.kind == "shift_traffic"] == ["verified"]
    stage.check_books()


@pytest.mark.parametrize(("moment", "kind"), [
    pytest.param("before", "shift_traffic", id="the-first-step"),
    pytest.param("ab_test", "promote", id="the-promotion"),
])  # fmt: skip
def test_a_version_whose_share_is_never_taken_leaves_and_a_person_knows(at: At, moment: str, kind: str) -> None:
    stage = at(moment)
    incident_id = stage.incidents()[0].id
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="not_applied", times=None))
    for _ in range(14):
        stage.days(1)
        shift = next((a for a in stage.rows(ActionRow) if a.kind == kind and a.subject_id == incident_id), None)
        if shift is not None and shift.state == "failed":
            break
    if kind == "promote":
        # It serves a part already, and keeps it for as long as the data plane takes nothing at all.
        stage.world.faults.clear()
    stage.days(2)

    assert shift is not None
    assert shift.state == "failed"
    assert "the data plane does not confirm the weights" in shift.message
    assert [m for m in stage.messages() if f"the effect of {kind} is unknown" in m.title]
    assert stage.champion() == "1"
    route = stage.world.model("churn").route
    assert route is not None
    assert route.weights == route.applied == {"1": 100}
    assert [i.resolution for i in stage.incidents() if i.id == incident_id] == ["escalated"]
    stage.check_books()


def test_a_version_that_is_called_off_while_its_share_is_not_taken_leaves_once_the_data_plane_takes_weights(
    at: At,
) -> None:
    stage = at("before")
    incident_id = stage.incidents()[0].id
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="not_applied", times=None))
    stage.days(1)
    with stage.crew.db.transaction() as conn:
        (rollout,) = store.select(conn, RolloutRow, status="running")
        call_off(stage.crew, conn, rollout, "a person wants another version", superseded=True)
    stage.days(10)
    stage.world.faults.clear()
    stage.days(2)

    states = {row.kind: row.state for row in stage.rows(ActionRow, subject_id=incident_id)}
    assert (states["shift_traffic"], states["rollback"], states["retire_version"]) == ("failed", "verified", "verified")
    assert stage.weights() == {"1": 100}
    assert [i.resolution for i in stage.incidents() if i.id == incident_id] == ["superseded"]
    stage.check_books()


def test_a_lasting_outage_of_the_outcomes_holds_and_calls_a_person_once(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.world.faults.add(Fault(method="outcomes.*", kind="outage", times=None))
        stage.days(3)
        assert [m.title for m in stage.messages()] == ["churn: an outside system does not answer"]

        stage.world.faults.clear()
        stage.days(1)
        with stage.crew.db.transaction() as conn:
            cursor = store.get(conn, DetectorRow, "churn/cursor")
        assert cursor is not None
        assert cursor.state["traffic"] == stage.clock.now().isoformat()
        stage.check_books()


def test_a_platform_that_is_down_when_the_cadence_is_due_ends_nothing(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(7)
        stage.world.faults.add(Fault(method="*", kind="outage", times=None))
        stage.days(2)
        assert stage.kinds("backtest_recipe") == []

        stage.world.faults.clear()
        stage.days(1)
        assert stage.kinds("backtest_recipe") == ["backtest_recipe"]
        stage.check_books()


def test_a_signal_survives_a_kill_between_its_look_and_its_incident(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(3)
        stage.drift("unit", 1_000.0, features=("spend",))
        stage.world.advance()
        # The look itself is the last thing that happens: what it saw must not be marked as seen.
        stage.world.faults.add(Fault(method="servers.get", kind="crash_before", nth=2))
        with pytest.raises(Killed):
            stage.settle()
        after = stage.again()
        after.settle()

        assert [i.cause for i in after.incidents()] == ["data_fault"]
        after.check_books()
        after.crew.db.close()
