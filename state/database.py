"""The database: opening, upgrading, transactions, and its errors in our words."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from state.errors import InputError, StateUnavailable, SteadyError, TerminalError
from state.migrations.upgrade import UnknownRevisionError, upgrade_schema

SQLITE_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
# Classes of SQLSTATE in which the same transaction may succeed later: connection, resources, operator, rollback.
POSTGRES_RETRYABLE = ("08", "53", "57", "40", "55")


class Database:
    """One SQLite file (WAL, synchronous=FULL) or one PostgreSQL database; safe to share between threads."""

    def __init__(self, engine: sa.Engine, *, name: str, path: Path | None) -> None:
        self._engine = engine
        self._driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
        self._path = path
        self._inode = _inode(path) if path else None
        self.name = name
        """What messages call it: the file, or the address without its password."""

    @classmethod
    def open(cls, url: str, *, busy_timeout_seconds: float = 10.0, durable: bool = True) -> Database:
        """Open `sqlite:///path/to/file` (made if absent) or `postgresql://...`.

        `durable=False` is for a SQLite file that nobody needs after a power cut: a simulation's.

        Raises:
            InputError: the address is neither, the folder is missing, or the file is not a sound database.
            StateUnavailable: no answer within `busy_timeout_seconds`.
        """
        parsed = _parse(url)
        if parsed.get_backend_name() == "sqlite":
            database = cls._open_sqlite(Path(parsed.database or ""), busy_timeout_seconds, durable=durable)
        else:
            database = cls._open_postgres(parsed, busy_timeout_seconds)
        try:
            with database.snapshot() as conn:
                # Reads the first page: garbage shows itself here rather than in the middle of a run.
                conn.exec_driver_sql("select count(*) from sqlite_master" if database._path else "select 1").scalar()
        except SteadyError:
            database.close()
            raise
        return database

    @classmethod
    def _open_sqlite(cls, path: Path, busy_timeout_seconds: float, *, durable: bool) -> Database:
        if not path.parent.is_dir():
            raise InputError(f"{path.parent} is not a folder", remedy="Create it, or name another database")
        try:
            path.touch(exist_ok=True)
        except OSError as exc:
            raise InputError(f"{path} cannot be opened: {exc.strerror}", remedy="Name a writable file") from exc
        # mode=rw: a file that is removed later is missed, never silently replaced by an empty one.
        uri = f"file:{quote(str(path.absolute()))}?mode=rw"

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                uri, uri=True, timeout=busy_timeout_seconds, check_same_thread=False, isolation_level=None
            )
            try:
                _enter_wal(connection, busy_timeout_seconds)
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
                connection.execute("PRAGMA foreign_keys=ON")
            except BaseException:
                connection.close()
                raise
            return connection

        engine = sa.create_engine(
            "sqlite://", creator=connect, poolclass=sa.QueuePool, pool_timeout=busy_timeout_seconds
        )
        event.listen(engine, "begin", _begin_sqlite)
        return cls(engine, name=str(path), path=path)

    @classmethod
    def _open_postgres(cls, url: sa.URL, busy_timeout_seconds: float) -> Database:
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_timeout=busy_timeout_seconds,
            connect_args={
                "connect_timeout": max(2, round(busy_timeout_seconds)),
                "options": f"-c lock_timeout={round(busy_timeout_seconds * 1000)}",
            },
        )
        return cls(engine, name=url.render_as_string(hide_password=True), path=None)

    def upgrade(self) -> None:
        """Bring the schema to this release's; does nothing where it is there already.

        Raises:
            InputError: a newer release wrote the database.
        """
        with self.transaction() as conn:
            try:
                upgrade_schema(conn)
            except UnknownRevisionError as exc:
                raise InputError(
                    f"{self.name} was written by a newer release: {exc}",
                    remedy="Install that release or restore a backup",
                ) from exc

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A write transaction: all of it commits when the block ends, none of it when the block raises.

        SQLite takes its one write lock at the start, so do not open a second one within. After
        `StateUnavailable` repeat the whole block: every write of the store is idempotent by id.
        """
        with self._translated(), self._connection() as conn, conn.begin():
            yield conn

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """A read-only transaction that sees one state throughout and holds up no writer."""
        with self._translated(), self._connection() as conn:
            if conn.dialect.name == "sqlite":
                reading = conn.execution_options(steadyhand_begin="BEGIN")
            else:
                reading = conn.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with reading.begin():
                yield reading

    def close(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        # An unlinked file can still be written to through an open connection, and all of it would be lost.
        if self._path:
            found = _inode(self._path)
            if found != self._inode:
                self._engine.dispose()
                self._inode = found
            if found is None:
                raise StateUnavailable(f"{self.name} is gone")
        with self._engine.connect() as conn:
            yield conn

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as exc:
            raise self._error(exc.orig or exc) from exc
        except sa.exc.TimeoutError as exc:
            raise StateUnavailable(f"{self.name}: every connection is in use") from exc
        except self._driver_error as exc:
            raise self._error(exc) from exc

    def _error(self, cause: BaseException) -> SteadyError:
        message = f"{self.name}: {str(cause).strip()}"
        if isinstance(cause, sqlite3.Error):
            return _sqlite_error(message, cause)
        return _postgres_error(message, cause)


def insert(dialect: sa.Dialect, table: sa.Table) -> Any:
    """The backend's own INSERT, which knows ON CONFLICT."""
    return sqlite.insert(table) if dialect.name == "sqlite" else postgresql.insert(table)


def _parse(url: str) -> sa.URL:
    remedy = "Use sqlite:///path/to/steady.db or postgresql://user@host/name"
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as exc:
        raise InputError(f"{url!r} is not a database address", remedy=remedy) from exc
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(f"database kind {parsed.get_backend_name()!r} is not supported", remedy=remedy)
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InputError("a database in memory would be lost with its process", remedy=remedy)
    return parsed


def _enter_wal(connection: sqlite3.Connection, busy_timeout_seconds: float) -> None:
    # SQLite's own busy timeout does not cover this switch: two first starts at once meet here.
    deadline = time.monotonic() + busy_timeout_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(conn: sa.Connection) -> None:
    begin = conn.get_execution_options().get("steadyhand_begin", "BEGIN IMMEDIATE")
    raw = conn.connection.driver_connection
    raw.execute(f"PRAGMA query_only={'ON' if begin == 'BEGIN' else 'OFF'}")  # type: ignore[union-attr]  # open: it begins
    raw.execute(begin)  # type: ignore[union-attr]  # likewise


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _sqlite_error(message: str, cause: sqlite3.Error) -> SteadyError:
    code = getattr(cause, "sqlite_errorname", "")
    if code.startswith(SQLITE_DAMAGED) or "could not decode" in message.lower():
        return InputError(message, remedy="The file is damaged or no database: restore it from a backup")
    if code.startswith("SQLITE_READONLY"):
        return InputError(message, remedy="Make the file and its folder writable")
    if "no such table" in message or "no such column" in message:
        return InputError(message, remedy="Run `steady status`: it brings the schema up to date")
    if isinstance(cause, sqlite3.OperationalError) and code != "SQLITE_ERROR":
        return StateUnavailable(message)
    return TerminalError(message)


def _postgres_error(message: str, cause: Any) -> SteadyError:
    state = getattr(cause, "sqlstate", None)
    if state in ("42P01", "42703"):
        return InputError(message, remedy="Run `steady status`: it brings the schema up to date")
    if state == "XX001" or state == "XX002":
        return InputError(message, remedy="The database is damaged: restore it from a backup")
    if state is None or state.startswith(POSTGRES_RETRYABLE):
        return StateUnavailable(message)
    return TerminalError(message)
