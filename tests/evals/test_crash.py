"""Crash mode: what ends otherwise after a kill fails the scenario, and says where."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evals import crash
from evals.crash import Crash, CrashReport, Ending, Played, crash_scenario, differences, play
from evals.report import as_json, verdicts
from evals.run import RunResult
from evals.scenario import Scenario
from evals.stage import Stage
from evals.world.faults import Fault, Faults, Killed, port_call
from evals.world.world import World
from tests.evals.test_run import QUICK, scenario

TINY = Scenario.model_validate({
    "id": "tiny", "title": "tiny", "family": "adversarial", "difficulty": "easy", "days": 1,
    "models": [{"name": "churn", "rows_per_day": 120, "history_days": 20, "spec": QUICK}],
    "truth": {"cause": []}, "wanted": [{"state": "incident", "count": 0}], "deadline_days": 0, "twin": False,
})  # fmt: skip


def result(**changes: object) -> RunResult:
    known = {"id": "tiny", "family": "adversarial", "difficulty": "easy", "seed": 1, "passed": True}
    return RunResult(**{**known, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def calm() -> Played:
    return play(scenario(), 1, Crash(kind="none"))


def test_every_effect_and_every_state_of_an_action_is_killed_and_a_sound_crew_ends_the_same() -> None:
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        report = crash_scenario(TINY, 1, pool, said.append)

    assert report.n_effects >= 1
    assert report.n_states >= 2
    assert report.n_runs == 2 * report.n_effects + report.n_states + 1
    assert report.problems == ()
    assert said[0] == (
        f"tiny: {report.n_effects} effects and {report.n_states} states of actions in peace, "
        f"{report.n_runs} runs with a crash follow"
    )  # fmt: skip
    assert any("killed once train_candidates of churn verified was committed" in line for line in said)
    assert said[1].startswith(f"tiny: crash 1 of {report.n_runs}, killed before effect 1 (")
    assert said[-1] == (
        f"tiny: crash {report.n_runs} of {report.n_runs}, with every LangGraph row deleted before every tick, "
        "ended the same"
    )  # fmt: skip


@pytest.mark.parametrize("harm", [
    pytest.param(Crash(kind="before", nth=4), id="before-an-effect-of-the-first-champion"),
    pytest.param(Crash(kind="after", nth=4), id="after-it"),
    pytest.param(Crash(kind="once", nth=3), id="once-an-intent-is-committed"),
    pytest.param(Crash(kind="forget"), id="rows-of-the-graph-lost-between-any-two-ticks"),
])  # fmt: skip
def test_days_after_a_kill_end_as_days_without_one(calm: Played, harm: Crash) -> None:
    crashed = play(scenario(), 1, harm)

    assert crashed.error == ""
    assert differences(calm.ending, crashed.ending) == []


def test_what_a_kill_changes_of_the_end_is_named_with_the_effect_and_the_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(stage: Stage) -> None:
        restart(stage)
        stage.scene.world.model("churn").quarantined.append("2026-03-02")

    restart = Stage.restart
    monkeypatch.setattr(Stage, "restart", forgetful)
    monkeypatch.setattr(crash, "_crashes", lambda calm: iter([Crash(kind="after", nth=1, what=calm.methods[0])]))
    with ThreadPoolExecutor(1) as pool:
        report = crash_scenario(TINY, 1, pool, lambda line: None)

    assert report.problems == (
        "killed after effect 1 (pipelines.submit of churn): "
        "world of churn: quarantined ['2026-03-02'], not []",
    )  # fmt: skip


def test_a_kill_that_never_comes_is_a_problem_and_no_pass() -> None:
    assert play(TINY, 1, Crash(kind="before", nth=999)).error == "the kill never came"
    assert play(TINY, 1, Crash(kind="once", nth=999)).error == "the kill never came"


def test_a_run_goes_on_from_any_morning_of_the_run_in_peace_with_the_faults_in_force_then(tmp_path: Path) -> None:
    silent = {"inject": "platform", "method": "metrics.sample", "kind": "no_data", "times": None, "for_days": 3}
    timeline = [
        {"day": 2, "inject": "concept", "magnitude": 0.8}, {"day": 2, "when": "canary", **silent},
        {"day": 17, "inject": "policy_edit", "file": "notes.cedar", "text": "// nothing\n"},
    ]  # fmt: skip
    turned = scenario(days=20, timeline=timeline, truth={"cause": ["concept_drift"], "or_none": True}, deadline_days=18)
    calm = play(turned, 1, Crash(kind="none"), bookmarks=tmp_path)
    began = next(morning for morning in calm.mornings if "platform" in morning.moment.began)

    assert [morning.day for morning in calm.mornings] == [*range(1, 18)]
    for morning in (calm.mornings[0], began, calm.mornings[-1]):
        assert play(turned, 1, Crash(kind="none"), since=morning).ending == calm.ending
    assert calm.mornings[-1].n_effects > calm.mornings[0].n_effects
    assert calm.mornings[-1].n_states > calm.mornings[0].n_states


def test_missing_and_added_rows_are_told_apart() -> None:
    calm: Ending = {"effects": [[1, "churn", "train"], [2, "churn", "tell", None]]}
    crashed: Ending = {"effects": [[1, "churn", "train"], [1, "churn", "train"]]}

    assert differences(calm, calm) == []
    assert differences(calm, crashed) == ["effects: missing (2 churn tell) added (1 churn train)"]


def test_a_difference_fails_the_scenario_under_its_gate_and_stands_in_the_document() -> None:
    report = CrashReport(
        id="tiny", seed=1, n_effects=4, n_states=8, n_runs=17, problems=("killed after effect 2 (x): y",)
    )

    failed = crash._graded(result(gates={"cause": True}), [report])
    other = crash._graded(result(id="other"), [report])

    assert failed.gates == {"cause": True, "crash": False}
    assert failed.passed is False
    assert failed.why["crash"] == "1 of 17 crashed runs ended otherwise; killed after effect 2 (x): y"
    assert other == result(id="other")
    document = as_json(verdicts([failed]), crashes=[report])
    assert document["crash"] == [
        {
            "id": "tiny",
            "seed": 1,
            "n_effects": 4,
            "n_states": 8,
            "n_runs": 17,
            "problems": ("killed after effect 2 (x): y",),
        }
    ]


def test_a_call_made_again_after_a_kill_counts_once_for_the_faults_of_the_scenario() -> None:
    class Port:
        def __init__(self, world: World) -> None:
            self.faults = world.faults

        @port_call("mesh.stage", effect=True)
        def stage(self, model: str) -> str:
            return model

    world = World.__new__(World)
    world.faults = Faults()
    of_scenario = Fault(method="mesh.*", kind="outage", nth=2)
    world.faults.add(
        crash._Kill(method="*", kind="crash_before", nth=1, effects_only=True, world=world.faults), of_scenario
    )
    port = Port(world)

    with pytest.raises(Killed):
        port.stage("churn")
    assert port.stage("churn") == "churn"
    assert of_scenario.n_matched == 1
