"""Shares that step from one block to the next: beyond what they ever were, and far outside how they move by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]

MIN_HISTORY = 5
"""Earlier blocks that a step rule needs."""
SIGMAS = 5.0
NEIGHBOURS = 3
LONE = 0.25
"""Rise of the neighbouring cells, as a share of a cell's own, up to which it rises alone."""


def step_beyond(hits: Ints, rows: Ints, earlier_hits: Ints, earlier_rows: Ints) -> float:
    """How much the block's share exceeds the largest earlier one; 0 where days or small numbers explain it."""
    if int(hits[0]) < 2:
        return 0.0
    n = max(int(rows[0]), 1)
    share = int(hits[0]) / n
    total = float(earlier_rows.sum())
    usual = float(earlier_hits.sum()) / total if total else 0.0
    shares = earlier_hits / np.maximum(earlier_rows, 1)
    by_day = float(shares.std()) if len(shares) >= 2 else 0.0
    spread = np.sqrt(by_day**2 + usual * (1 - usual) / n + 0.25 / n**2)
    step = share - worst_share(earlier_hits, earlier_rows, default=0.0)
    return step if share - usual > SIGMAS * spread else 0.0


def grave_step(step: float, earlier_hits: Ints, earlier_rows: Ints) -> bool:
    """Whether `step`, from `step_beyond`, is larger than any change from one earlier block to the next.

    A rate that wanders has such changes, and one that climbs has them at its usual pace; `step_beyond` already asks for
    a block beyond the history's worst. Fewer than five earlier blocks say nothing about how a rate moves.
    """
    known = earlier_rows > 0
    shares = earlier_hits[known] / earlier_rows[known]
    return len(shares) >= MIN_HISTORY and step > float(np.abs(np.diff(shares)).max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    share: float
    """Of the block's values in the cell."""
    step: float
    """By how much more the cell rises than any cell did in an earlier block; 0 where there is no spike."""


def find_spike(cells: Ints, earlier: Ints, inner: slice) -> Spike:
    """The one cell of a block that fills up while its neighbours do not, as no cell of an earlier block did.

    `cells` has shape (n_cells,), `earlier` (n_blocks, n_cells) with values in every block; looked at are the narrow
    cells of `inner`, since a cell outside the reference's range may hold a whole healthy block. A distribution that
    moves or narrows lifts neighbours together; a value that stands in for others lifts one cell. Where many rows share
    a measurement (the weather of an hour) some cell or other fills up on every healthy day: how high, says the history.
    """
    n_rows, before = int(cells.sum()), earlier.sum(axis=1)
    usual = (earlier.sum(axis=0) / before.sum())[inner]
    rise = cells[inner] / n_rows - usual
    tops = (earlier[:, inner] / before[:, None] - usual).max(axis=1)
    at = int(np.argmax(rise))
    top, share = float(rise[at]), int(cells[inner][at]) / n_rows
    spread = float(np.sqrt(tops.var() + share * (1 - share) / n_rows))
    beside = np.concatenate([rise[max(at - NEIGHBOURS, 0) : at], rise[at + 1 : at + 1 + NEIGHBOURS]])
    alone = bool(len(beside)) and float(beside.max()) <= LONE * top
    unusual = alone and top - float(tops.mean()) > SIGMAS * spread
    return Spike(share=share, step=max(top - float(tops.max()), 0.0) if unusual else 0.0)


def worst_share(hits: Ints, rows: Ints, *, default: float) -> float:
    """Largest share of any block with rows."""
    shares: Iterable[float] = (hits[rows > 0] / rows[rows > 0]).tolist()
    return max(shares, default=default)
