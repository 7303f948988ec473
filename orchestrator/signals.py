"""Signals: one measured symptom each, and the days that it is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from state.spec import ModelSpec

WINDOW_BLOCKS = 7
"""Newest blocks over which the size of a departure is measured."""


class Signal(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """`loss_alarm`, `major_drift`, `challenger_better`, `data_fault`, `serving_fault`."""
    text: str
    """One sentence with the figures."""
    block: str | None = None
    blocks: list[str] = []
    """The blocks that a fault spoilt, where it is not `block` alone."""
    size: float = 0.0
    """How large the departure is; a signal that closed as not remediable stays quiet until it has grown."""
    floor: float = 0.10
    """How much more than that counts as grown, in the unit of `size`."""
    onset: str | None = None
    """ISO date or time about which the change began; None where the signal cannot tell."""
    details: dict[str, Any] = {}
    evidence_ids: list[str] = []


def block_begins(block: str) -> datetime:
    """The start of a block, by its name."""
    at = datetime.fromisoformat(block)
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def days_of_block(block: str, spec: ModelSpec) -> list[str]:
    """ISO dates of the days that a block covers."""
    first = datetime.fromisoformat(block)
    n_days = max(1, spec.monitoring.block // timedelta(days=1))
    return [(first + timedelta(days=i)).date().isoformat() for i in range(n_days)]


def days_of(signal: Signal, spec: ModelSpec) -> list[str] | None:
    """ISO dates of the days that a fault spoilt; None for a signal that is about no particular days."""
    if signal.block is not None:
        return days_of_block(signal.block, spec)
    if signal.name not in FAULTS:
        return None
    return sorted({day for block in signal.blocks for day in days_of_block(block, spec)})


def missing_blocks(signal: Signal) -> list[JsonValue]:
    """The signal's block where its rows are missing altogether: they may still come."""
    kinds = {str(finding["kind"]) for finding in signal.details.get("findings", [])}
    return [signal.block] if "no_rows" in kinds else []


FAULTS = frozenset({"data_fault", "label_fault"})
