"""An incident asks its question anew: after a pause, because no model could be made, or about another fit."""

from __future__ import annotations

from datetime import datetime

from state.rows import RunRow
from state.spec import ModelSpec

_SETTLED = ("remedy_known", "training_justified", "paired_win", "candidate_exists", "gates_evaluated", "gates_cleared")
"""Facts about the fit that was asked about last."""


def ask_anew(run: RunRow, *, at: datetime) -> None:
    """Forget what was found out about a newer fit; the next backtest comes `at`."""
    run.facts |= {**dict.fromkeys(_SETTLED, False), "look_at": at.isoformat()}
    for name in ("gates", "mlflow_run_id"):
        run.facts.pop(name, None)
    run.body["pinned"] = {}


def may_ask_anew(run: RunRow, spec: ModelSpec) -> bool:
    """Whether the run seeks a remedy for its incident by backtests, and none of its versions is on its way."""
    return run.subject_kind == "incident" and spec.outcomes != "affected" and "rollout_id" not in run.body
