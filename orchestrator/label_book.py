"""The book of a model's labels: what came of every matured block, and how labels went with the champion's scores."""

from __future__ import annotations

import functools
from datetime import datetime
from typing import Any, cast

import msgspec

from agents.labels import LabelledBlock, check_labels, labelled_blocks
from agents.monitoring import Measured
from orchestrator.attendance import read_attendance
from orchestrator.awaited import unlabelled, wake
from orchestrator.crew import Crew
from orchestrator.cursor import block_name
from orchestrator.signals import block_begins, days_of_block
from orchestrator.traffic_book import read_book
from state import store
from state.rows import BlockRow, DetectorRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.labels import MIN_REFERENCE, LabelCounts, LabelReference, reference_of

PREVIOUS = 28
KEPT = 120
"""Newest blocks that a change is looked for in."""
LIVE_REFERENCE = 20
"""First live blocks that stand for a version whose training left no reference."""


def served_rows(conn: Connection, spec: ModelSpec, start: datetime, until: datetime) -> dict[str, int]:
    """Rows by block that were served in [start, until), of blocks throughout which the system ran."""
    first, last = block_name(start, spec), block_name(until, spec)
    return {block: n for block, n in read_book(conn, spec).served.items() if first <= block < last}


def labels_before(conn: Connection, spec: ModelSpec) -> list[LabelledBlock]:
    """The newest matured blocks in whose labels nothing was found, oldest first; how labels went with scores left out."""
    rows = _rows(conn, spec, n_newest=PREVIOUS)
    return [_block(row, without="cells") for row in rows if not row.body.get("faulty")]


def keep_labels(conn: Connection, spec: ModelSpec, measured: Measured, fence: Fence) -> None:
    """Store what a look saw of matured labels, once per block."""
    hard: dict[str, set[str]] = {}
    for finding in measured.label_findings:
        if finding["severity"] == "hard":
            hard.setdefault(str(finding["block"]), set()).add(str(finding["kind"]))
    for block in measured.labelled:
        _put(conn, spec, block, hard.get(block.block, set()), fence)


def _put(conn: Connection, spec: ModelSpec, block: LabelledBlock, kinds: set[str], fence: Fence) -> None:
    body: dict[str, Any] = {
        **block.model_dump(mode="json", exclude={"block"}), "faulty": bool(kinds), "missing": "labels_missing" in kinds,
    }  # fmt: skip
    row_id = f"{spec.model}/{block.block}/all/outcomes"
    store.put(conn, BlockRow(id=row_id, model=spec.model, topic="outcomes", block=block.block, body=body), fence=fence)


def spoilt_days(spec: ModelSpec, measured: Measured) -> set[str]:
    """Days whose labels this look has found to be at fault."""
    blocks = {str(finding["block"]) for finding in measured.label_findings if finding["severity"] == "hard"}
    return {day for block in blocks for day in days_of_block(block, spec)}


def take_late_labels(crew: Crew, conn: Connection, spec: ModelSpec, fence: Fence) -> None:
    """Look again at blocks whose labels had not come; those that have come in a usual number wait no longer."""
    waiting = sorted(unlabelled(conn, spec))
    if not waiting:
        return
    served = read_book(conn, spec).served
    frame = crew.platform.outcomes.labelled(
        spec.model, start=block_begins(waiting[0]), end=block_begins(waiting[-1]) + spec.monitoring.block,
        as_of=crew.clock.now(),
    )  # fmt: skip
    before = labels_before(conn, spec)
    now = labelled_blocks(frame, spec, {block: served[block] for block in waiting if block in served})
    for block in now:
        findings = check_labels([block], before, spec) if block.block in waiting else []
        kinds = {str(finding["kind"]) for finding in findings if finding["severity"] == "hard"}
        if block.block in waiting and "labels_missing" not in kinds:
            _put(conn, spec, block, kinds, fence)
            wake(conn, spec, block.block, fence)


def labels_by_score(conn: Connection, spec: ModelSpec, version: str, bad: set[str]) -> list[LabelCounts]:
    """The version's matured blocks, oldest first, without faulty and quarantined ones."""
    return [
        LabelCounts.from_cells(row.block, cells)
        for row in _rows(conn, spec)
        if (cells := _block(row).cells.get(version))
        and not row.body.get("faulty")
        and not bad & set(days_of_block(row.block, spec))
    ]


def label_reference(
    conn: Connection, spec: ModelSpec, version: str, live: list[LabelCounts]
) -> tuple[LabelReference | None, list[LabelCounts]]:
    """How labels go with the version's scores, and the live blocks that may be held against it.

    The out-of-sample blocks of its training, else its first live ones; None where neither are enough.
    """
    row = store.get(conn, DetectorRow, f"{spec.model}/reference/{version}")
    known = cast("list[dict[str, Any]]", row.state.get("labels") or []) if row is not None else []
    if len(known) >= MIN_REFERENCE:
        return _reference(msgspec.json.encode([[block["block"], block["cells"]] for block in known])), live
    if len(live) < LIVE_REFERENCE:
        return None, []
    return reference_of(live[:LIVE_REFERENCE]), live[LIVE_REFERENCE:]


@functools.lru_cache(maxsize=16)
def _reference(blocks: bytes) -> LabelReference | None:
    """The reference of a version's training blocks, which every look needs and none changes."""
    return reference_of([LabelCounts.from_cells(block, cells) for block, cells in msgspec.json.decode(blocks)])


def _rows(conn: Connection, spec: ModelSpec, *, n_newest: int = KEPT) -> list[BlockRow]:
    """Oldest first, without those of a replay that ended."""
    attended = read_attendance(conn, spec.model)
    since = attended.since if attended is not None else ""
    rows = store.select(
        conn, BlockRow, model=spec.model, topic="outcomes", order="block", newest_first=True, limit=n_newest
    )  # fmt: skip
    return [row for row in reversed(rows) if row.block >= since]


def _block(row: BlockRow, *, without: str = "") -> LabelledBlock:
    names = LabelledBlock.model_fields.keys() - {"block", without}
    return LabelledBlock.model_validate({"block": row.block, **{name: row.body[name] for name in names}})
