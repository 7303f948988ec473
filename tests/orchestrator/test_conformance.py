"""Rollout conformance cases, by their ids, through the whole loop. Those of pure functions stand with the agents."""

from __future__ import annotations

import pytest

from evals.world.faults import Fault, Killed
from evals.world.records import Condition
from evals.world.serving import WorldMetrics
from state.rows import ApprovalRow, GoalRow, RolloutRow, RunRow
from tests.orchestrator.conftest import At, Quick
from tests.orchestrator.support import QUICK, days
from tools.ports import ServiceSample


def test_c01_a_first_version_takes_all_traffic_without_steps_or_analysis(quick: Quick) -> None:
    with quick() as stage:
        stage.start()

        assert stage.weights() == {"1": 100}
        assert stage.rollout().phase == "initialised"
        assert stage.kinds("shift_traffic", "run_ab_test") == []
        assert not [d for d in stage.log() if d.kind == "observed" and d.topic == "analysis"]


def test_c02_c03_every_step_is_written_in_order_and_then_all_traffic(at: At) -> None:
    shares = [split.get("2") for split in at("after").traffic_writes()]

    assert shares == [None, 10, 30, 50, 100]


def test_c05_before_the_first_shift_no_metric_of_the_candidate_is_queried(
    at: At, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = at("before")
    asked: list[str] = []
    sample = WorldMetrics.sample

    def noted(metrics: WorldMetrics, model: str, version: str) -> ServiceSample | None:
        asked.append(version)
        return sample(metrics, model, version)

    monkeypatch.setattr(WorldMetrics, "sample", noted)
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="rejected", times=None))
    stage.days(1)

    assert stage.weights() == {"1": 100, "2": 0}
    assert set(asked) == {"1"}


def test_c07_another_version_supersedes_a_running_canary_after_its_traffic_is_back(at: At) -> None:
    stage = at("canary")
    version = stage.register(until=(stage.clock.now() - days(4)).isoformat())
    first = stage.rollout()
    writes = len(stage.traffic_writes())
    stage.ask("deploy", version=version)
    stage.settle()

    assert stage.traffic_writes()[writes:] == [{"1": 100, "2": 0}, {"1": 90, version: 10}]
    (old,), (new,) = stage.rows(RolloutRow, candidate="2"), stage.rows(RolloutRow, candidate=version)
    assert (old.id, old.status) == (first.id, "superseded")
    assert new.id != old.id
    assert "2" not in stage.weights()
    assert stage.kinds()[-4:] == ["rollback", "retire_version", "stage_version", "shift_traffic"]
    stage.check_books()


def test_c08_the_champion_submitted_again_mid_canary_takes_the_traffic_back_and_starts_nothing(at: At) -> None:
    stage = at("canary")
    run = stage.ask("deploy", version="1")
    stage.settle()

    assert stage.weights() == {"1": 100}
    assert stage.rows(RolloutRow, candidate="2")[0].status in ("superseded", "rolled_back")
    (goal,) = stage.rows(GoalRow, id=run.subject_id)
    assert goal.status == "achieved"

    effects = len(stage.world.effects)
    stage.ask("deploy", version="1")
    stage.settle()
    assert len(stage.world.effects) == effects
    stage.check_books()


def test_c09_an_abort_by_hand_returns_all_traffic_and_ends_the_run_once(at: At) -> None:
    stage = at("canary")
    writes = len(stage.traffic_writes())
    run = stage.ask("rollback", version="previous")
    stage.settle()

    assert stage.traffic_writes()[writes:] == [{"1": 100, "2": 0}]
    assert stage.weights() == {"1": 100}
    assert stage.rollout().status == "rolled_back"
    (goal,) = stage.rows(GoalRow, id=run.subject_id)
    assert goal.status == "achieved"
    assert stage.kinds("rollback") == ["rollback"]
    stage.check_books()


def test_c09_a_rollback_in_the_bake_window_returns_to_the_previous_version(at: At) -> None:
    stage = at("bake")
    stage.ask("rollback", version="previous")
    stage.settle()

    assert (stage.alias(), stage.champion(), stage.weights()) == ("1", "1", {"1": 100})
    stage.check_books()


def test_c13_a_candidate_that_loses_its_server_loses_its_traffic(at: At) -> None:
    stage = at("canary")
    stage.world.model("churn").servers["2"].alive = False
    stage.settle()
    stage.days(1)

    assert stage.weights() == {"1": 100}
    assert stage.rollout().status == "rolled_back"
    stage.check_books()


