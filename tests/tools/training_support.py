"""Small data sets with a known truth, and specs that read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from state.spec import Candidate, ModelSpec
from tools.importer import import_files
from tools.training_rows import Rows, labelled_rows, recipe_of

START = datetime(2024, 1, 1, tzinfo=UTC)
SMALL_BOOSTING = {"name": "boosting", "estimator": "hist_gradient_boosting", "params": {"max_iter": 20}}
FOREST = {"name": "forest", "estimator": "random_forest", "params": {"n_estimators": 20, "n_jobs": 1}}
LINEAR = {"name": "linear", "estimator": "logistic_regression"}
RIDGE = {"name": "ridge", "estimator": "ridge"}
N_CLASSES = {"binary": 2, "multiclass": 3, "regression": 0}
METRIC = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}


def make_spec(task: str = "binary", *candidates: dict[str, Any], **changes: Any) -> ModelSpec:
    """A spec of model `demo` on the columns of `make_frame`."""
    document: dict[str, Any] = {
        "model": "demo",
        "owner": "team",
        "task": task,
        "data": {"kind": "files", "path": "rows.parquet", "time": "at", "label": {"column": "target"}},
        "features": [
            {"name": "amount", "type": "numeric"},
            {"name": "age", "type": "numeric", "low": 0, "high": 120},
            {"name": "noise", "type": "numeric"},
            {"name": "city", "type": "categorical"},
            {"name": "member", "type": "boolean"},
        ],
        "training": {
            "kind": "recipe",
            "candidates": list(candidates) or [SMALL_BOOSTING],
            "folds": 3,
            "holdout": "P5D",
        },
        "objective": {"metric": METRIC[task], "op": "<=" if METRIC[task] != "roc_auc" else ">=", "value": 0.6},
    }
    return ModelSpec.model_validate({**document, **changes})


def candidate_of(spec: ModelSpec) -> Candidate:
    """The first candidate of its recipe."""
    return recipe_of(spec).candidates[0]


def make_frame(task: str = "binary", *, n_rows: int = 1_200, n_days: int = 20, seed: int = 0) -> pl.DataFrame:
    """Stored rows, evenly over the days: `amount` and `city` carry the label, `noise` does not; cells are missing."""
    rng = np.random.default_rng(seed)
    amount, age = rng.lognormal(3, 1, n_rows), rng.uniform(18, 90, n_rows)
    city = rng.integers(0, 30, n_rows)
    signal = np.log(amount) - 3 + (city % 3) - 1 + 0.3 * rng.normal(size=n_rows)
    label = {
        "binary": (signal > 0).astype(float),
        "multiclass": np.digitize(signal, [-0.7, 0.7]).astype(float),
        "regression": 100 + 20 * signal,
    }[task]
    amount[rng.random(n_rows) < 0.05] = np.nan
    names = [None if rng.random() < 0.03 else f"city-{value}" for value in city]
    seconds = np.arange(n_rows) * n_days * 86_400 / n_rows
    return pl.DataFrame(
        {
            "request_id": [f"r{at:06d}" for at in range(n_rows)],
            "entity": [f"e{at % 50}" for at in range(n_rows)],
            "event_time": [START + timedelta(seconds=float(second)) for second in seconds],
            "amount": pl.Series(amount, dtype=pl.Float32).fill_nan(None),
            "age": pl.Series(age, dtype=pl.Float32),
            "noise": pl.Series(rng.normal(size=n_rows), dtype=pl.Float32),
            "city": pl.Series(names, dtype=pl.Utf8),
            "member": pl.Series(rng.integers(0, 2, n_rows), dtype=pl.Float32),
            "label": label,
        }
    )


def make_rows(spec: ModelSpec, frame: pl.DataFrame | None = None) -> Rows:
    return labelled_rows(
        make_frame(spec.task) if frame is None else frame, spec, n_classes=N_CLASSES[spec.task], for_fitting=False
    )


def make_workspace(root: Path, spec: ModelSpec, frame: pl.DataFrame) -> Path:
    """A workspace into which the rows of `frame` were imported."""
    root.mkdir(parents=True, exist_ok=True)
    source = frame.rename({"event_time": "at", "label": "target"}).drop("request_id", "entity")
    source.write_parquet(root / "rows.parquet")
    import_files(root, spec, root)
    return root
