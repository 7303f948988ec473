"""The fixed cells, levels and buckets of one feature, fitted on reference rows."""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from state.columns import (
    MISSING,
    N_STATUSES,
    NO_ROWS,
    UNPARSABLE,
    Floats,
    Ints,
    is_missing,
    items_of,
    read_numbers,
)
from state.cuts import (
    SCORE,
    Transform,
    decimals_of,
    exact_values,
    has_decimals,
    interior,
    rank_scores,
    tails,
)
from state.encoding import FLOAT32_MAX, Column, FeatureType, level_text, parse_boolean

TOP_LEVELS = 100
KNOWN_LEVELS = 10_000
TEXT_BUCKETS = 64
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where values fall."""

    slots: Ints
    """Indices into a feature's counts: a status or a cell."""
    rows: Ints | None = None
    """The row of each slot; None where slot i is of row i."""
    retyped: Ints
    """Rows whose value arrived under another type."""
    out_of_bounds: Ints
    novel: Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NumericBins:
    """Cells of a numeric feature, in ascending order: low tail, interior, high tail.

    The tails are quarter octaves of magnitude, far beyond the reference, so that a change of unit keeps a location.
    """

    name: str
    transform: Transform
    low: float
    """Smallest value of the reference."""
    high: float
    declared_low: float | None = None
    declared_high: float | None = None
    n_grid: int = 0
    """Interior cells of equal width; 0 where `edges` stand instead."""
    edges: Floats
    """Interior edges between cells, ascending; a value on an edge belongs to the cell above it."""
    values: Floats
    """The one value of each interior cell where `transform` is exact; else empty."""
    decimals: int | None = None
    """Decimals of the reference's values where cells are not exact; None where they have no such end."""
    low_tail: Floats
    high_tail: Floats
    scores: Ints
    """Rank score of each cell in the reference, for correlations."""

    type: FeatureType = "numeric"

    @property
    def n_low(self) -> int:
        return len(self.low_tail) + 1

    @property
    def n_interior(self) -> int:
        return self.n_grid or len(self.edges) + 1

    @property
    def n_cells(self) -> int:
        return self.n_low + self.n_interior + len(self.high_tail) + 1

    def bounds(self) -> tuple[Floats, Floats]:
        """Lower and upper end of every cell, shape `(n_cells,)` each; the outermost are infinite."""
        return _bounds(self)

    def centres(self) -> Floats:
        """One value for each cell: the value itself where exact, else the middle (outermost: the finite end)."""
        return _centres(self)

    def locate(self, values: Column) -> Located:
        numbers, status, retyped = read_numbers(values)
        slots = self.cells(numbers) + N_STATUSES
        outside = NO_ROWS
        if self.declared_low is not None or self.declared_high is not None:
            low = -np.inf if self.declared_low is None else self.declared_low
            high = np.inf if self.declared_high is None else self.declared_high
            outside = np.flatnonzero((status < 0) & ((numbers < low) | (numbers > high)))
        novel = np.flatnonzero((status < 0) & self._is_novel(numbers, slots - N_STATUSES))
        return Located(slots=np.where(status < 0, slots, status), retyped=retyped, out_of_bounds=outside, novel=novel)

    def _is_novel(self, x: Floats, cells: Ints) -> npt.NDArray[np.bool_]:
        inside = (x >= self.low) & (x <= self.high)
        if self.transform == "exact":
            at = np.clip(cells - self.n_low, 0, self.n_interior - 1)
            return np.asarray(inside & (self.values[at] != x))
        if self.decimals is None:
            return np.zeros(len(x), dtype=np.bool_)
        return np.asarray(inside & ~has_decimals(x, self.decimals))

    def cells(self, x: Floats) -> Ints:
        """The cell of each finite number."""
        if self.n_grid:
            span = self.high - self.low
            inner = np.clip((x - self.low) * (self.n_grid / span), 0, self.n_grid - 1).astype(np.int64)
        else:
            inner = np.searchsorted(self.edges, x, "right").astype(np.int64)
        cells = inner + self.n_low
        below, above = np.flatnonzero(x < self.low), np.flatnonzero(x > self.high)
        cells[below] = np.searchsorted(self.low_tail, x[below], "right")
        cells[above] = self.n_low + self.n_interior + np.searchsorted(self.high_tail, x[above], "right")
        return cells


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelBins:
    """Cells of a categorical feature (top levels, other known, new) or of a boolean one (false, true)."""

    name: str
    type: FeatureType
    levels: tuple[str, ...]
    """Each has a cell, most frequent first."""
    others: tuple[str, ...] = ()
    """Known levels that share the cell `other`."""
    unseen_ratio: float = 0.0
    """Good-Turing mass of levels that the reference has not shown: its rows with a level seen once, or not listed."""
    scores: Ints
    index: dict[str, int]

    @property
    def n_cells(self) -> int:
        return len(self.levels) + (2 if self.type == "categorical" else 0)

    @property
    def new_cell(self) -> int | None:
        """Cell of levels that the reference has not shown."""
        return len(self.levels) + 1 if self.type == "categorical" else None

    def locate(self, values: Column) -> Located:
        if self.type == "boolean":
            return _locate_booleans(values)
        new = len(self.levels) + 1 + N_STATUSES
        get = self.index.get
        items = items_of(values)
        slots = [get(item, -1) if type(item) is str else -2 for item in items]
        for row, slot in enumerate(slots):
            if slot == -1:
                slots[row] = new
            elif slot == -2:
                level = level_text(items[row])
                if level is None:
                    slots[row] = MISSING if is_missing(items[row]) else UNPARSABLE
                else:
                    slots[row] = get(level, new)
        return Located(slots=np.array(slots, dtype=np.int64), retyped=NO_ROWS, out_of_bounds=NO_ROWS, novel=NO_ROWS)


