"""Rows that are odd in a way which their values do not show: sent twice, sent late, sent with columns of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from state.spec import ModelSpec
from tools.drift.performance import block_at
from tools.ports import Outcomes
from tools.quality import BatchFacts, Oddities

SPOILT = 0.05
"""Share of a block's rows that came late from which on the block is no longer what was measured."""


class Before(BaseModel):
    """What is known of earlier traffic when a block is looked at; JSON only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    served: dict[str, int] = {}
    """Rows by earlier live block, whatever version answered and whatever was found in them."""
    holes: list[str] = []
    """Earlier blocks in which rows were missing altogether."""
    passed: list[str] = []
    """Earlier blocks that were never measured, because the system was stopped."""
    revisions: dict[str, int] | None = None
    """Revision of the records by event day at the last look; None before the first."""
    odd: list[dict[str, int]] = []
    """Odd rows of earlier good blocks."""
    compared: list[dict[str, int]] = []
    """`n_keys` and `n_differ` of earlier good blocks: served against offline values."""


class Intake(BaseModel):
    """What one block brought beside its values; JSON only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    odd: dict[str, int] = {}
    recounted: dict[str, int] = {}
    """Rows, as they are now, of earlier blocks to which rows were added since the last look."""
    late: dict[str, int] = {}
    """How many of them were over for more than a block when this one began."""
    revisions: dict[str, int] = {}

    def spoilt(self) -> list[str]:
        """Blocks of which late rows are a considerable part."""
        return sorted(name for name, n_late in self.late.items() if n_late >= SPOILT * self.recounted[name])


def take_stock(outcomes: Outcomes, frame: pl.DataFrame, spec: ModelSpec, block: str, before: Before) -> Intake:
    """What the records of `block` in `frame` brought, and what was added to earlier blocks since the last look.

    Arrival is judged by what was there at the last look, never by a wall clock, which in a replay says nothing. Rows of
    a hole are awaited and those of a stop made up for: they are never late. Before the first look nothing is.
    """
    now, length = dict(outcomes.revisions(spec.model)), spec.monitoring.block
    changed: dict[str, float] = {}
    for day, revision in now.items() if before.revisions is not None else ():
        known = before.revisions.get(day, 0) if before.revisions is not None else 0
        for name in _blocks_of(day, length) if revision > known else ():
            if name < block:
                changed[name] = max(changed.get(name, 0.0), (revision - known) / revision)
    recounted = {name: _count(outcomes, spec, name) for name in changed}
    late: dict[str, int] = {}
    far = _start(block) - 2 * max(length, timedelta(days=1))
    for name, n_rows in recounted.items():
        # Where the count has been forgotten, the share of new files is the best that is known.
        added = n_rows - before.served[name] if name in before.served else round(n_rows * changed[name])
        if added > 0 and _start(name) <= far and name not in (*before.holes, *before.passed):
            late[name] = added
    counts = {**asdict(_odd_rows(frame, spec)), "late": sum(late.values())}
    return Intake(odd=counts, recounted=recounted, late=late, revisions=now)


def facts_of(before: Before, intake: Intake, length: timedelta, frame: pl.DataFrame) -> BatchFacts:
    """The same for the quality rules, with what the rows in `frame` show beside their counts."""
    return BatchFacts(
        length=length, served=before.served, holes=before.holes, odd=Oddities(**intake.odd),
        before=[Oddities(**counts) for counts in before.odd], top_shares=_top_shares(frame),
    )  # fmt: skip


def _top_shares(frame: pl.DataFrame) -> dict[str, float]:
    """Numeric column -> share of its values that are its most frequent one; columns without a value are left out."""
    shares = {}
    for column in frame.get_columns():
        values = column.drop_nulls() if column.dtype.is_numeric() else column.clear()
        if len(values):
            shares[column.name] = int(np.unique(values.to_numpy(), return_counts=True)[1].max()) / len(values)
    return shares


def _odd_rows(frame: pl.DataFrame, spec: ModelSpec) -> Oddities:
    """A request that was answered twice is in `frame` once; a row that was sent twice is two requests."""
    if not frame.height:
        return Oddities()
    # Where the spec names no entity every request is its own, and would never repeat another.
    key = ["event_time", *(["entity"] if spec.data.entity else []), *spec.feature_names()]
    distinct = frame.select(name for name in key if name in frame.columns).n_unique()
    extra = 0
    if "flags" in frame.columns and frame["flags"].list.len().sum():
        unknown = pl.col("flags").list.eval(pl.element().str.starts_with("extra:")).list.any()
        extra = int(frame.select(unknown.fill_null(value=False)).to_series().sum())
    return Oddities(n_rows=frame.height, repeated=frame.height - distinct, extra=extra)


def _blocks_of(day: str, length: timedelta) -> Iterator[str]:
    """Names of the blocks that an event day has a part in."""
    first = datetime.fromisoformat(day).replace(tzinfo=UTC)
    step = min(length, timedelta(days=1))
    times = [first + n * step for n in range(int(timedelta(days=1) / step))]
    yield from dict.fromkeys(block_at(time, length) for time in times)


def _count(outcomes: Outcomes, spec: ModelSpec, block: str) -> int:
    start = _start(block)
    return outcomes.predictions(spec.model, start=start, end=start + spec.monitoring.block).height


def _start(block: str) -> datetime:
    return datetime.fromisoformat(block).replace(tzinfo=UTC)
