"""A scenario from its file to its gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.bookmark import branch_day, place
from evals.run import Job, escalation_in, run_all, run_job
from evals.scenario import Scenario
from evals.stage import set_stage_at
from evals.twins import longest, play_twin

QUICK: dict[str, Any] = {
    "monitoring": {"cadence": "P8D", "backtest": "P4D", "min_blocks": 3, "recovery": "P1D"},
    "rollout": {
        "steps": [10, 30], "dwell": "P1D", "bake": "P1D", "minimum_requests": 5, "deadline": "P2D",
        "ab_test": {"percent": 50, "horizon": "P3D", "minimum_samples": 50},
    },
}  # fmt: skip


def scenario(**changes: Any) -> Scenario:
    document: dict[str, Any] = {
        "id": "one",
        "title": "one",
        "family": "drift",
        "difficulty": "easy",
        "days": 6,
        "models": [{"name": "churn", "rows_per_day": 120, "history_days": 20, "spec": QUICK}],
        "truth": {"cause": []},
        "wanted": [{"state": "champion", "version": "first"}, {"state": "incident", "count": 0}],
        "deadline_days": 0,
        "twin": False,
    }
    return Scenario.model_validate({**document, **changes})


def test_a_quiet_world_passes_and_gives_the_same_digest_again() -> None:
    first, second = run_job(Job(scenario=scenario(), seed=1)), run_job(Job(scenario=scenario(), seed=1))

    assert first.error == ""
    assert first.passed, first.why
    assert first == second
    assert run_job(Job(scenario=scenario(), seed=2)).digest != first.digest


def test_a_wanted_state_that_is_not_reached_fails_with_what_is_there() -> None:
    wanted = [{"state": "champion", "version": "newer"}]

    result = run_job(Job(scenario=scenario(wanted=wanted), seed=1))

    assert not result.passed
    assert result.gates["wanted"] is False
    assert "the champion of churn is version 1 (first)" in result.why["wanted"]


def test_a_unit_fault_is_quarantined_and_its_twin_stays_untouched() -> None:
    result = run_job(Job(scenario=scenario(
        days=10, twin=True, deadline_days=2,
        timeline=[{"day": 4, "inject": "unit", "features": ["spend"], "magnitude": 1000, "until_day": 6}],
        truth={"cause": ["data_fault"]},
        wanted=[{"state": "quarantined", "days": [4, 5], "exactly": True}, {"state": "incident", "status": "either"}],
        must=[{"effect": "tell"}], must_not=[{"effect": "train"}, {"effect": "roll_back"}],
    ), seed=3))  # fmt: skip

    assert result.passed, (result.error, result.why)
    assert result.ttd_min == 1440
    assert result.twin_false_actions == 0


def test_an_error_of_the_harness_is_told_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("evals.run.set_stage", lambda *a, **k: (_ for _ in ()).throw(ValueError("broken harness")))

    result = run_job(Job(scenario=scenario(), seed=1))

    assert not result.passed
    assert result.error.startswith("ValueError at ")
    assert result.gates == {}


def test_a_fault_waits_for_its_moment_and_one_that_never_came_fails_the_run() -> None:
    edit = {"day": 1, "when": "canary", "inject": "edit_route", "weights": {"champion": 100}}

    result = run_job(Job(scenario=scenario(timeline=[edit]), seed=1))

    assert result.gates["happened"] is False
    assert "waited for canary" in result.why["happened"]


def test_a_forged_answer_waits_for_a_question() -> None:
    forged = {"day": 1, "inject": "forged_answer", "claims": "stranger"}

    result = run_job(Job(scenario=scenario(timeline=[forged]), seed=1))

    assert result.why["happened"] == "forged_answer waited for a question from day 1 on"


def test_an_export_that_no_training_made_says_nothing() -> None:
    result = run_job(Job(scenario=scenario(timeline=[{"day": 1, "inject": "export", "for_days": 2}]), seed=1))

    assert result.gates["happened"] is False
    assert result.why["happened"] == "export of day 1: no training ended while it held"


def test_a_fault_that_waits_for_the_canary_begins_on_the_morning_after_it_and_lasts_its_days() -> None:
    turned = {"day": 2, "inject": "concept", "magnitude": 0.8}
    silent = {"inject": "platform", "method": "metrics.sample", "kind": "no_data", "times": None, "for_days": 2}
    while_silent = {"after": "platform", "for_days": 2}
    quiet = scenario(
        days=26, timeline=[turned, {"day": 2, "when": "canary", **silent}], truth={"cause": ["concept_drift", "stale_model"]},
        wanted=[{"state": "champion", "version": "newer"}], deadline_days=24,
        must_not=[{"effect": "promote", **while_silent}],
    )  # fmt: skip

    result = run_job(Job(scenario=quiet, seed=1))

    assert result.gates["happened"], result.why
    assert result.gates["must_not"], result.why
    days = {moment.what.split(" ")[0]: moment.day for moment in reversed(result.timeline)}
    assert days["platform"] == days["traffic_to_candidate"] + 1


def test_a_hold_that_waits_for_the_canary_is_taken_back_after_its_days() -> None:
    turned = {"day": 2, "inject": "concept", "magnitude": 0.8}
    held = {"day": 2, "when": "canary", "inject": "hold", "for_days": 3, "harmless": True}
    rests = scenario(
        days=28, timeline=[turned, held], truth={"cause": ["concept_drift", "stale_model"]},
        wanted=[{"state": "champion", "version": "newer"}], deadline_days=26,
        must_not=[{"effect": "promote", "after": "hold", "for_days": 3}],
    )  # fmt: skip

    result = run_job(Job(scenario=rests, seed=1))

    assert result.passed, result.why
    days = {moment.what.split(" ")[0]: moment.day for moment in reversed(result.timeline)}
    assert days["promote"] >= days["hold"] + 3


def test_the_first_champion_serves_whoever_answers_later_and_whatever_the_crew_may_do() -> None:
    silent = [{"name": "lead", "roles": ["approver"], "answer": "ignore"}]
    for autonomy in ({"promote": "approve"}, {"risky": "advise"}):
        models = [{"name": "churn", "rows_per_day": 120, "history_days": 20, "spec": {**QUICK, "autonomy": autonomy}}]

        result = run_job(Job(scenario=scenario(models=models, people=silent), seed=1))

        assert result.passed, result.why


def test_one_upstream_table_under_two_models_is_one_incident() -> None:
    model = {"rows_per_day": 120, "history_days": 20, "spec": QUICK, "tables": {"crm": ["spend"]}}
    shared = scenario(
        days=8, models=[{"name": "churn", **model}, {"name": "upsell", **model}],
        timeline=[{"day": 2, "inject": "unit", "table": "crm", "magnitude": 1000, "until_day": 3}],
        truth={"cause": ["data_fault"]},
        wanted=[{"state": "incident", "count": 1}, {"state": "incident", "model": "upsell", "count": 1}],
        deadline_days=3,
    )  # fmt: skip

    result = run_job(Job(scenario=shared, seed=1))

    assert result.passed, result.why


@pytest.mark.parametrize("names", [("churn", "upsell"), ("upsell", "churn")])
def test_a_model_that_shows_the_fault_of_another_one_later_has_no_incident_of_its_own(names: tuple[str, str]) -> None:
    model = {"rows_per_day": 120, "history_days": 20, "spec": QUICK}
    fault = {"inject": "unit", "features": ["spend"], "magnitude": 1000, "until_day": 5}
    shared = scenario(
        days=9, models=[{"name": name, **model} for name in names],
        timeline=[{"day": 2, "model": "churn", **fault}, {"day": 4, "model": "upsell", **fault}],
        truth={"cause": ["data_fault"]}, wanted=[{"state": "incident", "count": 1}], deadline_days=5,
    )  # fmt: skip

    result = run_job(Job(scenario=shared, seed=1))

    assert result.passed, result.why


@pytest.mark.parametrize(
    ("changes", "escalation"),
    [
        pytest.param({}, "needless", id="nobody-is-expected"),
        pytest.param({"people": [{"name": "lead"}]}, "welcome", id="somebody-answers"),
        pytest.param({"people": [{"name": "lead"}], "wanted": [{"state": "asked"}]}, "needed", id="asked"),
        pytest.param({"wanted": [{"state": "incident", "resolution": ["escalated"]}]}, "needed", id="handed-over"),
        pytest.param(
            {"wanted": [{"state": "incident", "resolution": ["escalated", "recovered"]}]}, "needless", id="either-way"
        ),
        pytest.param({"escalation": "welcome"}, "welcome", id="as-it-says"),
    ],
)
def test_a_scenario_lets_one_see_whether_a_person_is_needed(changes: dict[str, Any], escalation: str) -> None:
    assert escalation_in(scenario(**changes)) == escalation


def test_scenarios_of_one_world_share_one_twin_and_get_the_same_results() -> None:
    fault = {"inject": "unit", "features": ["spend"], "magnitude": 1000}
    short = scenario(id="short", days=5, twin=True, timeline=[{"day": 2, **fault}], truth={"cause": ["data_fault"]})
    long = scenario(id="long", days=7, twin=True, timeline=[{"day": 3, **fault}], truth={"cause": ["data_fault"]})
    named = scenario(id="named", twin=True, models=[{"name": "other", "rows_per_day": 120}])
    runs = [(short, 1), (long, 1), (long, 2), (named, 1)]

    assert [(s.id, seed) for s, seed in longest(runs).values()] == [("long", 1), ("long", 2), ("named", 1)]
    alone = [run_job(Job(scenario=s, seed=1)) for s in (short, long)]
    assert run_all([short, long], seeds=1, n_jobs=2) == alone


def test_a_run_that_goes_on_from_its_twin_ends_as_if_it_had_been_played_from_the_beginning(tmp_path: Path) -> None:
    turned = scenario(
        days=16, twin=True, timeline=[{"day": 5, "inject": "concept", "magnitude": 0.8}], deadline_days=10,
        truth={"cause": ["concept_drift", "stale_model"]}, wanted=[{"state": "champion", "version": "newer"}],
    )  # fmt: skip
    twin = play_twin(turned, 1, tmp_path, bookmarks=[5])

    stage = set_stage_at(place(tmp_path, 5), turned, 5, seed=1, folder=tmp_path / "seen")
    going_on = run_job(Job(scenario=turned, seed=1, twin=twin, bookmark=place(tmp_path, 5)))

    assert list(stage.scene.world.model("churn").versions), "the first champion came along"
    assert [day for day, _ in zip(stage.play(), range(1), strict=False)] == [5]
    assert going_on.error == ""
    assert going_on.actions > 0
    assert going_on == run_job(Job(scenario=turned, seed=1))


def test_a_scenario_without_a_fault_is_played_from_its_set_up_on() -> None:
    busy = {"day": 3, "inject": "volume", "magnitude": 1.2, "harmless": True}

    assert branch_day(scenario(timeline=[busy])) == 0
    assert branch_day(scenario(timeline=[busy, {"day": 4, "inject": "concept", "magnitude": 1}])) == 3
