"""Scenarios over a team's recorded rows."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evals.loading import load_scenario, spec_of
from evals.run import Job, run_job
from evals.stage import truth_of
from evals.world.truth import Drift, day_rows
from state.errors import InputError

SPEC = """\
model: orders
owner: growth
task: binary
data: {kind: files, path: orders.csv, time: at, entity: [shop], label: {column: returned, positive: 1, delay: P1D}}
features:
  - {name: price, type: numeric}
  - {name: channel, type: categorical}
training: {kind: recipe, candidates: [{name: logistic, estimator: logistic_regression}]}
objective: {metric: roc_auc, op: ">=", value: 0.5}
gates: [{metric: roc_auc, op: ">=", value: 0.5}]
"""
SCENARIO = """\
id: replayed
title: replayed
family: drift
difficulty: easy
days: 6
models:
  - name: orders
    replay: {spec: orders.yaml, first_day: 2025-06-21}
    history_days: 20
    rows_per_day: 60
timeline:
  - {day: 4, inject: unit, features: [price], magnitude: 100, until_day: 5}
truth: {cause: [data_fault]}
wanted:
  - {state: quarantined, days: [4], exactly: true}
deadline_days: 2
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A scenario file beside a spec and 30 days of 80 recorded orders, 1 to 30 June 2025."""
    rng = np.random.default_rng(5)
    n = 30 * 80
    price = rng.normal(50, 8, n).round(2)
    at = [f"2025-06-{1 + k // 80:02d}T{k % 80 // 4:02d}:{k % 4 * 15:02d}:00Z" for k in range(n)]
    returned = (rng.random(n) < 1 / (1 + np.exp(-(price - 50) / 8))).astype(int)
    rows = pl.DataFrame({
        "at": at, "shop": rng.integers(0, 40, n), "price": price, "channel": rng.choice(["web", "app"], n),
        "returned": pl.Series(returned).cast(pl.String).set(pl.Series(np.arange(n) % 20 == 0), ""),
    })  # fmt: skip
    rows.write_csv(tmp_path / "orders.csv")
    (tmp_path / "orders.yaml").write_text(SPEC)
    scenario = tmp_path / "replayed.yaml"
    scenario.write_text(SCENARIO)
    return scenario


def test_recorded_rows_are_served_on_the_days_of_the_scenario_and_thinned_by_the_seed(path: Path) -> None:
    model = load_scenario(path).models[0]
    start = date(2026, 3, 2)
    spec, truth = spec_of(model), truth_of(model, start)
    source = pl.read_csv(path.with_name("orders.csv")).filter(pl.col("at").str.starts_with("2025-06-22"))

    day = day_rows(spec, truth, seed=1, day=start + timedelta(days=1))
    other = day_rows(spec, truth, seed=2, day=start + timedelta(days=1))

    assert day.frame.height == other.frame.height == 60
    assert not day.frame["price"].equals(other.frame["price"])
    assert set(day.frame["event_time"].dt.date()) == {start + timedelta(days=1)}
    # Times of the recording are each of their own, so they say which row is which.
    times = (day.frame["event_time"] - timedelta(days=truth.replay.shift_days if truth.replay else 0)).dt.strftime(
        "%H:%M"
    )
    recorded = source.with_columns(pl.col("at").str.slice(11, 5))
    same = pl.DataFrame({"at": times, "served": day.frame["price"], "outcome": day.outcome}).join(recorded, on="at")
    assert len(same) == 60
    assert np.allclose(same["served"], same["price"])
    told = same["returned"].cast(pl.Float64, strict=False)
    assert (same["outcome"] == told.fill_null(0.0)).all()
    assert day.labels.height == told.count() < 60
    assert (day.labels["available_at"].min() - day.frame["event_time"].min()) >= timedelta(days=1)  # type: ignore[operator]


def test_faults_fall_on_recorded_rows_and_spare_the_others(path: Path) -> None:
    model = load_scenario(path).models[0]
    start = date(2026, 3, 2)
    spec, truth = spec_of(model), truth_of(model, start)
    truth.drifts.append(Drift(kind="skew", start=start.isoformat(), magnitude=0.5, features=("price",)))

    day, calm = (day_rows(spec, t, seed=1, day=start) for t in (truth, truth_of(model, start)))

    assert day.offline["price"].equals(calm.frame["price"])
    n_wrong = (day.frame["price"] != calm.frame["price"]).sum()
    assert 15 <= n_wrong <= 45
    assert day.frame["channel"].equals(calm.frame["channel"])


def test_a_fault_in_recorded_rows_is_found_and_their_healthy_twin_is_left_alone(path: Path) -> None:
    result = run_job(Job(scenario=load_scenario(path), seed=1))

    assert result.error == ""
    assert result.passed, result.why
    assert result.twin_false_actions == 0


@pytest.mark.parametrize(("old", "new", "message"), [
    pytest.param("inject: unit, features: [price], magnitude: 100, until_day: 5", "inject: concept, magnitude: 1",
                 "replayed.yaml:12: timeline[0].inject: `concept` needs simulated rows", id="a-truth-that-nobody-knows"),
    pytest.param("days: 6", "days: 40", "days: the recording ends on 2025-06-30, and 40 live days", id="too-long"),
    pytest.param("2025-06-21", "2024-01-01", "first_day is 2024-01-01: the recording begins on 2025-06-01", id="too-early"),
    pytest.param("orders.yaml", "none.yaml", "models[0].replay.spec:", id="no-such-spec"),
    pytest.param("rows_per_day: 60", "signal: 2", "models[0].signal has no meaning beside `replay`", id="no-meaning"),
    pytest.param("rows_per_day: 60", "spec: {features: []}", "models[0].spec.features is that of the replayed spec",
                 id="not-to-be-changed"),
    pytest.param("[price]", "[weight]", "no model has a feature 'weight'; known are channel, price", id="unknown-feature"),
])  # fmt: skip
def test_what_cannot_be_asked_of_a_recording_is_named_by_field(path: Path, old: str, new: str, message: str) -> None:
    path.write_text(SCENARIO.replace(old, new))

    with pytest.raises(InputError) as caught:
        load_scenario(path)

    assert message in str(caught.value)


def test_a_recording_that_cannot_be_read_is_named_with_its_column(path: Path) -> None:
    spec = path.with_name("orders.yaml")
    spec.write_text(SPEC.replace("column: returned", "column: gone"))

    with pytest.raises(InputError, match=r"replay.spec: .*gone"):
        load_scenario(path)
