"""A recorded incident becomes a scenario that can be checked and played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.from_incident import scenario_from
from evals.injections import DataChange
from evals.loading import load_scenario, spec_of
from evals.stage import set_stage
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
