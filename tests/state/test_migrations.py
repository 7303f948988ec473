"""The revisions that ship lead to exactly the tables that the code speaks of."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from state.database import Database
from state.errors import InputError
from state.rows import Row
from state.tables import ROW_TYPES, metadata


def columns(table: sa.Table) -> dict[str, tuple[str, bool, bool]]:
    return {c.name: (str(c.type), bool(c.nullable), bool(c.primary_key)) for c in table.columns}


def test_an_upgraded_database_has_exactly_our_tables(url: str) -> None:
    with Database.open(url) as db:
        db.upgrade()
        with db.snapshot() as conn:
            difference = compare_metadata(MigrationContext.configure(conn, opts={"compare_type": True}), metadata)
            found = sa.MetaData()
            found.reflect(conn)

    assert difference == [], "a table was changed: change the revision that is not released yet, or add one"
    assert set(found.tables) == {*metadata.tables, "alembic_version"}
    for name, table in metadata.tables.items():
        reflected = columns(found.tables[name])
        assert {k: v[1:] for k, v in reflected.items()} == {k: v[1:] for k, v in columns(table).items()}
        assert {
            index.name for index in found.tables[name].indexes if index.name in {i.name for i in table.indexes}
        } == {index.name for index in table.indexes}


def test_every_row_type_has_a_table_with_its_columns() -> None:
    assert set(ROW_TYPES) == set(Row.__subclasses__())
    for row_type in ROW_TYPES:
        assert row_type.columns[0] == "id"
        assert set(row_type.columns) | {"body"} <= set(metadata.tables[row_type.table].c.keys())
        assert "body" not in row_type.columns


def test_upgrading_twice_or_at_once_changes_nothing(url: str) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(3)

    def work() -> None:
        start.wait()
        try:
            with Database.open(url) as db:
                db.upgrade()
        except BaseException as exc:  # noqa: BLE001 - shown by the assertion below
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with Database.open(url) as db, db.snapshot() as conn:
        assert conn.exec_driver_sql("select version_num from alembic_version").scalars().all() == ["0001"]


def test_an_upgrade_that_fails_leaves_nothing_behind(url: str) -> None:
    with Database.open(url) as db:
        with db.transaction() as conn:
            conn.exec_driver_sql("create table decisions (x int)")
        with pytest.raises(Exception, match="decisions"):
            db.upgrade()
        with db.snapshot() as conn:
            assert sa.inspect(conn).get_table_names() == ["decisions"]


def test_a_database_of_a_newer_release_is_left_alone(url: str) -> None:
    with Database.open(url) as db:
        db.upgrade()
        with db.transaction() as conn:
            conn.exec_driver_sql("update alembic_version set version_num = '9999'")

        with pytest.raises(InputError, match="written by a newer release") as caught:
            db.upgrade()
    assert "Install that release" in caught.value.remedy


def test_tables_of_others_in_the_database_are_left_alone(url: str) -> None:
    with Database.open(url) as db:
        with db.transaction() as conn:
            conn.exec_driver_sql("create table checkpoints (thread_id text)")
            conn.exec_driver_sql("insert into checkpoints values ('t1')")
        db.upgrade()
        with db.snapshot() as conn:
            assert conn.exec_driver_sql("select thread_id from checkpoints").scalars().all() == ["t1"]
