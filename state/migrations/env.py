"""Alembic's environment: the caller's connection and transaction, our tables only."""

from __future__ import annotations

from alembic import context

from state.tables import metadata


def run() -> None:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        # The transaction is the caller's and a real BEGIN on both backends, so DDL rolls back with it.
        transactional_ddl=True,
        render_as_batch=True,
        # LangGraph keeps its tables in the same database.
        include_name=lambda name, kind, _: kind != "table" or name in metadata.tables,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