def test_c14_a_wish_to_promote_a_version_in_mid_analysis_skips_no_step(at: At) -> None:
    stage = at("canary")
    stage.ask("promote", version="2")
    stage.settle()
    assert stage.weights() == {"1": 90, "2": 10}
    assert len(stage.rows(RolloutRow)) == 2

    stage.days(7)
    assert stage.champion() == "2"
    assert stage.kinds("shift_traffic", "run_ab_test") == ["shift_traffic", "shift_traffic", "run_ab_test"]
    assert [g.status for g in stage.rows(GoalRow) if not g.standing] == ["achieved"]
    stage.check_books()


def test_c16_a_candidate_that_is_not_ready_by_the_deadline_is_taken_out_and_no_failure_is_counted(at: At) -> None:
    stage = at("before")
    stage.world.degrade("churn", Condition(version=None, dead=True))
    stage.days(1)
    assert stage.weights() == {"1": 100, "2": 0}
    (run,) = stage.rows(RunRow, status="waiting")
    assert run.waits_for == "version 2 to become ready"

    stage.days(2)
    assert stage.weights() == {"1": 100}
    assert stage.rollout().status == "rolled_back"
    assert any(d.kind == "observed" and d.verdict == "deadline" for d in stage.log())
    assert not [d for d in stage.log() if d.kind == "action_changed" and d.state == "failed"]
    stage.check_books()


def test_c20_without_metrics_a_canary_holds_and_leaves_at_its_deadline_with_a_word_to_a_person(at: At) -> None:
    stage = at("canary")
    stage.world.faults.add(Fault(method="metrics.sample", kind="no_data", times=None))
    stage.days(1)
    assert stage.weights() == {"1": 90, "2": 10}

    stage.days(1)
    assert stage.weights() == {"1": 100}
    assert any(d.kind == "observed" and d.verdict == "inconclusive" for d in stage.log())
    assert any("inconclusive" in m.text for m in stage.messages())
    stage.check_books()


def test_c20_without_metrics_an_ab_test_is_never_a_pass(at: At) -> None:
    stage = at("ab_test")
    assert stage.weights() == {"1": 50, "2": 50}
    stage.world.faults.add(Fault(method="metrics.sample", kind="no_data", times=None))
    stage.days(6)

    assert stage.kinds("promote") == ["promote"]
    assert stage.weights() == {"1": 100}
    stage.check_books()


@pytest.mark.parametrize("moment", ["canary", "ab_test", "bake"])
def test_a_proxy_that_starts_again_in_mid_rollout_costs_no_candidate(at: At, moment: str) -> None:
    stage = at(moment)
    stage.world.restart_proxy()
    stage.days(10)

    assert (stage.champion(), stage.alias(), stage.weights()) == ("2", "2", {"2": 100})
    assert stage.rows(RolloutRow, candidate="2")[0].status == "completed"
    assert not [m for m in stage.messages() if "cannot be judged" in m.title or "inconclusive" in m.text]
    stage.check_books()


def test_a_proxy_that_starts_again_hides_no_failing_candidate(at: At) -> None:
    stage = at("canary")
    stage.world.degrade("churn", Condition(version="2", latency_ratio=20.0))
    stage.world.restart_proxy()
    stage.days(1)

    assert stage.weights() == {"1": 100}
    assert any(d.kind == "observed" and (d.topic, d.verdict) == ("analysis", "failed") for d in stage.log())
    stage.check_books()


def test_c23_a_metrics_outage_holds_alerts_and_aborts_nothing_that_is_healthy(at: At) -> None:
    stage = at("canary")
    stage.world.faults.add(Fault(method="metrics.sample", kind="outage", times=None))
    stage.days(1)
    assert stage.weights() == {"1": 90, "2": 10}
    assert [m.title for m in stage.messages() if "does not answer" in m.title]

    stage.world.faults.clear()
    stage.days(1)
    assert stage.weights() == {"1": 70, "2": 30}
    stage.check_books()


def test_c29_a_closed_gate_asks_once_and_the_canary_is_still_watched_behind_it(at: At) -> None:
    stage = at("canary")
    spec = type(stage.spec).model_validate({**stage.spec.model_dump(), "autonomy": {"shift_traffic": "approve"}})
    stage.world._specs["churn"] = spec
    stage.crew.db.close()
    stage.spec = spec
    stage = stage.again()
    stage.days(1)
    for _ in range(10):
        stage.tick()
    assert [a.status for a in stage.rows(ApprovalRow)] == ["pending"]
    assert len([m for m in stage.messages() if "needs approver" in m.title]) == 1

    stage.world.degrade("churn", Condition(version="2", error_ratio=0.5))
    stage.days(1)
    assert stage.weights() == {"1": 100}
    stage.crew.db.close()


