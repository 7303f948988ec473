"""Standing goals with a bound: whether what was asked for still holds, judged on the champion's matured blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.signals import WINDOW_BLOCKS, Signal
from state import store
from state.goals import Goal, Objective
from state.rows import DetectorRow, GoalRow
from state.spec import LOWER_IS_BETTER, ModelSpec
from state.store import Connection, Fence
from tools.drift.performance import Reference, metric_value

MARGIN_SE = 2.0
"""A goal is missed where the mean of the newest blocks lies this many standard errors beyond its bound, and kept again
where it lies within: the gap keeps a metric at the bound from opening an incident every week."""


def missed_goals(
    conn: Connection, spec: ModelSpec, losses: list[float], *, reference: Reference, evidence_block: str, fence: Fence
) -> list[Signal]:
    """Signals of the goals that have just been missed. `losses` are the champion's newest block losses, newest first, and
    `reference` what they are held against: a goal may be missed by a champion that is as good as it ever was.

    A goal that stays missed is one signal; it may be raised again only after it was kept in between.
    """
    if len(losses) < WINDOW_BLOCKS:
        return []
    recent = np.asarray(losses[:WINDOW_BLOCKS])
    mean, error = float(recent.mean()), float(recent.std(ddof=1) / np.sqrt(len(recent)))
    measured = {"loss": mean, "reference": reference.mean, "null": reference.null, "until": evidence_block}
    signals: list[Signal] = []
    for row in store.select(conn, GoalRow, model=spec.model, status="active"):
        for objective in Goal.model_validate(row.goal).objectives if row.standing else []:
            if objective.metric != spec.objective.metric:
                continue
            signal = _judge(conn, spec, row, objective, mean=mean, error=error, fence=fence)
            signals += [signal.model_copy(update={"details": {**signal.details, **measured}})] if signal else []
    return signals


def _judge(
    conn: Connection, spec: ModelSpec, row: GoalRow, objective: Objective, *, mean: float, error: float, fence: Fence
) -> Signal | None:
    bound = objective.value if objective.metric in LOWER_IS_BETTER else 1.0 - objective.value
    known = store.get(conn, DetectorRow, promise_id(spec.model, row.id))
    was_kept = known is None or bool(known.state["kept"])
    kept = mean <= bound + MARGIN_SE * error if was_kept else mean <= bound
    value = metric_value(spec.objective.metric, mean)
    state: dict[str, Any] = {"kept": kept, "value": value, "bound": objective.value, "n_blocks": WINDOW_BLOCKS}
    store.put(conn, DetectorRow(id=promise_id(spec.model, row.id), model=spec.model, state=state), fence=fence)
    if kept or not was_kept:
        return None
    return Signal(
        name="goal_missed",
        text=f"{objective.metric} {value:.4f} over the last {WINDOW_BLOCKS} blocks misses the goal {row.text!r}",
        size=mean - bound,
        details={"goal_id": row.id, "value": value, "bound": objective.value},
    )


def promise_id(model: str, goal_id: str) -> str:
    """Id of the row that holds how a goal stands."""
    return f"{model}/goal/{goal_id}"
