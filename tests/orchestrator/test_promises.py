"""Standing goals with a bound: missed once, and again only after they were kept in between."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import JsonValue

from evals.world.platform import example_spec
from orchestrator.promises import missed_goals
from orchestrator.signals import Signal
from state import leases, store
from state.rows import GoalRow
from state.spec import ModelSpec
from state.store import Connection, Database, Fence
from tools.drift.performance import Reference

GOOD, BAD = 0.20, 0.40  # block losses: AUC .80 and .60 against a goal of .70
REFERENCE = Reference(mean=0.25, sd=0.02, n=20, null=0.26)


class Desk:
    def __init__(self, conn: Connection, fence: Fence, spec: ModelSpec) -> None:
        self.conn, self.fence, self.spec = conn, fence, spec

    def judge(self, *losses: float) -> list[str]:
        """Names of the signals that these newest block losses raise."""
        return [signal.name for signal in self.signals(*losses)]

    def signals(self, *losses: float) -> list[Signal]:
        return missed_goals(
            self.conn, self.spec, list(losses), reference=REFERENCE, evidence_block="2026-03-09", fence=self.fence
        )


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    spec = example_spec()
    db = Database.open(f"sqlite:///{tmp_path / 'steady.db'}")
    db.upgrade()
    try:
        with db.transaction() as conn:
            lease = leases.acquire(conn, "model/churn", "one", 60)
            assert lease is not None
            goal: dict[str, JsonValue] = {
                "intent": "maintain",
                "model": "churn",
                "objectives": [{"metric": "roc_auc", "op": ">=", "value": 0.7}],
            }
            row = GoalRow(
                id="g1", model="churn", status="active", standing=True, goal=goal, text="keep churn's roc_auc above 0.7",
                asked_by="growth", asked_at=datetime(2026, 3, 2, tzinfo=UTC),
            )  # fmt: skip
            store.put(conn, row, fence=None)
            yield Desk(conn, lease.fence, spec)
    finally:
        db.close()


def test_a_goal_is_missed_once_until_it_was_kept_again(desk: Desk) -> None:
    assert desk.judge(*[GOOD] * 7) == []
    assert desk.judge(*[BAD] * 7) == ["goal_missed"]
    assert desk.judge(*[BAD] * 7) == []
    assert desk.judge(*[GOOD] * 7) == []
    assert desk.judge(*[BAD] * 7) == ["goal_missed"]


def test_a_missed_goal_says_what_the_champion_is_held_against(desk: Desk) -> None:
    (signal,) = desk.signals(*[BAD] * 7)

    details = signal.details
    assert (details["loss"], details["reference"], details["null"]) == (pytest.approx(BAD), 0.25, 0.26)


def test_too_few_blocks_say_nothing(desk: Desk) -> None:
    assert desk.judge(*[BAD] * 6) == []


def test_a_mean_beyond_the_bound_within_its_own_error_is_not_missed(desk: Desk) -> None:
    # Mean .31, standard error .04: beyond the bound of .30, and well within two errors of it.
    assert desk.judge(0.15, 0.45, 0.20, 0.42, 0.25, 0.40, 0.30) == []
