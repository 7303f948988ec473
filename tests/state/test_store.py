"""Rows go in and come out as they were, under a fence, on both backends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from state import leases, store
from state.database import Database
from state.errors import InputError, StaleRevision, TerminalError
from state.leases import Fence
from state.rows import ActionRow, DetectorRow, GoalRow, RunRow
from tests.state.support import AT, Sql, commit


def run(row_id: str, **fields: object) -> RunRow:
    common = {"id": row_id, "model": "flights", "subject_id": "i", "subject_kind": "incident", "status": "ready"}
    return RunRow.model_validate({**common, "started_at": AT, **fields})


def test_a_row_comes_back_as_it_was_put(db: Database) -> None:
    row = run("r1", wake_at=AT, plan={"steps": [1, 1.0, None, "ä\x00"], "é": True}, facts={"x": 0.1})

    with db.transaction() as conn:
        store.put(conn, row, fence=None)
    with db.snapshot() as conn:
        assert store.get(conn, RunRow, "r1") == row
        assert store.get(conn, RunRow, "r2") is None


def test_putting_an_id_again_replaces_the_row(db: Database) -> None:
    with db.transaction() as conn:
        store.put(conn, run("r1", wake_at=AT, waits_for="labels"), fence=None)
        store.put(conn, run("r1", status="finished", outcome="closed"), fence=None)

        assert store.select(conn, RunRow) == [run("r1", status="finished", outcome="closed")]


def test_select_filters_by_value_null_and_list_and_orders(db: Database) -> None:
    rows = [
        run("a", wake_at=AT + timedelta(hours=2)),
        run("b", status="waiting"),
        run("c", wake_at=AT, status="waiting"),
        run("d", model="fraud", status="finished"),
    ]
    with db.transaction() as conn:
        for row in rows:
            store.put(conn, row, fence=None)

    def ids(**query: object) -> str:
        with db.snapshot() as conn:
            return "".join(row.id for row in store.select(conn, RunRow, **query))  # type: ignore[arg-type]

    assert ids() == "abcd"
    assert ids(newest_first=True, limit=2) == "dc"
    assert ids(model="flights", status="waiting") == "bc"
    assert ids(wake_at=None) == "bd"
    assert ids(wake_at=AT.astimezone(timezone(timedelta(hours=5)))) == "c"
    assert ids(status=("waiting", "finished")) == "bcd"
    assert ids(wake_at=[AT, AT + timedelta(hours=2)], order="wake_at") == "ca"


def test_times_sort_by_instant_whatever_their_zone(db: Database) -> None:
    early = datetime(2026, 3, 1, 23, tzinfo=timezone(timedelta(hours=10)))
    late = datetime(2026, 3, 1, 14, tzinfo=UTC)
    with db.transaction() as conn:
        store.put(conn, run("1", wake_at=late), fence=None)
        store.put(conn, run("2", wake_at=early), fence=None)

        assert [row.id for row in store.select(conn, RunRow, order="wake_at")] == ["2", "1"]


def test_ids_sort_by_bytes_on_every_backend(db: Database) -> None:
    ids = ["a-b", "aa", "B", "a", "é", "ab"]
    with db.transaction() as conn:
        for row_id in ids:
            store.put(conn, DetectorRow(id=row_id, model="flights", state={}), fence=None)

        found = [row.id for row in store.select(conn, DetectorRow)]

    assert found == sorted(ids, key=str.encode)


def test_an_unknown_column_is_named(db: Database) -> None:
    with db.snapshot() as conn, pytest.raises(TerminalError, match="runs has no column 'outcome': it has id, model"):
        store.select(conn, RunRow, outcome="closed")


def test_a_number_that_json_cannot_hold_is_refused(db: Database) -> None:
    row = DetectorRow(id="d", model="flights", state={})
    row.state["e_value"] = float("nan")

    with pytest.raises(TerminalError, match=r"\$\.state\.e_value is nan"), db.transaction() as conn:
        store.put(conn, row, fence=None)


def test_a_stale_epoch_writes_nothing(db: Database, fence: Fence) -> None:
    with db.transaction() as conn:
        store.put(conn, run("r1"), fence=fence)
    stale = Fence(fence.scope, fence.epoch - 1)

    with pytest.raises(StaleRevision, match="lease 'model:flights' is in epoch 1, not 0"), db.transaction() as conn:
        store.put(conn, run("r2"), fence=None)
        store.put(conn, run("r1", status="finished"), fence=stale)

    with db.snapshot() as conn:
        assert store.select(conn, RunRow) == [run("r1")]


def test_a_fence_without_a_lease_writes_nothing(db: Database) -> None:
    with pytest.raises(StaleRevision, match="is in epoch None"), db.transaction() as conn:
        store.put(conn, run("r1"), fence=Fence("nobody's", 1))


def test_the_store_refuses_actions(db: Database, fence: Fence) -> None:
    with db.transaction() as conn:
        intent = commit(conn, fence)
        row = store.get(conn, ActionRow, intent.key)
    assert row is not None

    with pytest.raises(TerminalError, match="the ledger alone"), db.transaction() as conn:
        store.put(conn, row.model_copy(update={"state": "verified"}), fence=fence)


@pytest.mark.parametrize("body", ["{", "[]", '{"schema_version": 1}', "null"])
def test_a_damaged_body_names_its_row_and_the_remedy(db: Database, sql: Sql, body: str) -> None:
    goal = GoalRow(
        id="g1",
        model=None,
        status="active",
        standing=True,
        goal={},
        text="Keep it healthy",
        asked_by="ann",
        asked_at=AT,
    )
    with db.transaction() as conn:
        store.put(conn, goal, fence=None)
    sql(f"update goals set body = '{body}'")

    with pytest.raises(InputError, match="goals 'g1' cannot be read") as caught, db.snapshot() as conn:
        store.get(conn, GoalRow, "g1")
    assert "audit verify" in caught.value.remedy


def test_a_raise_within_a_transaction_undoes_all_of_it(db: Database) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction() as conn:
        store.put(conn, run("r1"), fence=None)
        leases.acquire(conn, "model:flights", "me", 60)
        1 / 0  # noqa: B018

    with db.snapshot() as conn:
        assert store.select(conn, RunRow) == []
        assert conn.execute(sa.text("select count(*) from leases")).scalar() == 0