def test_c39_a_raised_share_is_corrected_at_the_next_look_once_and_the_run_goes_on(at: At) -> None:
    stage = at("canary")
    rollout = stage.rollout()
    stage.world.foreign_edit("churn", {"1": 50, "2": 50})
    stage.world.clock.advance_to(stage.clock.now() + QUICK["rollout"]["dwell"] / 24)
    stage.settle()

    assert stage.weights() == {"1": 90, "2": 10}
    corrections = [a for a in stage.verified() if "corrects" in a.args]
    assert len(corrections) == 1
    assert stage.rollout().id == rollout.id
    assert stage.rollout().body["step"] == rollout.body["step"]
    stage.check_books()


def test_c39_a_raised_share_in_the_ab_test_does_not_send_it_back_to_the_canary(at: At) -> None:
    stage = at("ab_test")
    stage.world.foreign_edit("churn", {"1": 5, "2": 95})
    stage.days(1)

    assert stage.weights() == {"1": 50, "2": 50}
    assert stage.rollout().phase == "ab_test"
    assert stage.kinds("run_ab_test") == ["run_ab_test"]
    stage.days(6)
    assert stage.champion() == "2"
    stage.check_books()


def test_c39_a_lowered_share_is_respected_until_a_person_says_otherwise(at: At) -> None:
    stage = at("canary")
    stage.world.foreign_edit("churn", {"1": 100, "2": 0})
    stage.days(3)

    assert stage.weights() == {"1": 100, "2": 0}
    edits = [d for d in stage.log() if d.kind == "observed" and d.topic == "foreign_edit"]
    assert [d.verdict for d in edits] == ["lowered"]
    assert [m.text for m in stage.messages() if "took traffic off version 2" in m.text]
    (run,) = stage.rows(RunRow, status="waiting")
    assert run.waits_for.startswith("a person")

    stage.hold(False)
    stage.settle()
    assert stage.weights() == {"1": 90, "2": 10}
    stage.days(1)
    assert stage.weights() == {"1": 70, "2": 30}
    stage.check_books()


def test_c39_a_second_lowering_after_a_resume_holds_again(at: At) -> None:
    stage = at("canary")
    for _ in range(2):
        stage.world.foreign_edit("churn", {"1": 95, "2": 5})
        stage.days(1)
        assert stage.weights() == {"1": 95, "2": 5}
        stage.hold(False)
        stage.settle()
        assert stage.weights() == {"1": 90, "2": 10}

    assert len([d for d in stage.log() if d.kind == "observed" and d.topic == "foreign_edit"]) == 2
    stage.check_books()


def test_an_edit_between_an_effect_and_its_record_is_judged_as_an_edit(at: At) -> None:
    stage = at("before")
    stage.world.faults.add(Fault(method="mesh.set_weights", kind="crash_after"))
    stage.world.advance()
    with pytest.raises(Killed):
        stage.settle()
    stage.crew.db.close()
    stage.world.foreign_edit("churn", {"1": 50, "2": 50})
    stage = stage.again()
    stage.settle()

    assert stage.weights() == {"1": 90, "2": 10}
    stage.check_books()
    stage.crew.db.close()


def test_c17_one_failing_window_is_measured_again_and_the_second_in_a_row_takes_the_version_off(at: At) -> None:
    stage = at("canary")
    rollout = {**stage.spec.rollout.model_dump(), "failure_limit": 2}
    stage.world._specs["churn"] = stage.spec = type(stage.spec).model_validate(
        {**stage.spec.model_dump(), "rollout": rollout}
    )
    stage.crew.db.close()
    stage = stage.again()
    slow = Condition(version="2", latency_ratio=20.0)
    stage.world.degrade("churn", slow)
    stage.days(1)
    assert stage.weights() == {"1": 90, "2": 10}

    stage.days(1)
    assert stage.weights() == {"1": 100}
    verdicts = [d.verdict for d in stage.log() if d.kind == "observed" and d.topic == "analysis"]
    assert verdicts == ["failing", "failed"]
    stage.check_books()
    stage.crew.db.close()
