"""Small generated data sets with a known truth, and specs whose horizons fit them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import yaml

Story = Literal["turns", "still", "noise"]
"""`turns`: what matters changes on `TURN_DAY` and stays so; `still`: nothing changes; `noise`: from `TURN_DAY` on chance
decides most, so that the model loses ground and nothing that could be learnt would help."""

START = datetime(2025, 3, 3, tzinfo=UTC)
N_DAYS, PER_DAY = 58, 150
REPLAY_DAY = 26
TURN_DAY = 30
DELAY_DAYS = 1
DAY = timedelta(days=1)


def day(number: int) -> datetime:
    """The start of a day, counted from 0."""
    return START + number * DAY


def loans(story: Story, *, n_days: int = N_DAYS, per_day: int = PER_DAY, seed: int = 3) -> pl.DataFrame:
    """Rows in order of time: four numbers, a category, a customer and `repaid`."""
    rng = np.random.default_rng(seed)
    n = n_days * per_day
    number = np.repeat(np.arange(n_days), per_day)
    second = np.sort(rng.integers(0, 86_400, (n_days, per_day)), axis=1).ravel()
    income, debt, age, term = (rng.normal(size=n) for _ in range(4))
    region = rng.choice(["north", "south", "east"], n, p=[0.5, 0.3, 0.2])
    before = 1.8 * income + 0.6 * debt + 0.5 * (region == "north")
    after = 0.3 * income + 0.6 * debt + 2.0 * age + 0.5 * (region == "north")
    changed = number >= TURN_DAY
    signal = np.where(changed & (story == "turns"), after, before)
    scale = np.where(changed & (story == "noise"), 4.0, 0.6)
    score = signal + scale * rng.logistic(size=n)
    return pl.DataFrame({
        "asked_at": [START + timedelta(days=int(d), seconds=int(s)) for d, s in zip(number, second, strict=True)],
        "customer": [f"c{c:04d}" for c in rng.integers(0, 900, n)],
        "income": income.round(4), "debt": debt.round(4), "age": age.round(4), "term": term.round(4),
        "region": region.tolist(), "repaid": (score > 0.25).astype(int).tolist(),
    })  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    """The spec of `loans` as a mapping, with `changes` of its parts."""
    return {
        "model": "loans",
        "owner": "credit",
        "task": "binary",
        "data": {
            "kind": "files", "path": "loans.parquet", "time": "asked_at", "entity": ["customer"],
            "label": {"column": "repaid", "delay": f"P{DELAY_DAYS}D"},
        },
        "features": [
            *({"name": name, "type": "numeric"} for name in ("income", "debt", "age", "term")),
            {"name": "region", "type": "categorical"},
        ],
        "training": {
            "kind": "recipe", "folds": 2, "holdout": "P5D", "window": "P14D",
            "candidates": [{"name": "linear", "estimator": "logistic_regression"}],
        },
        "objective": {"metric": "roc_auc", "op": ">=", "value": 0.6},
        "gates": [{"metric": "roc_auc", "op": ">=", "value": 0.55}],
        "monitoring": {
            "cadence": "P9D", "backtest": "P10D", "min_blocks": 7, "recovery": "P2D", "drift_window": "P10D",
        },
        "rollout": {
            "steps": [25], "dwell": "P1D", "deadline": "P4D", "minimum_requests": 20, "bake": "P1D",
            "ab_test": {"percent": 50, "horizon": "P5D", "minimum_samples": 100, "margin": 0.05},
        },
        **changes,
    }  # fmt: skip


def write(folder: Path, story: Story, *, rows: pl.DataFrame | None = None, **changes: Any) -> Path:
    """Data and spec in `folder`; the spec's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (loans(story) if rows is None else rows).write_parquet(folder / "loans.parquet")
    path = folder / "loans.yaml"
    path.write_text(yaml.safe_dump(document(**changes), sort_keys=False))
    return path
