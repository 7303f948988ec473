"""Where to cut a numeric feature into cells."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from state.columns import Floats, Ints

Transform: TypeAlias = Literal["exact", "identity", "signed_log", "quantile"]

MAX_CELL_RATIO = 0.01
"""No cell holds more of the reference than this, single values apart: KS from cells errs by one cell at most."""
GRID_CELLS = (256, 512)
QUANTILE_CELLS = 256
EXACT_VALUES = 256
"""Up to this many distinct values each gets a cell of its own."""
GAP_CELLS = 256
"""Empty cells over the range of an exact feature."""
SCORE = 100
"""Rank scores of numeric cells run from -SCORE to SCORE; sums of their products are exact integers."""


def rank_scores(counts: Ints) -> Ints:
    """Mid-rank of each cell in the reference, scaled to [-SCORE, SCORE]; whole numbers, so that sums are exact."""
    total = int(counts.sum())
    if not total:
        return np.zeros(len(counts), dtype=np.int64)
    mid = np.cumsum(counts) - counts / 2
    return np.rint((2 * mid / total - 1) * SCORE).astype(np.int64)


def interior(x: Floats, distinct: Floats, low: float, high: float) -> tuple[Transform, int, Floats]:
    if len(distinct) <= EXACT_VALUES:
        return "exact", 0, exact_edges(distinct)
    for n_cells in GRID_CELLS:
        cells = np.clip((x - low) * (n_cells / (high - low)), 0, n_cells - 1).astype(np.int64)
        if np.bincount(cells).max() <= MAX_CELL_RATIO * len(x):
            return "identity", n_cells, np.empty(0)
    # Linear below the smallest tenth of magnitudes, logarithmic above.
    scale = float(np.quantile(np.abs(x[x != 0]), 0.1))
    n_cells = GRID_CELLS[-1]
    ends = np.arcsinh(np.array([low, high]) / scale)
    edges = np.unique(np.sinh(np.linspace(ends[0], ends[1], n_cells + 1)[1:-1]) * scale)
    if np.bincount(np.searchsorted(edges, x, "right")).max() <= MAX_CELL_RATIO * len(x):
        return "signed_log", 0, edges
    # An edge on each side of a repeated value gives it a cell of its own: its weight then costs KS nothing.
    cuts = x[(np.arange(1, QUANTILE_CELLS) * len(x)) // QUANTILE_CELLS]
    repeated = np.unique(cuts[:-1][cuts[:-1] == cuts[1:]])
    edges = np.unique(np.concatenate([cuts, np.nextafter(repeated, np.inf)]))
    return "quantile", 0, edges[(edges > low) & (edges <= high)]


def decimals_of(distinct: Floats) -> int | None:
    """The fewest decimals, up to 4, that write every distinct value."""
    return next((decimals for decimals in range(5) if has_decimals(distinct, decimals).all()), None)


def has_decimals(x: Floats, decimals: int) -> npt.NDArray[np.bool_]:
    """Whether a number of so many decimals rounds to each float32 value."""
    return np.asarray(np.round(x, decimals).astype(np.float32) == x)


def exact_edges(distinct: Floats) -> Floats:
    """Edges that give each distinct value a cell, and the gaps between them empty ones: there a change of unit shows.

    Next to 0 the empty cells shrink by quarter octaves, so that a division by a thousand keeps a location too.
    """
    if len(distinct) < 2:
        return np.empty(0)
    step = (distinct[-1] - distinct[0]) / GAP_CELLS
    parts = []
    for left, right in pairwise(distinct):
        if right - left <= 2 * step:
            parts.append(np.array([(left + right) / 2]))
        else:
            n_cells = max(int((right - left) / step), 2)
            parts.append(left + (right - left) * (np.arange(n_cells) + 0.5) / n_cells)
    around = step * np.exp2(-np.arange(4, 60) / 4)
    zoom = np.concatenate([around if 0.0 in distinct[:-1] else [], -around if 0.0 in distinct[1:] else []])
    edges = np.unique(np.concatenate([*parts, zoom]))
    return np.asarray(edges[(edges > distinct[0]) & (edges < distinct[-1])])


def exact_values(edges: Floats, distinct: Floats) -> Floats:
    """The single value of each interior cell: a distinct one, or the middle of an empty cell."""
    ends = np.concatenate([distinct[:1], edges, distinct[-1:]])
    values = (ends[:-1] + ends[1:]) / 2
    values[np.searchsorted(edges, distinct, "right")] = distinct
    return np.asarray(values)


def tails(low: float, high: float) -> tuple[Floats, Floats]:
    """Cuts outside the reference's range: by distance, so that a new season keeps its shape, and by magnitude."""
    span = (high - low) or abs(high) or 1.0
    near = span * 1.15 ** np.arange(-40, 6)
    magnitude = max(abs(low), abs(high)) or 1.0
    smallest = min(abs(low), abs(high)) or magnitude
    # Twelve octaves below the smallest value that a reference on one side of zero has, thirteen above the largest.
    first = max(4 * math.floor(math.log2(smallest / magnitude)) - 48, -200) if low * high > 0 else -56
    steps = magnitude * np.exp2(np.arange(first, 53) / 4)
    far = np.concatenate([-steps[::-1], [0.0], steps])
    below, above = np.unique(np.concatenate([far, low - near])), np.unique(np.concatenate([far, high + near]))
    return below[below < low], above[above > high]
