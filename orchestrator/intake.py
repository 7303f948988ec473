"""How a model comes under management, at the console and in scenarios alike."""

from __future__ import annotations

from orchestrator.crew import Crew
from orchestrator.runs import new_run
from state import log, store
from state.decisions import Commanded
from state.rows import GoalRow, ModelRow
from state.spec import ModelSpec
from state.store import Connection


def add_model(crew: Crew, conn: Connection, spec: ModelSpec, *, spec_sha256: str, base_path: str) -> GoalRow:
    """Manage a model from now on: its row, its standing goal, the run that makes its first champion, and the record."""
    now, bound = crew.clock.now(), spec.objective
    row = ModelRow(
        id=spec.model, spec=spec.model_dump(mode="json"), spec_sha256=spec_sha256, base_path=base_path, added_at=now
    )
    store.put(conn, row, fence=None)
    goal = GoalRow(
        id=crew.ids.new_id(), model=spec.model, status="active", standing=True, asked_by=spec.owner, asked_at=now,
        goal={"intent": "maintain", "model": spec.model, "objectives": [bound.model_dump(mode="json")]},
        text=f"keep {spec.model}'s {bound.metric} {'above' if bound.op.startswith('>') else 'below'} {bound.value}",
    )  # fmt: skip
    store.put(conn, goal, fence=None)
    run = new_run(
        crew, model=spec.model, subject_id=goal.id, subject_kind="goal",
        facts={"training_justified": True, "ab_cleared": True, "gates_cleared": False},
    )  # fmt: skip
    store.put(conn, run, fence=None)
    log.append(
        conn,
        Commanded(
            **crew.stamp(), model=spec.model, actor='User::"spec"', command="model_added",
            summary=f"{spec.model} is managed from now on, for {spec.owner}: {goal.text}.",
            details={"spec_sha256": spec_sha256, "goal_id": goal.id, "goal": goal.goal, "text": goal.text,
                     "asked_by": goal.asked_by},
        ),
    )  # fmt: skip
    return goal
