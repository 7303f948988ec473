"""The typed goal: what should be true, one-off or standing."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

GoalIntent = Literal[
    "maintain", "retrain", "deploy", "promote", "rollback", "investigate",
    "validate", "compare", "hold", "resume", "report",
]  # fmt: skip
GoalMetric = Literal[
    "accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc", "log_loss", "rmse", "mae",
    "psi", "null_rate", "error_rate", "latency_p50_ms", "latency_p99_ms",
]  # fmt: skip


class Objective(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    metric: GoalMetric
    op: Literal[">=", "<=", ">", "<"]
    value: float


class Goal(BaseModel):
    """Rates and scores are fractions, latencies milliseconds; every key is always present in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intent: GoalIntent
    model: str | None = None
    """None means every managed model."""
    version: str | None = None
    """A number, or "champion", "challenger", "previous", "latest"."""
    baseline: str | None = None
    strategy: Literal["canary", "ab_test", "shadow", "blue_green"] | None = None
    traffic_percent: float | None = None
    objectives: list[Objective] = []
    constraints: list[Objective] = []
    window: timedelta | None = None
    deadline: timedelta | None = None
    every: timedelta | None = None
    approval: Literal["policy", "always"] = "policy"
    dry_run: bool = False
