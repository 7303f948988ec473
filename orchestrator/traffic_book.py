"""The book of a model's traffic: rows by block over all versions, and what had been recorded at the last look; a row."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, cast

from agents.oddities import Before, Intake
from state import store
from state.rows import BlockRow, DetectorRow
from state.spec import ModelSpec
from state.store import Connection, Fence

REMEMBERED = timedelta(days=70)
"""How far back row counts are kept: four of each weekday, whatever was quarantined between them."""
MAX_BLOCKS = 2_000


def read_before(conn: Connection, spec: ModelSpec, good: list[BlockRow], *, since: str = "") -> Before:
    """What is known of earlier traffic. `good` are the blocks whose profiles count; blocks before `since` do not."""
    state = _state(conn, spec)
    if state["revisions"] is None:  # watched before this book was kept
        state["rows"] = {row.block: row.body["n_rows"] for row in good}
    return Before(
        served={block: n for block, n in state["rows"].items() if block >= since},
        holes=state["holes"], passed=state["passed"], revisions=state["revisions"],
        odd=[cast("dict[str, int]", row.body["odd"]) for row in good if row.body.get("odd")],
        compared=[cast("dict[str, int]", row.body["compared"]) for row in good if row.body.get("compared")],
    )  # fmt: skip


def enter(
    conn: Connection,
    spec: ModelSpec,
    block: str,
    n_rows: int,
    intake: Intake,
    *,
    hole: bool,
    counts: bool,
    fence: Fence,
) -> None:
    """Write down what a look at `block` found. Where `counts` is false the block's own rows say nothing: it was stopped."""
    state = _state(conn, spec)
    rows: dict[str, int] = state["rows"]
    if block >= max(rows, default=block):
        rows.update({name: n for name, n in intake.recounted.items() if name in rows})
        state["revisions"] = intake.revisions
    passed = {*state["passed"], *_between(max(rows, default=block), block, spec)}
    if counts:
        rows[block] = n_rows
        passed.discard(block)
    else:
        passed.add(block)
    holes = {*state["holes"], block} if hole else {*state["holes"]} - {block}
    n_kept = min(MAX_BLOCKS, max(REMEMBERED // spec.monitoring.block, 28))
    kept = dict(sorted(rows.items())[-n_kept:])
    first = min(kept, default=block)
    body: dict[str, Any] = {
        "rows": kept, "holes": sorted(name for name in holes if name >= first),
        "passed": sorted(name for name in passed if name >= first), "revisions": state["revisions"],
    }  # fmt: skip
    store.put(conn, DetectorRow(id=_row_id(spec), model=spec.model, state=body), fence=fence)


def read_book(conn: Connection, spec: ModelSpec) -> Before:
    """Everything that is written down."""
    return read_before(conn, spec, [])


def _between(newest: str, block: str, spec: ModelSpec) -> list[str]:
    """Blocks after `newest` and before `block`: no look was taken at them."""
    length = spec.monitoring.block
    n_skipped = (datetime.fromisoformat(block) - datetime.fromisoformat(newest)) // length - 1
    whole_days = length % timedelta(days=1) == timedelta(0)
    times = [datetime.fromisoformat(newest) + length * (n + 1) for n in range(min(n_skipped, MAX_BLOCKS))]
    return [at.date().isoformat() if whole_days else at.isoformat() for at in times]


def _state(conn: Connection, spec: ModelSpec) -> dict[str, Any]:
    row = store.get(conn, DetectorRow, _row_id(spec))
    empty: dict[str, Any] = {"rows": {}, "holes": [], "passed": [], "revisions": None}
    return empty | dict(row.state) if row is not None else empty


def _row_id(spec: ModelSpec) -> str:
    return f"{spec.model}/traffic"
