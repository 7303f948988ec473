"""Seconds of work on a replay, over every process that had a part in it."""

from __future__ import annotations

import time
from collections.abc import Callable

from state import store
from state.rows import SwitchRow
from state.store import Database


class WorkTime:
    """A row that grows block by block, so that a kill loses the block under way and nothing more."""

    def __init__(self, db: Database, model: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._db, self._id, self._now = db, f"work/{model}", now
        self._since = now()

    def note(self) -> None:
        """Add what passed since the last note, or since this was made."""
        passed, self._since = self._now() - self._since, self._now()
        with self._db.transaction() as conn:
            row = store.get(conn, SwitchRow, self._id)
            before = float(str(row.body["seconds"])) if row is not None else 0.0
            store.put(conn, SwitchRow(id=self._id, body={"seconds": before + passed}), fence=None)

    def seconds(self) -> float | None:
        """All of it; None where nothing was noted, for instance by an earlier release."""
        with self._db.snapshot() as conn:
            row = store.get(conn, SwitchRow, self._id)
        return float(str(row.body["seconds"])) if row is not None else None
