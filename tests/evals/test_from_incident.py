"""A recorded incident becomes a scenario that can be checked and played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from evals.from_incident import scenario_from
from evals.injections import DataChange
from evals.loading import load_scenario, spec_of
from evals.stage import Stage, set_stage
from orchestrator.diagnosis import Cause
from state import store
from state.errors import InputError
from state.rows import IncidentRow, SignalRow
from tests.evals.test_run import scenario

FAULT = {"day": 4, "inject": "unit", "features": ["spend"], "magnitude": 1000, "until_day": 6}


def test_what_is_recorded_is_taken_over_and_what_is_assumed_is_said(tmp_path: Path) -> None:
    origin = scenario(days=8, timeline=[FAULT], truth={"cause": ["data_fault"]})
    stage = set_stage(origin, seed=3, folder=tmp_path / "run")
    for _ in stage.play():
        continue
    file = tmp_path / "again.yaml"
    with stage.scene.crew.db.transaction() as conn:
        incident = store.select(conn, IncidentRow)[0]
        file.write_text(scenario_from(conn, incident.id))
        with pytest.raises(InputError, match="incident 'nobody' does not exist"):
            scenario_from(conn, "nobody")
        for row in store.select(conn, SignalRow):
            row.body = {}
            store.put(conn, row, fence=None)
        with pytest.raises(InputError, match="cannot be expressed as a scenario"):
            scenario_from(conn, incident.id)
    stage.scene.crew.db.close()

    again = load_scenario(file)

    change = again.timeline[0]
    assert isinstance(change, DataChange)
    assert (change.inject, change.features, change.magnitude) == ("unit", ["spend"], 1000)
    assert change.until_day is not None and change.until_day - change.day == 2
    assert again.truth.cause == ["data_fault"]
    assert (again.start.toordinal() + change.day) == origin.start.toordinal() + 4
    model = again.models[0]
    assert (model.name, model.label_delay_days, model.pace) == ("churn", 2, "shipped")
    assert abs(model.rows_per_day - 120) < 30
    first = spec_of(origin.models[0])
    assert (spec_of(model).monitoring, spec_of(model).rollout) == (first.monitoring, first.rollout)
    states = {wanted.state: wanted for wanted in again.wanted}
    assert states["champion"].version == "first"  # type: ignore[union-attr]
    assert states["quarantined"].days == [change.day, change.day + 1]  # type: ignore[union-attr]
    text = file.read_text()
    assert "# Taken from the record:" in text
    assert "# - rows, their true coefficients" in text


@pytest.mark.parametrize(
    ("fault", "cause", "inject", "share"),
    [
        ({"inject": "missing", "features": ["spend"], "magnitude": 0.5}, "data_fault", "missing", 0.5),
        ({"inject": "skew", "features": ["spend"], "magnitude": 0.3, "release": "kept"}, "skew", "skew", 0.1),
    ],
)
def test_missing_values_and_skew_are_told_again(
    tmp_path: Path, fault: dict[str, Any], cause: str, inject: str, share: float
) -> None:
    origin = scenario(days=8, timeline=[{"day": 4, "until_day": 6, **fault}], truth={"cause": [cause]})
    stage = set_stage(origin, seed=3, folder=tmp_path / "run")
    for _ in stage.play():
        continue
    file = tmp_path / "again.yaml"
    with stage.scene.crew.db.transaction() as conn:
        (incident,) = store.select(conn, IncidentRow)
        file.write_text(scenario_from(conn, incident.id))
    stage.scene.crew.db.close()

    change = load_scenario(file).timeline[0]
    assert isinstance(change, DataChange)
    assert (incident.cause, change.inject, change.features) == (cause, inject, ["spend"])
    assert change.magnitude == pytest.approx(share, abs=0.12)


NOT_RECORDED = {
    "covariate_shift_harmful": "no numeric feature", "covariate_shift_harmless": "no numeric feature",
    "insufficient_evidence": "found no cause", "skew": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A managed model with one incident, whose cause a test then rewrites."""
    origin = scenario(days=6, timeline=[{**FAULT, "day": 3, "until_day": 4}], truth={"cause": ["data_fault"]})
    stage = set_stage(origin, seed=3, folder=tmp_path_factory.mktemp("recorded") / "run")
    for _ in stage.play():
        continue
    yield stage
    stage.scene.crew.db.close()


@pytest.mark.parametrize(("cause", "body", "level"), [
    *(pytest.param(cause, {}, None, id=cause) for cause in get_args(Cause) if cause != "segment_regression"),
    pytest.param("segment_regression", {"segment": "plan=b"}, "b", id="segment-of-the-world"),
    pytest.param("segment_regression", {"segment": "plan=business"}, "a", id="segment-of-real-data"),
    pytest.param("segment_regression", {"segment": "mobile=True"}, "true", id="segment-of-a-flag"),
    pytest.param("segment_regression", {}, "", id="segment-unknown"),
])  # fmt: skip
def test_every_cause_becomes_a_scenario_or_is_refused_with_a_reason(
    recorded: Stage, tmp_path: Path, cause: str, body: dict[str, Any], level: str | None
) -> None:
    refused = NOT_RECORDED.get(cause, "is no level" if level == "" else None)
    with recorded.scene.crew.db.transaction() as conn:
        incident = store.select(conn, IncidentRow)[0]
        incident.cause, incident.body = cause, {**{k: v for k, v in incident.body.items() if k != "segment"}, **body}
        store.put(conn, incident, fence=None)
        if refused is not None:
            with pytest.raises(InputError, match=f"cannot be expressed as a scenario: .*{refused}"):
                scenario_from(conn, incident.id)
            return
        text = scenario_from(conn, incident.id)
    file = tmp_path / "again.yaml"
    file.write_text(text)

    again = load_scenario(file)

    assert again.truth.cause == [cause]
    if level is not None:
        change = again.timeline[0]
        assert isinstance(change, DataChange)
        assert (change.inject, change.level) == ("segment", level)
