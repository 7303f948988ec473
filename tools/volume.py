"""How many rows a block should hold: the calendar of a model's traffic, from row counts and the blocks of its reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Literal, TypeAlias

import numpy as np
from scipy.special import betainc, pdtr

Slot: TypeAlias = tuple[int, time] | None
"""Weekday and time of day of a block; None where all blocks are alike, because one is longer than a day."""
Counts: TypeAlias = dict[datetime, int]

VOLUME = (0.2, 5.0)
"""Admissible rows, as multiples of the median of comparable blocks."""
CHANCE = 1e-4
"""A count outside these bounds is no fault where chance alone shows it this often: few rows vary much."""
MAX_GAPS = 0.02
"""Share of earlier blocks without rows, within the hours and weekdays that have any, up to which rows always came."""
MIN_HISTORY = 5
"""Earlier blocks from which on any block may stand for the usual count."""
RECENT = 28
UNKNOWN_SPREAD = 8.0
"""Variance over mean that is supposed where too few blocks are known to measure it."""
_SAME_SLOT = 4
_DAY = timedelta(days=1)
_MONTHLY = (timedelta(days=28), timedelta(days=35))
_POSITIONS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    kind: Literal["usual", "volume", "no_rows", "closed"]
    """`volume`: far from the usual count. `no_rows`: none at all where rows always came. `closed`: none, as before."""
    usual: float
    """Median of comparable blocks with rows."""
    off: float = 0.0
    """How many times the count lies beyond the admissible bound; above 1 for a fault, 0 for none."""


def judge_volume(
    block: str,
    n_rows: int,
    *,
    served: Mapping[str, int],
    holes: Collection[str] = (),
    reference: Collection[str] = (),
    length: timedelta = _DAY,
) -> Volume | None:
    """Whether a block of `length` holds about as many rows as comparable ones; None where too little is known.

    `served` are the rows of earlier live blocks, empty ones included; `holes` are those of them that were judged
    `no_rows`, which say nothing about the calendar. `reference` names the blocks in which the reference has rows; their
    number is not used, since a reference may be thinned. Comparable are blocks of the same weekday, and of the same
    time of day where blocks are shorter than a day.

    A count is a fault where it lies outside [.2, 5] times the usual one and a negative binomial of the usual mean and
    of the blocks' own spread would show it in fewer than one of 10,000 blocks. An empty block is one only where rows
    came in (nearly) every earlier block of the hours and weekdays that have any.
    """
    start = datetime.fromisoformat(block)
    counts = {at: n for name, n in served.items() if (at := datetime.fromisoformat(name)) < start}
    gaps = {datetime.fromisoformat(name) for name in holes}
    judged = {at: n for at, n in sorted(counts.items()) if at not in gaps}
    known = dict(list(judged.items())[-RECENT:])
    if not any(known.values()):
        return Volume(kind="closed", usual=0.0) if any(judged.values()) and not n_rows else None
    usual = _usual(start, judged, length)
    if not n_rows:
        is_usual = _is_calendar(start, counts, length) or not _always(start, counts, gaps, reference, length)
        usual = usual if usual is not None else float(np.median([n for n in known.values() if n]))
        if is_usual or _at_most(0, usual, _spread(known, length)) >= CHANCE:
            return Volume(kind="closed", usual=usual)
        return Volume(kind="no_rows", usual=usual, off=VOLUME[0] * usual / 1e-3)
    if usual is None:
        return None
    spread = _spread(known, length)
    off = max(VOLUME[0] * usual / n_rows, n_rows / (VOLUME[1] * usual))
    rare = _at_most(n_rows, usual, spread) if n_rows < usual else 1 - _at_most(n_rows - 1, usual, spread)
    return (
        Volume(kind="volume", usual=usual, off=off) if off > 1 and rare < CHANCE else Volume(kind="usual", usual=usual)
    )


def _usual(start: datetime, judged: Counts, length: timedelta) -> float | None:
    """Median of the newest comparable blocks with rows, of all recent ones where those are few; None where all are few."""
    slot = _slot(start, length)
    same = [n for at, n in judged.items() if _slot(at, length) == slot][-_SAME_SLOT:]
    rows = [n for n in same if n]
    if len(rows) < 2:
        rows = [n for n in list(judged.values())[-RECENT:] if n]
        return float(np.median(rows)) if len(rows) >= MIN_HISTORY else None
    return float(np.median(rows))


def _spread(known: Counts, length: timedelta) -> float:
    """Variance over mean of a new block against comparable ones, at the upper end of what the known blocks allow."""
    by_slot: defaultdict[Slot, list[int]] = defaultdict(list)
    for at, n in known.items():
        by_slot[_slot(at, length)].append(n)
    parts = [part for part in by_slot.values() if any(part)]
    if sum(map(len, parts)) - len(parts) < MIN_HISTORY:
        parts = [[n for part in parts for n in part]]
    freedom = sum(map(len, parts)) - len(parts)
    if freedom < MIN_HISTORY - 1:
        return UNKNOWN_SPREAD
    chi_square = sum(float(((np.array(part) - np.mean(part)) ** 2).sum() / np.mean(part)) for part in parts)
    upper = 1 + 2 * float(np.sqrt(2 / freedom))
    # The usual count is itself the median of four blocks, whose variance is about .4 of a block's.
    return 1.4 * max(1.0, upper * chi_square / freedom)


def _at_most(n: int, mean: float, spread: float) -> float:
    """P(count <= n) of a negative binomial with this mean and variance / mean; Poisson where that is 1."""
    if n < 0:
        return 0.0
    if spread < 1 + 1e-6 or mean <= 0:
        return float(pdtr(n, mean))
    return float(betainc(mean / (spread - 1), n + 1, 1 / spread))


def _is_calendar(start: datetime, counts: Counts, length: timedelta) -> bool:
    """Whether live blocks say that this one is empty as a rule."""
    if _MONTHLY[0] <= length < _MONTHLY[1] and counts.get(start - length):
        return True  # a month of 31 days may step over a block of 30
    slot = _slot(start, length)
    same = [n for at, n in sorted(counts.items()) if _slot(at, length) == slot]
    if sum(n == 0 for n in same[-_SAME_SLOT:]) < 2:
        return False
    # Twice without rows is what the week looks like now, unless nothing came in the week (or the three blocks) before.
    since = start - max(7 * _DAY, 3 * length)
    return any(n for at, n in counts.items() if at >= since)


def _always(
    start: datetime, counts: Counts, gaps: Collection[datetime], reference: Collection[str], length: timedelta
) -> bool:
    """Whether rows came in nearly every earlier block of the slots that have any, and in this slot mostly."""
    present: dict[datetime, bool] = {}
    if reference:
        known = {datetime.fromisoformat(name) for name in reference}
        first, last = min(known), max(known)
        n_blocks = min(int((last - first) / length) + 1, _POSITIONS)
        present = {at: at in known for at in (last - age * length for age in range(n_blocks))}
    # Live counts win: a quarantined day is missing in the reference although it had rows.
    present |= {at: n > 0 for at, n in counts.items() if n or at not in gaps}
    by_slot: defaultdict[Slot, list[bool]] = defaultdict(list)
    for at, has_rows in present.items():
        by_slot[_slot(at, length)].append(has_rows)
    is_open = {slot: 2 * sum(found) > len(found) for slot, found in by_slot.items()}
    if not is_open.get(_slot(start, length), True):
        return False
    found = [has_rows for slot, known_slot in by_slot.items() if is_open[slot] for has_rows in known_slot]
    return found.count(False) <= MAX_GAPS * len(found)


def _slot(start: datetime, length: timedelta) -> Slot:
    return (start.weekday(), start.time()) if length <= _DAY else None
