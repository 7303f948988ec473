"""The first schema. Frozen: a later change is a later revision."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

# Table -> indexed text columns beside `id` and `body`; a question mark lets one be null.
ROWS = {
    "models": "status",
    "goals": "model? status",
    "incidents": "model status cause",
    "runs": "model subject_id status wake_at?",
    "signals": "model name at",
    "diagnoses": "model incident_id at",
    "detector_states": "model",
    "approvals": "model status action_key",
    "rollouts": "model status candidate",
    "evidence": "model topic sha256 at",
    "blocks": "model topic block",
    "outbox": "status",
    "switches": "",
    "actions": "model subject_id kind state created_at",
    "facts": "model subject_id name at",
    "plans": "model run_id",
    "profiles": "model block",
    "api_tokens": "owner token_sha256",
}
NUMBERS = {"actions": "log_index", "plans": "revision"}


def upgrade() -> None:
    for name, columns in ROWS.items():
        _row_table(name, columns.split())
    op.create_index("ix_plans_revision", "plans", ["revision"])
    _decisions()
    op.create_table(
        "log_checkpoints",
        sa.Column("size", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("root_sha256", TEXT, nullable=False),
        sa.Column("note", TEXT, nullable=False),
        sa.Column("frontier", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_log_checkpoints"),
    )
    op.create_table(
        "leases",
        sa.Column("scope", TEXT, nullable=False),
        sa.Column("owner", TEXT, nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", name="pk_leases"),
    )


def _row_table(name: str, columns: list[str]) -> None:
    extra = [sa.Column(NUMBERS[name], sa.BigInteger(), nullable=False)] if name in NUMBERS else []
    op.create_table(
        name,
        sa.Column("id", TEXT, nullable=False),
        *(sa.Column(column.rstrip("?"), TEXT, nullable=column.endswith("?")) for column in columns),
        *extra,
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
    )
    for column in columns:
        op.create_index(f"ix_{name}_{column.rstrip('?')}", name, [column.rstrip("?")])


def _decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("idx", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("decision_id", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=True),
        sa.Column("incident_id", TEXT, nullable=True),
        sa.Column("run_id", TEXT, nullable=True),
        sa.Column("at", TEXT, nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("leaf_sha256", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("idx", name="pk_decisions"),
        sa.UniqueConstraint("decision_id", name="uq_decisions_decision_id"),
    )
    for column in ("kind", "model", "incident_id", "run_id"):
        op.create_index(f"ix_decisions_{column}", "decisions", [column])
