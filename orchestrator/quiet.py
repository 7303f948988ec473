"""What was answered stays quiet: a symptom comes back only with another champion, or when it has grown by another floor."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from orchestrator.change import champion_version
from orchestrator.matching import faulty_columns
from orchestrator.segment_book import segment_sizes
from orchestrator.signals import Signal, block_begins, days_of_block
from state import store
from state.rows import DetectorRow, IncidentRow, SignalRow
from state.spec import ModelSpec
from state.store import Connection, Fence

MEASURED = frozenset({"loss_alarm", "major_drift", "challenger_better", "calibration_lost"})
"""Signals with a size, beside those of segments: they may be answered, and come back only when they have grown."""
_DAY = timedelta(days=1)


def keep_quiet(
    conn: Connection, spec: ModelSpec, incident: IncidentRow, fence: Fence, *, but: frozenset[str] = frozenset()
) -> None:  # fmt: skip
    """Remember the size of what an answered incident was about: what was said of the present champion, and every segment
    in its scope; signals in `but` were not answered by how it ended.

    Of a segment it is the present one, if that is larger: it was noticed within days, and a whole window tells more.
    """
    version = champion_version(conn, incident.model)
    segments = incident.body.get("segments")
    sizes: dict[str, Any] = {}
    if isinstance(segments, dict):
        now = segment_sizes(conn, spec, version)
        sizes = {_segment(name): max(float(str(size)), now.get(name, 0.0)) for name, size in segments.items()}
    for row in store.select(conn, SignalRow, model=incident.model, name=sorted(MEASURED - but), order="at"):
        if row.incident_id == incident.id and row.body.get("champion", version) == version:
            sizes[row.name] = row.value or 0.0
    for name, size in sizes.items():
        state: dict[str, Any] = {"size": size, "incident": incident.id, "champion": version}
        store.put(conn, DetectorRow(id=_row_id(incident.model, name), model=incident.model, state=state), fence=fence)


def is_quiet(conn: Connection, spec: ModelSpec, signal: Signal) -> bool:
    """Whether this champion's signal, or the segment that it is about, was answered before and has not grown since."""
    champion = store.get(conn, DetectorRow, f"{spec.model}/champion")
    if champion is None:
        return False
    sizes = {} if signal.name == "segment_alarm" else {signal.name: (signal.size, signal.floor)}
    if "segment" in signal.details:
        segment = str(signal.details["segment"])
        size, floor = signal.details["segments"][segment], signal.details["segment_floor"]
        sizes[_segment(segment)] = (float(size), float(floor))
    return any(
        (known := store.get(conn, DetectorRow, _row_id(spec.model, name))) is not None
        and known.state.get("champion") == champion.state["version"]
        and size <= float(str(known.state.get("size", 0.0))) + floor
        for name, (size, floor) in sizes.items()
    )


def keep_refusal(conn: Connection, incident: IncidentRow, fence: Fence) -> None:
    """A person said no to taking the days of a data fault out: remember the columns, and the last of its days."""
    columns, days = incident.body.get("columns"), incident.body.get("days")
    if incident.cause == "data_fault" and isinstance(columns, list) and isinstance(days, list) and columns and days:
        state: dict[str, Any] = {
            "columns": sorted({_fault(str(column)) for column in columns}), "until": str(days[-1]),
            "incident": incident.id,
        }  # fmt: skip
        store.put(
            conn, DetectorRow(id=_row_id(incident.model, "data_fault"), model=incident.model, state=state), fence=fence
        )


def extend_refusal(conn: Connection, spec: ModelSpec, signal: Signal, fence: Fence) -> bool:
    """Whether the signal is the next day of a fault whose days a person leaves in, which then lasts until that day.

    A pause of a block makes a new fault.
    """
    if signal.name != "data_fault" or signal.block is None:
        return False
    row = store.get(conn, DetectorRow, _row_id(spec.model, "data_fault"))
    columns = {_fault(column) for column in faulty_columns(signal)}
    if row is None or not columns:
        return False
    pause = block_begins(signal.block) - block_begins(str(row.state["until"]))
    refused = row.state["columns"]
    assert isinstance(refused, list)
    if not columns <= {str(column) for column in refused} or pause > max(spec.monitoring.block, _DAY):
        return False
    # A block whose rows came late is older than what was left in since.
    until = max(str(row.state["until"]), days_of_block(signal.block, spec)[-1])
    state: dict[str, Any] = {**row.state, "until": until}
    store.put(conn, row.model_copy(update={"state": state}), fence=fence)
    return True


def _fault(column: str) -> str:
    """`kind/column` of `block/kind/column`."""
    return column.split("/", 1)[1]


def _segment(name: str) -> str:
    return f"segment_alarm/{name}"


def _row_id(model: str, name: str) -> str:
    return f"{model}/quiet/{name}"
