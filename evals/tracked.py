"""Verdicts to MLflow. Imports MLflow, which takes seconds: import this module only on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import msgspec

from evals.report import Verdict
from tools.eval_tracking import log_result
from tools.tracking import Tracking

_COUNTED = (
    "pass_ratio", "ttd_min", "ttdiag_min", "ttm_min", "actions", "forbidden", "duplicates", "twin_false_actions", "harm",
    "regret",
)  # fmt: skip


def track(found: Sequence[Verdict], store: Tracking) -> None:
    """One MLflow run a scenario in `store`, of `tools.eval_tracking.open_store`.

    Raises:
        SteadyhandError: MLflow gives no answer or refuses.
    """
    for verdict in found:
        values = {name: getattr(verdict, name) for name in _COUNTED}
        state = "passed" if verdict.passed else "error" if verdict.error else "failed"
        log_result(
            store, verdict.id,
            metrics={name: float(value) for name, value in values.items() if value is not None}
            | {f"gate.{name}": float(held) for name, held in verdict.gates.items()},
            tags={
                "steadyhand.scenario": verdict.id, "steadyhand.family": verdict.family, "steadyhand.verdict": state,
                "steadyhand.difficulty": verdict.difficulty, "steadyhand.digest": verdict.digest,
                "steadyhand.seeds": ",".join(str(run.seed) for run in verdict.runs),
            },
            document=msgspec.to_builtins(asdict(verdict)),
        )  # fmt: skip
