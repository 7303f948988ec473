"""Histories as a team would hand them over, generated from a known truth."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evals.world.fitting import fit
from evals.world.platform import example_spec
from evals.world.truth import Drift, Truth, day_rows
from state.spec import ModelSpec

START = date(2025, 1, 6)
QUICK: dict[str, Any] = {
    "monitoring": {"cadence": "P10D", "backtest": "P8D", "min_blocks": 4, "recovery": "P2D"},
    "rollout": {
        "steps": [20], "dwell": "P1D", "bake": "P1D", "minimum_requests": 5, "deadline": "P3D",
        "ab_test": {"percent": 50, "horizon": "P3D", "minimum_samples": 50},
    },
    "training": {
        "kind": "recipe", "candidates": [{"name": "logistic", "estimator": "logistic_regression"}], "holdout": "P5D",
        "folds": 2,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    spec: ModelSpec
    predictions: pl.DataFrame
    labels: pl.DataFrame

    def write(self, folder: Path) -> tuple[Path, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "predictions.parquet", folder / "labels.parquet"
        self.predictions.write_parquet(paths[0])
        self.labels.write_parquet(paths[1])
        return paths

    def until(self, day: date) -> History:
        """What was there at the midnight that ends `day`."""
        end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
        return History(
            spec=self.spec,
            predictions=self.predictions.filter(pl.col("event_time") < end),
            labels=self.labels.filter(pl.col("available_at") <= end),
        )


def history(
    *drifts: Drift, n_days: int = 50, n_rows: int = 150, scored_from: int | None = 20, seed: int = 1,
    restated_ratio: float = 0.0, late_ratio: float = 0.0, **changes: Any,
) -> History:  # fmt: skip
    """`scored_from` days are what the team's own model was fitted on; None leaves its scores out."""
    spec = example_spec(label_delay_days=2, **{**QUICK, **changes})
    truth = Truth(rows_per_day=n_rows, drifts=list(drifts))
    days = [day_rows(spec, truth, seed=seed, day=START + timedelta(days=n)) for n in range(n_days)]
    rows, labels = pl.concat([day.frame for day in days]), pl.concat([day.labels for day in days])
    if scored_from is not None:
        old = rows.filter(pl.col("event_time").dt.date() < START + timedelta(days=scored_from))
        rows = rows.with_columns(pl.Series("score", fit(spec, old.join(labels, on="request_id")).score(rows)))
    rng = np.random.default_rng(seed)
    late = pl.Series(rng.random(labels.height) < late_ratio)
    labels = labels.with_columns(pl.col("available_at") + pl.duration(days=9) * late.cast(pl.Int64))
    wrong = labels.filter(pl.Series(rng.random(labels.height) < restated_ratio))
    first = wrong.with_columns((1 - pl.col("label")).alias("label"), pl.col("available_at") - pl.duration(hours=1))
    return History(
        spec=spec, predictions=rows.rename({"entity": "customer"}), labels=pl.concat([labels, first]),
    )  # fmt: skip


def no_progress(text: str) -> None:
    """Nobody looks."""
