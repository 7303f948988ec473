"""Signals: one measured symptom each."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Signal(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """`loss_alarm`, `major_drift`, `challenger_better`, `data_fault`, `serving_fault`."""
    text: str
    """One sentence with the figures."""
    block: str | None = None
    size: float = 0.0
    """How large the departure is; a signal that closed as not remediable stays quiet until it has grown."""
    floor: float = 0.10
    """How much more than that counts as grown, in the unit of `size`."""
    details: dict[str, Any] = {}
    evidence_ids: list[str] = []
