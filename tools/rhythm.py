"""How often rows come, and the block, cadence and rollout that fit it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

_DAY = timedelta(days=1)
MIN_ROWS_PER_BLOCK = 20
"""A block with fewer rows says too little about a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    first: datetime
    last: datetime
    period: str
    """`daily`, `weekly`, `monthly`, `quarterly` or `yearly`: what the rows look like."""
    block: timedelta
    why: str
    n_blocks: int
    """Blocks that hold rows."""
    rows_per_block: float
    """Median over blocks that hold rows."""

    @property
    def backtest(self) -> timedelta:
        return max(28 * _DAY, 10 * self.block)

    @property
    def cadence(self) -> timedelta:
        return max(14 * _DAY, self.block)

    @property
    def dwell(self) -> timedelta:
        return max(_DAY, self.block)


def find_rhythm(times: pl.Series, *, stride: int) -> Rhythm:
    """The rhythm of sampled event times (UTC); `stride` rows of the source stand behind each."""
    present = times.drop_nulls()
    days = present.dt.date().unique().sort()
    first, last = present.min(), present.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        raise ValueError("no times")
    gaps = days.diff().dt.total_days().drop_nulls()
    usual = float(gaps.median() or 1) if len(gaps) else 1.0  # type: ignore[arg-type]
    period, block_days = _period(usual)
    per_block = _rows_per_block(present, block_days, stride)
    why = f"rows come {period}"
    if block_days == 1:
        for longer, name in ((7, "week"), (30, "month")):
            if per_block >= MIN_ROWS_PER_BLOCK or (last - first) < timedelta(days=10 * longer):
                break
            block_days = longer
            per_block = _rows_per_block(present, block_days, stride)
            why = f"a day has too few rows to judge a model by, a {name} has about {per_block:.0f}"
    starts = present.dt.epoch("us") // (block_days * 86_400_000_000)
    return Rhythm(
        first=first,
        last=last,
        period=period,
        block=timedelta(days=block_days),
        why=why,
        n_blocks=starts.n_unique(),
        rows_per_block=per_block,
    )


def _period(usual_gap_days: float) -> tuple[str, int]:
    for longest, name, days in ((4, "daily", 1), (10, "weekly", 7), (45, "monthly", 30), (140, "quarterly", 91)):
        if usual_gap_days <= longest:
            return name, days
    return "yearly", 365


def _rows_per_block(times: pl.Series, block_days: int, stride: int) -> float:
    counts = (times.dt.epoch("us") // (block_days * 86_400_000_000)).value_counts()["count"]
    median = counts.median()
    return stride * float(median) if isinstance(median, int | float) else 0.0
