from __future__ import annotations

from typing import Any

import pytest

from orchestrator.diagnosis import Symptoms, diagnose

HEALTHY: dict[str, Any] = {"signal": "loss_alarm", "server_ready": True}
LOSS: dict[str, Any] = {"loss_alarm": True, "loss": 0.31, "reference_loss": 0.24}
MISSED: dict[str, Any] = {"goal_missed": "roc_auc 0.69 misses the goal"}
RISEN: dict[str, Any] = {"loss_risen": True, "loss": 0.31, "reference_loss": 0.24}
OFF: dict[str, Any] = {"calibration": "probabilities are off"}
MAJOR: dict[str, Any] = {"drift_level": "major", "drifting_features": ("spend", "visits")}


@pytest.mark.parametrize(
    ("measured", "cause", "because"),
    [
        pytest.param(
            {"quality_findings": ("spend: a factor of 1000",)}, "data_fault", "factor of 1000", id="data-fault"
        ),
        pytest.param(
            {"quality_findings": ("x",), **LOSS, "server_ready": False}, "data_fault", "x", id="data-before-all"
        ),
        pytest.param({"skew": "spend: 9 %", "quality_findings": ("x",)}, "skew", "spend: 9 %", id="skew-before-data"),
        pytest.param({"server_ready": False}, "serving_fault", "health check", id="server-down"),
        pytest.param({"error_ratio": 0.2}, "serving_fault", "20.0%", id="champion-answers-errors"),
        pytest.param({"canary_failed": True}, "bad_release", "failed its analysis", id="failed-canary"),
        pytest.param({"candidate_serving": True, **LOSS}, "bad_release", "new version", id="loss-in-the-bake-window"),
        pytest.param(
            {"candidate_serving": True, "server_ready": False},
            "bad_release",
            "bake window",
            id="server-down-in-the-bake",
        ),
        pytest.param({**LOSS, **MAJOR}, "covariate_shift_harmful", "spend, visits", id="loss-and-drift"),
        pytest.param({**LOSS, "label_rate_shift": 6.0}, "prior_shift", "+6.0", id="loss-and-other-labels"),
        pytest.param({**LOSS, "label_rate_shift": 6.0, "by_rank": True}, "concept_drift", "0.3100", id="worse-ranking"),
        pytest.param({**LOSS, "label_rate_shift": 3.9}, "concept_drift", "0.3100", id="labels-within-their-noise"),
        pytest.param({**LOSS, "confined": "only in plan=a"}, "segment_regression", "plan=a", id="loss-in-one-segment"),
        pytest.param(
            {"confined": "only in plan=a", **MAJOR},
            "segment_regression",
            "plan=a",
            id="a-segment-and-drift",
        ),
        pytest.param(
            {"confined": "only in plan=a", "candidate_serving": True},
            "bad_release",
            "new version",
            id="a-segment-in-the-bake-window",
        ),
        pytest.param(LOSS, "concept_drift", "0.3100 against 0.2400", id="loss-alone"),
        pytest.param({"backtest": "win", "backtest_z": 3.4}, "stale_model", "3.40", id="a-newer-fit-wins"),
        pytest.param(
            {"backtest": "win", **MAJOR}, "covariate_shift_harmful", "beats", id="a-newer-fit-wins-under-drift"
        ),
        pytest.param(MAJOR, "covariate_shift_harmless", "no loss alarm", id="drift-alone"),
        pytest.param({}, "insufficient_evidence", "loss_alarm", id="nothing-else-measured"),
        pytest.param(MISSED, "insufficient_evidence", "misses the goal", id="a-goal-beyond-a-champion-as-good-as-ever"),
        pytest.param({**MISSED, **RISEN}, "concept_drift", "0.3100 against 0.2400", id="a-goal-and-a-higher-loss"),
        pytest.param({**MISSED, **MAJOR}, "covariate_shift_harmful", "misses the goal", id="a-goal-and-drift"),
        pytest.param({**MISSED, **RISEN, **MAJOR}, "covariate_shift_harmful", "0.3100", id="a-goal-a-loss-and-drift"),
        pytest.param(
            {**MISSED, **RISEN, "perhaps_confined": "only in plan=b"},
            "insufficient_evidence",
            "misses the goal",
            id="a-goal-and-a-loss-that-one-segment-may-carry",
        ),
        pytest.param({**OFF}, "prior_shift", "are off", id="probabilities-off"),
        pytest.param({**OFF, **LOSS, "by_rank": True}, "concept_drift", "are off", id="probabilities-and-ranking-off"),
        pytest.param(
            {**OFF, **MISSED, **RISEN, "by_rank": True}, "concept_drift", "are off", id="off-and-a-goal-missed"
        ),
        pytest.param({**OFF, **MISSED}, "prior_shift", "are off", id="probabilities-off-and-a-goal-out-of-reach"),
        pytest.param({"drift_level": "warn"}, "insufficient_evidence", "loss_alarm", id="a-warning-is-no-cause"),
        pytest.param({"backtest": "lose"}, "insufficient_evidence", "loss_alarm", id="a-lost-backtest-is-no-cause"),
    ],
)
def test_a_cause_needs_its_evidence(measured: dict[str, Any], cause: str, because: str) -> None:
    found = diagnose(Symptoms(**{**HEALTHY, **measured}))

    assert found.cause == cause
    assert any(because in reason for reason in found.evidence_for)


@pytest.mark.parametrize(
    ("measured", "against"),
    [
        pytest.param({"quality_findings": ("x",)}, "labels of these days are not due yet", id="data-fault"),
        pytest.param(MAJOR, "is not known yet", id="drift-that-nobody-backtested"),
        pytest.param({"backtest": "win"}, "no major drift", id="stale-model"),
        pytest.param({**LOSS, "label_rate_shift": -5.0}, "no major drift", id="prior-shift"),
        pytest.param({}, "no hard finding", id="insufficient"),
        pytest.param({**MISSED, **RISEN}, "has not alarmed", id="a-goal-missed-before-any-alarm"),
        pytest.param(
            {**MISSED, **RISEN, "perhaps_confined": "only in plan=b"}, "only in plan=b", id="perhaps-a-segment"
        ),
        pytest.param({**MISSED, **MAJOR}, "reference tolerates", id="a-goal-missed-by-a-champion-as-good-as-ever"),
    ],
)
def test_what_speaks_against_a_cause_is_named_too(measured: dict[str, Any], against: str) -> None:
    found = diagnose(Symptoms(**{**HEALTHY, **measured}))

    assert any(against in reason for reason in found.evidence_against)


def test_harmless_drift_that_lost_its_backtest_has_nothing_against_it() -> None:
    found = diagnose(Symptoms(signal="major_drift", server_ready=True, backtest="lose", **MAJOR))

    assert found.cause == "covariate_shift_harmless"
    assert found.evidence_against == ()


def test_causes_that_were_looked_at_are_kept_with_the_reason_for_leaving_them() -> None:
    found = diagnose(Symptoms(**{**HEALTHY, **LOSS}))

    assert set(found.alternatives) == {
        "data_fault", "serving_fault", "bad_release", "covariate_shift_harmful", "prior_shift",
    }  # fmt: skip
    assert all(found.alternatives.values())


def test_what_was_not_measured_is_evidence_for_nothing() -> None:
    assert diagnose(Symptoms(signal="major_drift")).cause == "insufficient_evidence"
