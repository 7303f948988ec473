"""Rows whose truth turns over at a known time, and real packages fitted on them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from state.contract import Contract
from state.spec import Candidate, ModelSpec
from tools.estimators import fit_model
from tools.onnx_export import export_onnx
from tools.packaging import write_package
from tools.training_rows import labelled_rows

Task = Literal["binary", "multiclass", "regression"]
START = datetime(2026, 3, 2, tzinfo=UTC)
"""First moment of the traffic; the history lies before it."""
DELAY = timedelta(days=3)
METRICS = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "mae"}
ESTIMATORS = {"binary": "logistic_regression", "multiclass": "logistic_regression", "regression": "ridge"}
CLASSES: dict[str, tuple[str, ...] | None] = {"binary": ("0", "1"), "multiclass": ("a", "b", "c"), "regression": None}


def spec_of(task: Task = "binary", **changes: Any) -> ModelSpec:
    return ModelSpec.model_validate({
        "model": "parcels", "owner": "depot", "task": task,
        "data": {"kind": "files", "path": "rows.parquet", "time": "at", "label": {"column": "late", "delay": DELAY}},
        "features": [{"name": "weight", "type": "numeric"}, {"name": "lane", "type": "categorical"}],
        "training": {"kind": "recipe", "candidates": [{"name": "linear", "estimator": ESTIMATORS[task]}]},
        "objective": {"metric": METRICS[task], "op": "<=" if task == "regression" else ">=", "value": 0.5},
        "monitoring": {"cadence": "P7D", "backtest": "P14D", "min_blocks": 5},
        **changes,
    })  # fmt: skip


def rows_of(
    task: Task, first: datetime, n_days: int, *, per_day: int = 40, turn: datetime | None = None, seed: int = 5
) -> pl.DataFrame:
    """Columns of the history, and `label`; from `turn` on a heavy parcel means the opposite."""
    rng = np.random.default_rng(seed)
    n = n_days * per_day
    minutes = np.sort(rng.integers(0, 1_440, (n_days, per_day)), axis=1) + 1_440 * np.arange(n_days)[:, None]
    times = [first + timedelta(minutes=int(m)) for m in minutes.ravel()]
    weight, lane = rng.normal(size=n), rng.choice(["a", "b"], n)
    sign = np.array([-1.0 if turn is not None and at >= turn else 1.0 for at in times])
    signal = sign * weight + 0.5 * (lane == "a") + rng.normal(scale=0.6, size=n)
    label = {
        "binary": (signal > 0).astype(float),
        "multiclass": np.digitize(signal, [-0.6, 0.6]).astype(float),
        "regression": signal,
    }[task]
    return pl.DataFrame({
        "request_id": [f"{seed}-{i:05d}" for i in range(n)], "entity": [f"e{i % 9}" for i in range(n)],
        "event_time": pl.Series(times, dtype=pl.Datetime("us", "UTC")), "weight": pl.Series(weight, dtype=pl.Float32),
        "lane": lane.tolist(), "label": label,
    })  # fmt: skip


def package_of(spec: ModelSpec, rows: pl.DataFrame, directory: Path) -> Path:
    """A real package of the spec's candidate, fitted on `rows`."""
    classes = CLASSES[spec.task]
    data = labelled_rows(rows, spec, n_classes=len(classes or ()))
    [candidate] = candidates(spec)
    fitted = fit_model(data, candidate, task=spec.task, declared=spec.features, seed=42)
    contract = Contract(
        model=spec.model, task=spec.task, features=fitted.features, classes=classes, time="at",
        lineage={"trained_until": rows["event_time"][-1].isoformat()},
    )  # fmt: skip
    return write_package(directory, model=export_onnx(fitted), contract=contract, profile=b"none").directory


def candidates(spec: ModelSpec) -> list[Candidate]:
    assert spec.training.kind == "recipe"
    return list(spec.training.candidates)
