"""Replay in domain time: send a block, release the labels that are due, run the loop until it is quiet, advance.

A barrier drives domain time, so the outcome does not depend on how fast this machine is. The cursor is a row: after a
kill the block under way is sent again, and rows that were answered before are the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import polars as pl

from orchestrator.crew import Crew
from orchestrator.graph import Graph
from orchestrator.loop import checkpoint, run_until_quiet
from state import store
from state.canonical import digest
from state.clock import ReplayClock
from state.rows import SwitchRow
from state.spec import ModelSpec

POLL_SECONDS = 0.2
"""Pause between two looks at a pipeline that runs; domain time stands still meanwhile."""


class Source(Protocol):
    """Recorded traffic and the sender that makes it live."""

    def blocks(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, pl.DataFrame]]:
        """Blocks of rows in [start, end) in time order, empty ones included."""

    def send(self, rows: pl.DataFrame, address: str) -> tuple[int, int]:
        """Send the rows; the number sent, and of those the number that failed."""


@dataclass(slots=True, kw_only=True)
class Replay:
    """One replay of one model from `start` to `end`."""

    crew: Crew
    graph: Graph
    spec: ModelSpec
    clock: ReplayClock
    source: Source
    start: datetime
    end: datetime
    hooks: list[Callable[[datetime], bool]] = field(default_factory=list)
    """Called at the end of every block's ticks with domain time; True asks for more ticks."""
    on_block: Callable[[datetime, int], None] = lambda at, n: None

    def cursor(self) -> datetime:
        """Where the replay stands: the end of the last block that is done."""
        with self.crew.db.transaction() as conn:
            row = store.get(conn, SwitchRow, f"replay/{self.spec.model}")
        return datetime.fromisoformat(str(row.body["at"])) if row is not None else self.start

    def run(self) -> None:
        """Replay what is left, then stop at the end."""
        start = self.cursor()
        self.clock.advance_to(max(start, self.clock.now()))
        self._settle()
        if start >= self.end:
            return
        for begin, stop, rows in self.source.blocks(start, self.end):
            self._block(begin, stop, rows)

    def _block(self, begin: datetime, stop: datetime, rows: pl.DataFrame) -> None:
        platform, model = self.crew.platform, self.spec.model
        route = platform.mesh.read(model)
        if rows.height and route is not None:
            known = platform.outcomes.predictions(model, start=begin, end=stop)["request_id"]
            fresh = rows.filter(~pl.col("request_id").is_in(known.implode())) if known.len() else rows
            n_sent, n_failed = self.source.send(fresh, route.address)
            platform.servers.flush(model)
            if n_failed:
                self.crew.say("data plane", f"{n_failed} of {n_sent} requests failed on {begin:%Y-%m-%d}")
        self._release_labels(begin, stop)
        self._set_time(stop)
        self._settle()
        with self.crew.db.transaction() as conn:
            store.put(conn, SwitchRow(id=f"replay/{model}", body={"at": stop.isoformat()}), fence=None)
        self.on_block(stop, rows.height)

    def _release_labels(self, begin: datetime, stop: datetime) -> None:
        """Labels whose delay ends in this block become available; a row without one stays without."""
        delay, model = self.spec.data.label.delay, self.spec.model
        due_from, due_until = max(begin - delay, self.start), stop - delay
        if due_until <= due_from:
            return
        for first, last, rows in self.source.blocks(due_from, due_until):
            labels = rows.filter(pl.col("label").is_not_null()).select(
                "request_id", "label", (pl.col("event_time") + delay).alias("available_at")
            )
            if labels.height:
                key = digest({"model": model, "from": first.isoformat(), "until": last.isoformat(), "what": "labels"})
                self.crew.platform.outcomes.record(model, labels, key=key)

    def _set_time(self, at: datetime) -> None:
        """Advance domain time, and let other processes (`steady approve`, `steady status`) read it."""
        with self.crew.db.transaction() as conn:
            store.put(conn, SwitchRow(id="domain_time", body={"at": at.isoformat()}), fence=None)
        self.clock.advance_to(at)

    def _settle(self) -> None:
        """Tick until nothing moves and nothing outside is running; what waits for domain time or a person, waits."""
        again = True
        while again:
            while run_until_quiet(self.crew, self.graph, self.spec).outcome in ("busy", "progressed", "not_ours"):
                time.sleep(POLL_SECONDS)
            asked = [hook(self.clock.now()) for hook in self.hooks]
            again = any(asked)
        checkpoint(self.crew)
