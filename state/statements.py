"""Statements that are built and compiled once, and run on the driver's own cursor.

A tick reads hundreds of single rows. Building the expression, looking its compiled form up and wrapping the result cost
forty times what SQLite needs to answer, so SQLAlchemy writes the text and the driver runs it, within the transaction that
SQLAlchemy began.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from state.clock import utc

Record = Sequence[Any]
"""The columns of one row, in the order of the statement."""


class Statement:
    """One statement whose values are named parameters; `build` writes it for a backend, once for each."""

    def __init__(self, build: Callable[[sa.Dialect], sa.ClauseElement]) -> None:
        self._build = build
        self._texts: dict[str, tuple[str, list[str] | None, dict[str, Any]]] = {}

    def all(self, conn: sa.Connection, values: Mapping[str, Any] | None = None) -> list[Record]:
        """Every row. Times are bound as the text that the tables keep."""
        return list(self._cursor(conn, values).fetchall())

    def one(self, conn: sa.Connection, values: Mapping[str, Any] | None = None) -> Record | None:
        """The first row, or None."""
        found: Record | None = self._cursor(conn, values).fetchone()
        return found

    def run(self, conn: sa.Connection, values: Mapping[str, Any] | None = None) -> None:
        """Run what returns no rows."""
        self._cursor(conn, values)

    def _cursor(self, conn: sa.Connection, values: Mapping[str, Any] | None) -> Any:
        text, order, fixed = self._texts.get(conn.dialect.name) or self._compile(conn.dialect)
        bound = {name: _plain(value) for name, value in {**fixed, **(values or {})}.items()}
        parameters: Any = bound if order is None else [bound[name] for name in order]
        return conn.connection.cursor().execute(text, parameters)

    def _compile(self, dialect: sa.Dialect) -> tuple[str, list[str] | None, dict[str, Any]]:
        compiled: Any = self._build(dialect).compile(dialect=dialect)
        made = (str(compiled), compiled.positiontup, dict(compiled.construct_params(_check=False)))
        self._texts[dialect.name] = made
        return made


def _plain(value: Any) -> Any:
    return utc(value).isoformat(timespec="microseconds") if isinstance(value, datetime) else value
