"""One worker owns a scope; whoever comes late changes nothing."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from state import leases, store
from state.database import Database
from state.errors import StaleRevision
from state.leases import Fence, Lease
from state.rows import DetectorRow
from tests.state.support import Sql

SCOPE = "model:flights"


def take(db: Database, owner: str, ttl_seconds: float = 60) -> Lease | None:
    with db.transaction() as conn:
        return leases.acquire(conn, SCOPE, owner, ttl_seconds)


def test_a_held_lease_is_nobody_elses(db: Database) -> None:
    assert take(db, "one") == Lease(scope=SCOPE, owner="one", epoch=1)
    assert take(db, "two") is None


def test_a_renewal_keeps_the_epoch(db: Database) -> None:
    assert take(db, "one", ttl_seconds=0) is not None
    assert take(db, "one") == Lease(scope=SCOPE, owner="one", epoch=1)
    assert take(db, "two") is None


def test_an_expired_lease_passes_on_with_a_new_epoch(db: Database) -> None:
    take(db, "one", ttl_seconds=0)

    assert take(db, "two") == Lease(scope=SCOPE, owner="two", epoch=2)
    assert take(db, "one") is None


def test_expiry_is_counted_by_the_databases_clock(db: Database, sql: Sql) -> None:
    take(db, "one", ttl_seconds=3600)
    assert take(db, "two") is None
    sql("update leases set expires_ms = expires_ms - 3599000")
    assert take(db, "two") is None
    sql("update leases set expires_ms = expires_ms - 1000")

    assert take(db, "two") is not None


def test_a_release_frees_the_scope_and_refuses_late_writes(db: Database) -> None:
    lease = take(db, "one")
    assert lease is not None

    with db.transaction() as conn:
        assert leases.release(conn, lease)
        assert not leases.release(conn, lease)
        with pytest.raises(StaleRevision):
            lease.fence.check(conn)
    again = take(db, "one")

    assert again is not None
    assert again.epoch > lease.epoch


def test_scopes_do_not_touch_each_other(db: Database) -> None:
    take(db, "one")

    with db.transaction() as conn:
        assert leases.acquire(conn, "model:fraud", "two", 60) == Lease(scope="model:fraud", owner="two", epoch=1)


def test_of_many_workers_at_once_exactly_one_gets_the_lease(db: Database) -> None:
    start = threading.Barrier(8)
    got: list[Lease | None] = []

    def work(owner: str) -> None:
        start.wait()
        got.append(take(db, owner))

    threads = [threading.Thread(target=work, args=(f"worker-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(got) == 8
    assert [lease.epoch for lease in got if lease] == [1]


def test_a_takeover_waits_for_the_write_that_was_fenced_first(db: Database, url: str) -> None:
    first = take(db, "one", ttl_seconds=0)
    assert first is not None
    second: list[Lease | None] = []
    writing = db.transaction()
    conn = writing.__enter__()
    store.put(conn, DetectorRow(id="d", model="flights", state={"by": "one"}), fence=first.fence)
    thread = threading.Thread(target=lambda: second.append(take(db, "two")))
    thread.start()
    thread.join(0.3)
    waited = thread.is_alive()
    writing.__exit__(None, None, None)
    thread.join()

    assert waited
    assert second == [Lease(scope=SCOPE, owner="two", epoch=2)]
    with pytest.raises(StaleRevision), db.transaction() as conn:
        store.put(conn, DetectorRow(id="d", model="flights", state={"by": "one, late"}), fence=first.fence)
    with db.snapshot() as conn:
        found = store.get(conn, DetectorRow, "d")
        assert found is not None
        assert found.state == {"by": "one"}


def test_two_processes_one_winner_and_the_stale_one_changes_nothing(db: Database, url: str) -> None:
    """Two `Database` objects share nothing, just as two processes do; `test_processes` kills real ones."""
    with Database.open(url) as other:
        stale = take(db, "one", ttl_seconds=0)
        fresh = take(other, "two")
        assert stale is not None
        assert fresh is not None
        with other.transaction() as conn:
            store.put(conn, DetectorRow(id="d", model="flights", state={"by": "two"}), fence=fresh.fence)

        with pytest.raises(StaleRevision), db.transaction() as conn:
            store.put(conn, DetectorRow(id="d", model="flights", state={"by": "one"}), fence=stale.fence)

        with other.snapshot() as conn:
            found = store.get(conn, DetectorRow, "d")
            assert found is not None
            assert found.state == {"by": "two"}
            assert conn.execute(sa.text("select epoch from leases")).scalar() == fresh.epoch
            assert Fence(SCOPE, fresh.epoch) == fresh.fence
