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
    """`loss_alarm`, `segment_alarm`, `major_drift`, `challenger_better`, `calibration_lost`, `data_fault`, `label_fault`,
    `serving_fault`, `canary_failed`, `skew`."""
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


def fault_body(signal: Signal, spec: ModelSpec) -> dict[str, JsonValue]:
    """What an incident has to remember of a fault: its days, and of them those on which something may still come."""
    days = days_of(signal, spec)
    if days is None:
        return {}
    findings: list[dict[str, Any]] = signal.details.get("findings", [])
    kinds = {str(finding["kind"]) for finding in findings}
    late = [str(finding["block"]) for finding in findings if finding["kind"] == "labels_missing"]
    return {
        "days": [*days], "missing": [signal.block] if "no_rows" in kinds else [], "unlabelled": [*late],
        "by_score": "in_doubt" in signal.details,
        **{name: signal.details[name] for name in ("in_doubt", "asking", "symptom") if name in signal.details},
    }  # fmt: skip


def joined(known: dict[str, JsonValue], more: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The bodies of two signals of one fault."""
    body: dict[str, JsonValue] = {}
    for name, value in more.items():
        before = known.get(name)
        if isinstance(value, list):
            body[name] = sorted({str(item) for item in [*(before if isinstance(before, list) else []), *value]})  # type: ignore[assignment]
        else:
            body[name] = bool(before) or value if name == "by_score" else value
    return body


OF_THE_LOSS = frozenset({"loss_alarm", "segment_alarm", "goal_missed"})
"""What predictions that have become worse bring about, and labels at fault as well."""
FAULTS = frozenset({"data_fault", "label_fault", "skew"})
"""Causes and signals that spoil the days on which they hold."""
