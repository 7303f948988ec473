"""The SQL schema: what is queried or constrained is a column, the rest is one JSON body.

Bodies are text in canonical JSON and times are text of one width, so both read back exactly as written and
sort alike on SQLite and PostgreSQL.
"""

from __future__ import annotations

from datetime import datetime
from types import UnionType
from typing import Any, Union, get_args, get_origin

import sqlalchemy as sa
from pydantic import AwareDatetime

from state import rows
from state.clock import utc
from state.rows import Row

# Order by bytes on both backends, whatever the locale of the PostgreSQL cluster.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


class UtcText(sa.types.TypeDecorator[str]):
    """A time as ISO 8601 in UTC with microseconds: one width, so text order is time order."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: datetime | str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        return utc(value).isoformat(timespec="microseconds") if isinstance(value, datetime) else value


UTC_TEXT = UtcText().with_variant(UtcText(collation="C"), "postgresql")


def leaf_read_back(value: Any) -> bytes:
    """The stored leaf as bytes, whatever a hand-made SQL statement left there, so that an audit can name it."""
    return value.encode() if isinstance(value, str) else bytes(value)


class LeafBytes(sa.types.TypeDecorator[bytes]):
    """Bytes that read back whatever was left there."""

    impl = sa.LargeBinary
    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:  # noqa: ARG002
        return leaf_read_back


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ROW_TYPES: tuple[type[Row], ...] = tuple(
    item for item in vars(rows).values() if isinstance(item, type) and issubclass(item, Row) and item is not Row
)


def _column(row_type: type[Row], name: str) -> sa.Column[Any]:
    annotation = row_type.model_fields[name].annotation
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kind: Any = TEXT
    if AwareDatetime in parts:
        kind = UTC_TEXT
    elif int in parts:
        kind = sa.BigInteger()
    return sa.Column(
        name, kind, primary_key=name == "id", nullable=type(None) in parts, index=name != "id", autoincrement=False
    )


def _row_table(row_type: type[Row]) -> sa.Table:
    columns = [_column(row_type, name) for name in row_type.columns]
    return sa.Table(row_type.table, metadata, *columns, sa.Column("body", sa.Text(), nullable=False))


ROW_TABLES: dict[str, sa.Table] = {row_type.table: _row_table(row_type) for row_type in ROW_TYPES}

actions = ROW_TABLES["actions"]
# Index in the decision log of the record that last changed the action: domain times may be equal, this never is.
actions.append_column(sa.Column("log_index", sa.BigInteger(), nullable=False))

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("idx", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("decision_id", TEXT, nullable=False, unique=True),
    sa.Column("kind", TEXT, nullable=False, index=True),
    sa.Column("model", TEXT, index=True),
    sa.Column("incident_id", TEXT, index=True),
    sa.Column("run_id", TEXT, index=True),
    sa.Column("at", UTC_TEXT, nullable=False),
    # Exactly the bytes that were hashed, and their RFC 6962 leaf hash in hexadecimal.
    sa.Column("leaf", LeafBytes(), nullable=False),
    sa.Column("leaf_sha256", TEXT, nullable=False),
)

log_checkpoints = sa.Table(
    "log_checkpoints",
    metadata,
    sa.Column("size", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("root_sha256", TEXT, nullable=False),
    sa.Column("note", TEXT, nullable=False),
    # Hashes of the perfect subtrees, left to right: the next checkpoint continues here.
    sa.Column("frontier", sa.Text(), nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("scope", TEXT, primary_key=True),
    sa.Column("owner", TEXT),
    sa.Column("epoch", sa.BigInteger(), nullable=False),
    # Milliseconds since 1970 on the database's clock.
    sa.Column("expires_ms", sa.BigInteger(), nullable=False),
)
