"""Runs the revisions that ship in this package on an open transaction."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

FOLDER = Path(__file__).parent
# A constant that no other program takes: two workers that start together migrate one after the other.
POSTGRES_LOCK = 0x57EAD1


class UnknownRevisionError(Exception):
    """The database carries a revision that this release does not know."""


def upgrade_schema(conn: sa.Connection) -> None:
    """Run every missing revision within the caller's transaction.

    Raises:
        UnknownRevisionError: a newer release wrote the database.
    """
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(POSTGRES_LOCK)))
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = conn
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        raise UnknownRevisionError(str(exc)) from exc
