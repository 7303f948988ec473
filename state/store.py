"""The store: rows in and out of the database, each write fenced by the lease it is made under."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy import Connection

from state.canonical import canonical_json
from state.database import Database, insert
from state.errors import InputError, TerminalError
from state.leases import Fence
from state.rows import ActionRow, Row
from state.tables import ROW_TABLES

__all__ = ["Connection", "Database", "Fence", "get", "put", "select"]

T = TypeVar("T", bound=Row)


def put(conn: sa.Connection, row: Row, *, fence: Fence | None) -> None:
    """Insert `row`, or replace the stored one of the same id, in the caller's transaction.

    `fence` is None only where no lease governs the row, for instance a new goal from a person.

    Raises:
        StaleRevision: the lease has passed to a newer epoch; stop.
        TerminalError: an action, which the ledger alone writes, or a value that JSON cannot express.
    """
    if isinstance(row, ActionRow):
        raise TerminalError(f"action {row.id} was given to the store: the ledger alone writes actions")
    if fence is not None:
        fence.check(conn)
    write(conn, row)


def get(conn: sa.Connection, row_type: type[T], row_id: str) -> T | None:
    """The row of that id, or None."""
    table = ROW_TABLES[row_type.table]
    found = conn.execute(sa.select(table).where(table.c.id == row_id)).one_or_none()
    return None if found is None else read(row_type, found)


def select(
    conn: sa.Connection,
    row_type: type[T],
    *,
    order: str = "id",
    newest_first: bool = False,
    limit: int | None = None,
    **column_equals: Any,
) -> list[T]:
    """Rows whose columns equal the given values: None finds nulls, a list or tuple any of its items.

    Ordered by the column `order`, then by id; descending with `newest_first`.
    """
    table = ROW_TABLES[row_type.table]
    query = sa.select(table)
    for name, value in column_equals.items():
        column = _column(table, name)
        many = isinstance(value, Sequence) and not isinstance(value, str)
        query = query.where(column.in_(list(value)) if many else column == value)
    keys = [_column(table, order), table.c.id]
    query = query.order_by(*(key.desc() if newest_first else key.asc() for key in keys)).limit(limit)
    return [read(row_type, found) for found in conn.execute(query)]


def write(conn: sa.Connection, row: Row, **extra: Any) -> None:
    """Insert or replace without a fence and without a look at the type: for `put` and the ledger."""
    fields = row.model_dump(mode="json")
    values = {name: getattr(row, name) for name in row.columns} | extra
    values["body"] = canonical_json({name: fields[name] for name in fields if name not in row.columns}).decode()
    table = ROW_TABLES[row.table]
    conn.execute(insert(conn, table).values(values).on_conflict_do_update(index_elements=["id"], set_=values))


def read(row_type: type[T], found: sa.Row[Any]) -> T:
    """The typed row of a result.

    Raises:
        InputError: the stored body is damaged, or a newer release wrote it.
    """
    values = {name: found._mapping[name] for name in row_type.columns}
    try:
        return row_type.model_validate({**json.loads(found._mapping["body"]), **values})
    except (ValueError, TypeError, ValidationError) as exc:
        raise InputError(
            f"{row_type.table} {found._mapping['id']!r} cannot be read: {exc}",
            remedy="Run `steady audit verify`, and restore a backup if it finds damage",
        ) from exc


def _column(table: sa.Table, name: str) -> sa.Column[Any]:
    if name not in table.c:
        raise TerminalError(f"{table.name} has no column {name!r}: it has {', '.join(table.c.keys())}")
    return table.c[name]
