"""A scenario from its file to its gates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.run import Job, run_job
from evals.scenario import Scenario

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


def test_rows_of_the_graph_may_be_lost_between_any_two_ticks() -> None:
    kept = run_job(Job(scenario=scenario(), seed=1))

    assert run_job(Job(scenario=scenario(), seed=1, forget_threads=True)) == kept


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


def test_a_kill_around_an_effect_changes_nothing_of_the_end() -> None:
    job = Job(scenario=scenario(), seed=1)
    calm = run_job(job)

    for kill_before in (True, False):
        killed = run_job(replace(job, kill_at=4, kill_before=kill_before))
        assert killed.passed, killed.why
        assert killed.gates == calm.gates


def test_an_error_of_the_harness_is_told_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("evals.run.set_stage", lambda *a, **k: (_ for _ in ()).throw(ValueError("broken harness")))

    result = run_job(Job(scenario=scenario(), seed=1))

    assert not result.passed
    assert result.error.startswith("ValueError at ")
    assert result.gates == {}