@functools.lru_cache(maxsize=4_096)
def _bounds(bins: NumericBins) -> tuple[Floats, Floats]:
    inner = np.linspace(bins.low, bins.high, bins.n_grid + 1)[1:-1] if bins.n_grid else bins.edges
    cuts = np.concatenate([bins.low_tail, [bins.low], inner, [bins.high], bins.high_tail])
    return _fixed(np.concatenate([[-np.inf], cuts])), _fixed(np.concatenate([cuts, [np.inf]]))


@functools.lru_cache(maxsize=4_096)
def _centres(bins: NumericBins) -> Floats:
    lower, upper = _bounds(bins)
    lower = np.where(np.isfinite(lower), lower, upper)
    upper = np.where(np.isfinite(upper), upper, lower)
    middle: Floats = (lower + upper) / 2
    if bins.transform == "exact":
        middle[bins.n_low : bins.n_low + bins.n_interior] = bins.values
    return _fixed(middle)


def _fixed(values: Floats) -> Floats:
    """The same for every caller, so nobody may change it."""
    values.flags.writeable = False
    return values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextBins:
    """Buckets of hashed words: a row counts once for each of its words."""

    name: str
    type: FeatureType = "text"
    n_cells: int = TEXT_BUCKETS

    def locate(self, values: Column) -> Located:
        rows: list[int] = []
        slots: list[int] = []
        for row, item in enumerate(items_of(values)):
            text = None if is_missing(item) else level_text(item)
            if text is None:
                found = [MISSING if is_missing(item) else UNPARSABLE]
            else:
                words = _WORD.findall(text.lower())
                found = [
                    N_STATUSES + zlib.crc32(word.encode("utf-8", "surrogatepass")) % self.n_cells for word in words
                ]
            rows += [row] * len(found)
            slots += found
        return Located(
            slots=np.array(slots, dtype=np.int64),
            rows=np.array(rows, dtype=np.int64),
            retyped=NO_ROWS,
            out_of_bounds=NO_ROWS,
            novel=NO_ROWS,
        )


FeatureBins: TypeAlias = NumericBins | LevelBins | TextBins


