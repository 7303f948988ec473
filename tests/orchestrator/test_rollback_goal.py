"""A person wants an earlier champion back after its successor's bake window is over."""

from __future__ import annotations

import pytest

from evals.world.faults import Fault, Killed
from evals.world.records import Condition
from state.rows import ApprovalRow, GoalRow, RolloutRow, RunRow
from tests.orchestrator.conftest import At, Quick
from tests.orchestrator.support import Stage, days


def goal_of(stage: Stage, run: RunRow) -> GoalRow:
    (row,) = stage.rows(GoalRow, id=run.subject_id)
    return row  # type: ignore[no-any-return]


@pytest.mark.parametrize("version", ["previous", "1", None])
def test_the_retired_champion_is_staged_again_and_takes_all_traffic_in_one_write(at: At, version: str | None) -> None:
    stage = at("after")
    assert (stage.champion(), stage.weights()) == ("2", {"2": 100})
    before, writes = len(stage.kinds()), len(stage.traffic_writes())
    run = stage.ask("rollback", version=version)
    stage.settle()

    # It left the role a while ago: that it is healthy is for a person to say.
    (question,) = stage.rows(ApprovalRow, status="pending")
    assert (question.action, question.args["to"], question.args["version"]) == ("rollback", "1", "2")
    assert stage.weights() == {"2": 100, "1": 0}
    stage.answer("approved")
    stage.settle()

    assert (stage.champion(), stage.alias(), stage.weights()) == ("1", "1", {"1": 100})
    assert stage.kinds()[before:] == ["stage_version", "rollback", "retire_version"]
    assert stage.traffic_writes()[writes:] == [{"2": 0, "1": 100}]
    assert goal_of(stage, run).status == "achieved"
    assert stage.rollout().status == "completed"
    assert len(stage.rows(ApprovalRow)) == 1
    stage.check_books()


def test_a_second_rollback_brings_back_what_the_first_one_replaced(at: At) -> None:
    stage = at("after")
    for version in ("1", "2"):
        run = stage.ask("rollback", version="previous")
        stage.settle()
        stage.answer("approved")
        stage.settle()
        assert (stage.champion(), stage.alias(), stage.weights()) == (version, version, {version: 100})
        assert goal_of(stage, run).status == "achieved"
    stage.check_books()


def test_a_person_who_says_no_leaves_the_champion_and_takes_the_staged_version_out(at: At) -> None:
    stage = at("after")
    run = stage.ask("rollback", version="1")
    stage.settle()
    stage.answer("rejected")
    stage.settle()

    assert (stage.champion(), stage.weights()) == ("2", {"2": 100})
    assert (goal_of(stage, run).status, goal_of(stage, run).outcome) == ("failed", "rejected")
    assert "rollback" not in stage.kinds()
    stage.check_books()


def test_c12_where_the_earlier_champion_is_not_ready_weights_stay_and_a_person_is_called(at: At) -> None:
    stage = at("after")
    stage.world.degrade("churn", Condition(version="1", dead=True))
    stage.ask("rollback", version="1")
    stage.days(2)
    assert stage.weights() == {"2": 100, "1": 0}
    assert len([m for m in stage.messages() if "version 1 is not ready" in m.text]) == 1
    assert stage.rows(ApprovalRow) == []

    stage.world.model("churn").servers["1"].alive = True
    stage.settle()
    stage.answer("approved")
    stage.settle()
    assert stage.weights() == {"1": 100}
    stage.check_books()


def test_under_the_kill_switch_only_the_last_healthy_champion_is_returned_to(at: At) -> None:
    stage = at("after")
    stage.switch("halt", on=True)
    before = stage.kinds()
    stage.ask("rollback", version="1")
    stage.days(2)
    assert stage.kinds() == before
    assert stage.weights() == {"2": 100}

    stage.switch("halt", on=False)
    stage.days(1)
    stage.answer("approved")
    stage.settle()
    assert stage.weights() == {"1": 100}
    stage.check_books()


@pytest.mark.parametrize(
    ("version", "outcome"),
    [
        pytest.param("3", "never_served", id="registered-only"),
        pytest.param("99", "no_such_version", id="unknown"),
        pytest.param("2", "nothing_to_roll_back", id="the-champion-itself"),
    ],
)
def test_a_version_that_never_served_is_deployed_and_not_rolled_back_to(at: At, version: str, outcome: str) -> None:
    stage = at("after")
    assert stage.register() == "3"
    effects = len(stage.world.effects)
    run = stage.ask("rollback", version=version)
    stage.settle()

    assert (goal_of(stage, run).status, goal_of(stage, run).outcome) == ("failed", outcome)
    assert len(stage.world.effects) == effects


def test_a_first_champion_has_nothing_before_it(quick: Quick) -> None:
    with quick() as stage:
        stage.start()
        stage.days(1)
        effects = len(stage.world.effects)
        run = stage.ask("rollback", version="previous")
        stage.settle()

        assert (goal_of(stage, run).status, goal_of(stage, run).outcome) == ("failed", "nothing_to_roll_back")
        assert len(stage.world.effects) == effects


def test_a_running_canary_leaves_before_an_earlier_champion_comes_back(at: At) -> None:
    stage = at("after")
    version = stage.register(until=(stage.clock.now() - days(4)).isoformat())
    stage.ask("deploy", version=version)
    stage.settle()
    stage.answer("approved")
    stage.settle()
    assert stage.weights() == {"2": 90, version: 10}
    run = stage.ask("rollback", version="1")
    stage.settle()
    assert stage.weights() == {"2": 100, "1": 0}
    assert stage.rows(RolloutRow, candidate=version)[0].status == "rolled_back"

    stage.answer("approved")
    stage.settle()
    assert (stage.champion(), stage.weights()) == ("1", {"1": 100})
    assert goal_of(stage, run).status == "achieved"
    stage.check_books()


def test_previous_means_the_champion_beneath_a_running_canary(at: At) -> None:
    stage = at("after")
    version = stage.register(until=(stage.clock.now() - days(4)).isoformat())
    stage.ask("deploy", version=version)
    stage.settle()
    stage.answer("approved")
    stage.settle()
    stage.ask("rollback", version="previous")
    stage.settle()

    assert (stage.champion(), stage.weights()) == ("2", {"2": 100})
    assert stage.rows(ApprovalRow, status="pending") == []
    stage.check_books()


@pytest.mark.parametrize(
    "method", ["servers.start", "mesh.stage", "mesh.set_weights", "registry.set_alias", "mesh.retire"]
)
def test_a_kill_at_any_effect_of_the_way_back_makes_it_once(at: At, method: str) -> None:
    stage = at("after")
    run = stage.ask("rollback", version="1")
    stage.world.faults.add(Fault(method=method, kind="crash_after"))
    with pytest.raises(Killed):
        stage.settle()
        stage.answer("approved")
        stage.settle()
    stage.crew.db.close()
    stage = stage.again()
    stage.settle()
    if stage.rows(ApprovalRow, status="pending"):
        stage.answer("approved")
        stage.settle()

    assert (stage.champion(), stage.alias(), stage.weights()) == ("1", "1", {"1": 100})
    assert goal_of(stage, run).status == "achieved"
    stage.check_books()
    stage.crew.db.close()
