"""C39 in every phase: what somebody does to the route by hand is corrected or respected, recorded once, and asked about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evals.world.faults import Fault, Killed
from state.plans import ActionKind
from state.rows import ActionRow, GoalRow, RunRow
from tests.orchestrator.conftest import At, Quick
from tests.orchestrator.support import Stage
from tools.mesh.envoy import EnvoyMesh
from tools.ports import Endpoint


def edits(stage: Stage) -> list[str]:
    return [d.verdict for d in stage.log() if d.kind == "observed" and d.topic == "foreign_edit"]


def corrections(stage: Stage) -> list[ActionRow]:
    return [a for a in stage.verified() if "corrects" in a.args]


def told(stage: Stage, part: str) -> list[str]:
    return [m.text for m in stage.messages() if part in m.text]


@pytest.mark.parametrize(
    "split", [{"2": 70, "1": 30}, {"2": 70, "9": 30}, {"2": 0, "9": 100}, {"9": 10, "2": 80, "8": 10}]
)
def test_without_a_rollout_a_share_for_any_other_version_is_put_back_with_one_record(
    at: At, split: dict[str, int]
) -> None:
    stage = at("after")
    stage.world.foreign_edit("churn", split)
    revision = str(stage.world.model("churn").route.revision)  # type: ignore[union-attr]
    stage.settle()

    assert stage.weights() == {**dict.fromkeys(split, 0), "2": 100}
    (action,) = corrections(stage)
    assert (action.kind, action.args["corrects"], action.prior["weights"]) == ("shift_traffic", revision, split)
    assert edits(stage) == ["raised"]
    assert len(told(stage, "by hand")) == 1
    stage.days(3)
    assert len(corrections(stage)) == 1
    assert edits(stage) == ["raised"]
    assert stage.champion() == "2"
    stage.check_books()


def test_an_edit_that_moves_no_traffic_is_left_alone(at: At) -> None:
    stage = at("after")
    stage.world.foreign_edit("churn", {"2": 100, "9": 0})
    stage.days(2)

    assert stage.weights() == {"2": 100, "9": 0}
    assert edits(stage) == []


def test_a_kill_between_the_correction_and_its_record_corrects_once(at: At) -> None:
    stage = at("after")
    stage.world.foreign_edit("churn", {"2": 70, "9": 30})
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="crash_after"))
    with pytest.raises(Killed):
        stage.settle()
    stage.crew.db.close()
    stage = stage.again()
    stage.settle()

    assert stage.weights() == {"2": 100, "9": 0}
    assert len(corrections(stage)) == 1
    assert edits(stage) == ["raised"]
    stage.check_books()
    stage.crew.db.close()


def test_a_model_that_a_person_holds_keeps_the_split_that_they_gave_it(at: At) -> None:
    stage = at("after")
    stage.hold(True)
    stage.world.foreign_edit("churn", {"2": 70, "9": 30})
    stage.days(3)
    assert stage.weights() == {"2": 70, "9": 30}
    assert edits(stage) == ["raised"]

    stage.hold(False)
    stage.settle()
    assert stage.weights() == {"2": 100, "9": 0}
    stage.check_books()


def test_traffic_is_not_put_back_on_a_champion_that_is_not_ready(at: At) -> None:
    stage = at("after")
    stage.world.model("churn").servers["2"].alive = False
    stage.world.foreign_edit("churn", {"2": 0, "9": 100})
    stage.settle()
    assert stage.weights() == {"2": 0, "9": 100}
    assert len(told(stage, "not ready")) == 1

    stage.days(1)
    assert stage.kinds()[-2:] == ["restart_server", "shift_traffic"]
    assert stage.weights() == {"2": 100, "9": 0}
    assert len(told(stage, "not ready")) == 1
    stage.check_books()


def test_whoever_writes_the_same_split_again_and_again_gets_a_person_not_a_war(at: At) -> None:
    stage = at("after")
    for _ in range(6):
        stage.world.foreign_edit("churn", {"2": 70, "9": 30})
        stage.settle()

    assert len(corrections(stage)) == 3
    assert stage.weights() == {"2": 70, "9": 30}
    assert len(told(stage, "again and again")) == 1
    stage.check_books()


def test_in_the_bake_window_traffic_that_a_person_takes_off_the_new_champion_stays_off(at: At) -> None:
    stage = at("bake")
    stage.world.foreign_edit("churn", {"1": 100, "2": 0})
    stage.days(4)

    assert stage.weights() == {"1": 100, "2": 0}
    assert edits(stage) == ["lowered"]
    assert len(told(stage, "took traffic off version 2")) == 1
    assert [r.waits_for for r in stage.rows(RunRow, status="waiting") if r.waits_for.startswith("a person")]
    assert stage.rollout().phase == "bake"
    assert stage.kinds("retire_version", "rollback") == []
    stage.check_books()


def test_a_resume_gives_the_new_champion_its_traffic_back_and_its_bake_window_anew(at: At) -> None:
    stage = at("bake")
    stage.world.foreign_edit("churn", {"1": 40, "2": 60})
    stage.days(3)
    assert stage.weights() == {"1": 40, "2": 60}

    stage.hold(False)
    stage.settle()
    assert stage.weights() == {"1": 0, "2": 100}
    assert stage.rollout().phase == "bake"
    (action,) = corrections(stage)
    assert action.args["rollout"] == stage.rollout().id
    stage.days(1)
    assert (stage.rollout().status, stage.weights(), stage.champion()) == ("completed", {"2": 100}, "2")
    assert edits(stage) == ["lowered"]
    stage.check_books()


def test_a_rollback_makes_what_a_person_did_by_hand_the_state_of_things(at: At) -> None:
    stage = at("bake")
    stage.world.foreign_edit("churn", {"1": 100, "2": 0})
    stage.settle()
    run = stage.ask("rollback", version="previous")
    stage.settle()

    assert (stage.champion(), stage.alias(), stage.weights()) == ("1", "1", {"1": 100})
    (goal,) = stage.rows(GoalRow, id=run.subject_id)
    assert goal.status == "achieved"
    assert corrections(stage) == []
    stage.check_books()


@pytest.mark.parametrize("moment", ["canary", "bake"])
def test_a_split_that_a_person_puts_back_needs_no_answer(at: At, moment: str) -> None:
    stage = at(moment)
    before = stage.weights()
    stage.world.foreign_edit("churn", {"1": 100, "2": 0})
    stage.settle()
    stage.world.foreign_edit("churn", before)
    stage.settle()

    assert edits(stage) == ["lowered", "released"]
    assert not [r for r in stage.rows(RunRow, status="waiting") if r.waits_for.startswith("a person")]
    stage.days(8)
    assert (stage.champion(), stage.weights()) == ("2", {"2": 100})
    assert corrections(stage) == []
    stage.check_books()


@pytest.mark.parametrize("moment", ["canary", "ab_test", "bake"])
def test_a_share_for_a_third_version_is_put_back_in_mid_rollout_within_one_tick(at: At, moment: str) -> None:
    stage = at(moment)
    before, rollout = stage.weights(), stage.rollout()
    stage.world.foreign_edit("churn", {**before, "2": before["2"] - 5, "9": 5})
    stage.settle()

    assert stage.weights() == {**before, "9": 0}
    (action,) = corrections(stage)
    assert action.args["rollout"] == rollout.id
    assert (stage.rollout().id, stage.rollout().phase) == (rollout.id, rollout.phase)
    stage.days(8)
    assert (stage.champion(), stage.alias()) == ("2", "2")
    assert len(corrections(stage)) == 1
    stage.check_books()


@pytest.mark.parametrize("kind", ["rollback", "promote"])
def test_a_split_that_was_edited_before_its_effect_was_recorded_is_judged_as_an_edit(at: At, kind: ActionKind) -> None:
    stage = at("bake" if kind == "rollback" else "ab_test")
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="crash_after"))
    with pytest.raises(Killed):
        if kind == "rollback":
            stage.ask("rollback", version="previous")
            stage.settle()
        stage.days(4)
    stage.crew.db.close()
    stage.world.foreign_edit("churn", {"1": 50, "2": 50})
    stage = stage.again()
    stage.settle()

    assert stage.weights()["1"] == (100 if kind == "rollback" else 50)
    assert edits(stage) == (["raised"] if kind == "rollback" else ["lowered"])
    stage.crew.db.close()


@pytest.mark.xdist_group("envoy")
def test_an_edit_of_the_document_itself_is_put_back_and_served(quick: Quick, tmp_path: Path) -> None:
    """Against a real Envoy: the file on the disk is what somebody edits."""
    mesh = EnvoyMesh(tmp_path / "mesh", concurrency=1)
    try:
        with quick() as stage:
            stage.crew = replace(stage.crew, platform=replace(stage.crew.platform, mesh=mesh))
            stage.start()
            theirs = Endpoint(model="churn", version="9", key="theirs", host="127.0.0.1", port=40_009, ready=True)
            mesh.stage(endpoint=theirs, key="theirs")
            stage.settle()
            assert edits(stage) == []

            file = tmp_path / "mesh" / "mesh" / "churn.yaml"
            file.write_text(file.read_text().replace("weight: 100", "weight: 70").replace("weight: 0", "weight: 30"))
            edited = mesh.read("churn")
            assert edited is not None
            assert dict(edited.weights) == {"1": 70, "9": 30}
            stage.settle()

            route = mesh.read("churn")
            assert route is not None
            assert (dict(route.weights), route.served) == ({"1": 100, "9": 0}, True)
            (action,) = corrections(stage)
            assert action.args["corrects"] == edited.revision
            stage.settle()
            assert (len(corrections(stage)), edits(stage)) == (1, ["raised"])
    finally:
        mesh.stop()