def fit_numeric(
    name: str, values: Column, *, declared: tuple[float | None, float | None] = (None, None)
) -> NumericBins:
    """Cells for one numeric feature from its reference values.

    Up to 256 distinct values: a cell each. Else the first of equal widths, signed log and quantiles under which no
    cell but a single repeated value holds more than 1 % of the reference.
    """
    numbers, status, _ = read_numbers(values)
    x = np.sort(numbers[status < 0])
    low, high = (float(x[0]), float(x[-1])) if len(x) else (0.0, 0.0)
    distinct = np.unique(x)
    transform, n_grid, edges = interior(x, distinct, low, high)
    low_tail, high_tail = tails(low, high)
    values = exact_values(edges, distinct) if len(distinct) else np.zeros(1)
    bins = NumericBins(
        name=name, transform=transform, low=low, high=high, declared_low=declared[0], declared_high=declared[1],
        n_grid=n_grid, edges=edges, values=values if transform == "exact" else np.empty(0),
        decimals=None if transform == "exact" else decimals_of(distinct), low_tail=low_tail, high_tail=high_tail,
        scores=NO_ROWS,
    )  # fmt: skip
    return replace(bins, scores=rank_scores(np.bincount(bins.cells(x), minlength=bins.n_cells)))


def fit_levels(name: str, values: Column) -> LevelBins:
    """The known levels of a categorical feature, most frequent first, ties by name."""
    items = items_of(values)
    counts = Counter(item for item in items if type(item) is str)
    odd = (level_text(item) for item in items if type(item) is not str and not is_missing(item))
    counts.update(level for level in odd if level is not None)
    ranked = sorted(counts, key=lambda level: (-counts[level], level))
    unlisted = ranked[TOP_LEVELS + KNOWN_LEVELS :]
    n_unseen = sum(1 for n in counts.values() if n == 1) + sum(counts[level] for level in unlisted if counts[level] > 1)
    total = sum(counts.values())
    return level_bins(
        name=name,
        levels=ranked[:TOP_LEVELS],
        others=ranked[TOP_LEVELS : TOP_LEVELS + KNOWN_LEVELS],
        unseen_ratio=n_unseen / total if total else 1.0,
    )


def level_bins(*, name: str, levels: Sequence[str], others: Sequence[str], unseen_ratio: float) -> LevelBins:
    index = {level: at + N_STATUSES for at, level in enumerate(levels)}
    index |= dict.fromkeys(others, len(levels) + N_STATUSES)
    return LevelBins(
        name=name, type="categorical", levels=tuple(levels), others=tuple(others), unseen_ratio=unseen_ratio,
        scores=NO_ROWS, index=index,
    )  # fmt: skip


def boolean_bins(name: str) -> LevelBins:
    scores = np.array([-SCORE, SCORE], dtype=np.int64)
    return LevelBins(name=name, type="boolean", levels=("false", "true"), scores=scores, index={})


def _locate_booleans(values: Column) -> Located:
    if isinstance(values, np.ndarray) and values.dtype.kind == "b":
        return Located(
            slots=values.astype(np.int64) + N_STATUSES, retyped=NO_ROWS, out_of_bounds=NO_ROWS, novel=NO_ROWS
        )
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        slots_of = np.where(values == 0.0, N_STATUSES, np.where(values == 1.0, N_STATUSES + 1, UNPARSABLE))
        # As `parse_number` has it: what float32 cannot hold is a missing value, not an unreadable one.
        slots_of[~(np.abs(values) <= FLOAT32_MAX)] = MISSING
        return Located(slots=slots_of.astype(np.int64), retyped=NO_ROWS, out_of_bounds=NO_ROWS, novel=NO_ROWS)
    slots: list[int] = []
    retyped: list[int] = []
    for row, item in enumerate(items_of(values)):
        parsed = parse_boolean(item)
        if math.isnan(parsed.value):
            slots.append(UNPARSABLE if parsed.flag == "unparsable" else MISSING)
            continue
        slots.append(N_STATUSES + int(parsed.value))
        if isinstance(item, str):
            retyped.append(row)
    return Located(
        slots=np.array(slots, dtype=np.int64),
        retyped=np.array(retyped, dtype=np.int64),
        out_of_bounds=NO_ROWS,
        novel=NO_ROWS,
    )


def fit_feature(
    name: str, kind: FeatureType, values: Column, declared: tuple[float | None, float | None]
) -> FeatureBins:
    match kind:
        case "numeric":
            return fit_numeric(name, values, declared=declared)
        case "boolean":
            return boolean_bins(name)
        case "categorical":
            return fit_levels(name, values)
        case "text":
            return TextBins(name=name)
