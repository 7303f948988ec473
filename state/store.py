"""The store: rows in and out of the database, each write fenced by the lease it is made under."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy import Connection

from state.canonical import JSON_OBJECT, canonical_json
from state.database import Database, insert
from state.errors import InputError, TerminalError
from state.leases import Fence
from state.rows import ActionRow, Row
from state.statements import Record, Statement
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
    found = _by_id(row_type.table).one(conn, {"id": row_id})
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
    values: dict[str, Any] = {}
    forms: list[tuple[str, int]] = []
    for name, value in column_equals.items():
        many = isinstance(value, Sequence) and not isinstance(value, str)
        items = list(value) if many else [value] if value is not None else []
        forms.append((name, len(items) if many or items else _NULL))
        values |= {f"{name}_{index}": item for index, item in enumerate(items)}
    if limit is not None:
        values["limit"] = limit
    found = _where(row_type.table, tuple(forms), order, newest_first, limit is not None).all(conn, values)
    return [read(row_type, record) for record in found]


def write(conn: sa.Connection, row: Row, **extra: Any) -> None:
    """Insert or replace without a fence and without a look at the type: for `put` and the ledger."""
    objects = _objects(type(row))
    fields = row.model_dump(mode="json", exclude=objects | set(row.columns)) | {n: getattr(row, n) for n in objects}
    values = {name: getattr(row, name) for name in row.columns} | extra
    values["body"] = canonical_json(fields).decode()
    _upsert(row.table, tuple(values)).run(conn, values)


def read(row_type: type[T], found: Record) -> T:
    """The typed row of a result whose first columns are those of the row's table.

    Raises:
        InputError: the stored body is damaged, or a newer release wrote it.
    """
    n_columns = len(row_type.columns)
    try:
        return row_type.model_validate(
            {**msgspec.json.decode(found[n_columns]), **dict(zip(row_type.columns, found, strict=False))}
        )
    except (ValueError, TypeError, msgspec.DecodeError, ValidationError) as exc:
        raise InputError(
            f"{row_type.table} {found[0]!r} cannot be read: {exc}",
            remedy="Run `steady audit verify`, and restore a backup if it finds damage",
        ) from exc


_NULL = -1


@functools.cache
def _objects(row_type: type[Row]) -> set[str]:
    """Fields that are JSON objects, and so need no translation."""
    return {name for name, field in row_type.model_fields.items() if JSON_OBJECT in field.metadata}


@functools.cache
def _by_id(table_name: str) -> Statement:
    table = ROW_TABLES[table_name]
    return Statement(lambda _: sa.select(table).where(table.c.id == sa.bindparam("id")))


@functools.cache
def _where(
    table_name: str, forms: tuple[tuple[str, int], ...], order: str, newest_first: bool, limited: bool
) -> Statement:
    """A selection by columns, each with the number of its values: `_NULL` asks for a null."""
    table = ROW_TABLES[table_name]
    query = sa.select(table)
    for name, n_values in forms:
        column = _column(table, name)
        names = [sa.bindparam(f"{name}_{index}", type_=column.type) for index in range(n_values)]
        any_of = sa.or_(sa.false(), *(column == name for name in names))
        query = query.where(column.is_(None) if n_values == _NULL else any_of)
    keys = [_column(table, order), table.c.id]
    query = query.order_by(*(key.desc() if newest_first else key.asc() for key in keys))
    return Statement(lambda _: query.limit(sa.bindparam("limit", type_=sa.Integer())) if limited else query)


@functools.cache
def _upsert(table_name: str, names: tuple[str, ...]) -> Statement:
    table = ROW_TABLES[table_name]
    values = {name: sa.bindparam(name, type_=_column(table, name).type) for name in names}
    return Statement(
        lambda dialect: insert(dialect, table).values(values).on_conflict_do_update(index_elements=["id"], set_=values)
    )


def _column(table: sa.Table, name: str) -> sa.Column[Any]:
    if name not in table.c:
        raise TerminalError(f"{table.name} has no column {name!r}: it has {', '.join(table.c.keys())}")
    return table.c[name]
