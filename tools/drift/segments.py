"""Losses inside segments: the levels of categories and flags, each watched as the whole is.

A segment is written `feature=level`. Its loss is the objective's own metric over its rows of a block, so that whole and
segment speak of the same harm. Beside it stands the loss of all other rows of that block: what tells a change within
the segment from one that goes through all rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from state.spec import Metric, ModelSpec
from tools.drift.longrun import long_run_error
from tools.drift.performance import (
    Reference,
    block_loss,
    block_of,
    reference_from_losses,
    roc_auc_of_subsets,
    scores_of,
)

Floats: TypeAlias = npt.NDArray[np.float64]

MIN_ROWS = 30
"""Labelled rows of a segment below which a block says nothing of it: a metric of fewer is far from normal, and the
detector takes its blocks for such."""
MIN_BLOCKS = 20
"""Reference blocks that a watched segment needs: the spread of 20 is known within 16 %."""
MAX_SEGMENTS = 12
"""Segments watched at most, the largest first: k of them share half of the false-alarm budget."""
MAX_SHARE = 0.9
"""A level with a larger share of the rows says what the whole says."""
CERTAIN = 4.0
"""z from which a loss has risen in a segment more than outside it: asked after an alarm, of every watched segment."""
ALARMED = 2.8
"""The same where the segment's own detector has alarmed: that it has risen is known, and only that one is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentLoss:
    loss: float
    n: int
    """Labelled rows of the segment in the block."""
    outside: float | None
    """Loss of the block's other rows; None where they have none."""

    def cells(self) -> list[float | None]:
        """[loss, n, outside] as JSON."""
        return [self.loss, self.n, self.outside]

    @classmethod
    def from_cells(cls, cells: Sequence[Any]) -> SegmentLoss:
        """What `cells` wrote down."""
        loss, n, outside = cells
        return cls(loss=float(loss), n=int(n), outside=None if outside is None else float(outside))


Losses: TypeAlias = dict[str, dict[str, SegmentLoss]]
"""Block -> segment -> loss."""


def cells_of(blocks: Losses) -> dict[str, dict[str, list[float | None]]]:
    """Losses as JSON."""
    return {block: {segment: cell.cells() for segment, cell in cells.items()} for block, cells in blocks.items()}


def losses_of(cells: dict[str, dict[str, Any]]) -> Losses:
    """What `cells_of` wrote down."""
    return {
        block: {segment: SegmentLoss.from_cells(one) for segment, one in row.items()} for block, row in cells.items()
    }


def segment_features(spec: ModelSpec) -> dict[str, str]:
    """Features whose levels are segments, with their types: those that the spec names, else all categories and flags."""
    named = spec.monitoring.segments
    types = {feature.name: feature.type for feature in spec.features}
    if named is not None:
        return {name: types[name] for name in named}
    return {name: kind for name, kind in types.items() if kind in ("categorical", "boolean")}


def segment_losses(
    metric: Metric,
    label: npt.ArrayLike,
    score: npt.ArrayLike,
    *,
    blocks: npt.ArrayLike,
    columns: Mapping[str, Any],
    features: Mapping[str, str],
    threshold: float = 0.5,
) -> Losses:
    """The loss of every segment in every block, oldest block first.

    `label`, `blocks` (names) and each of `columns` have shape `(n_rows,)`, `score` that or `(n_rows, n_classes)`. A
    block holds its `MAX_SEGMENTS` largest segments of `MIN_ROWS` rows or more on which `metric` is defined. Rows
    without a level belong to no segment of that feature.
    """
    y, s = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    coded = {name: _codes(columns[name], kind) for name, kind in features.items() if name in columns}
    names, starts = np.unique(np.asarray(blocks, dtype=np.str_), return_inverse=True)
    # One stable sort makes every block a stretch: levels are then counted and cut out of small arrays.
    order = np.argsort(starts, kind="stable")
    edges = np.searchsorted(starts[order], np.arange(len(names) + 1))
    found: Losses = {}
    for at, name in enumerate(names):
        rows = order[edges[at] : edges[at + 1]]
        members = _members(coded, rows)
        cells = _areas(y[rows], s[rows], members) if metric == "roc_auc" and s.ndim == 1 else None
        if cells is None:
            cells = {
                segment: cell
                for segment, hit in members.items()
                if (cell := _cell(metric, y[rows], s[rows], hit, threshold=threshold)) is not None
            }
        if cells:
            found[str(name)] = cells
    return found


def frame_segments(
    metric: Metric, frame: pl.DataFrame, *, block: timedelta, features: Mapping[str, str], threshold: float = 0.5
) -> Losses:
    """`segment_losses` of rows with `event_time`, `score`, `label` and the features, in or out of order.

    Rows without a label or a score are left out, as `block_losses` does.
    """
    rows = frame
    if rows["label"].null_count() or rows["score"].null_count():
        rows = rows.drop_nulls(["label", "score"])
    return segment_losses(
        metric, rows["label"], scores_of(rows["score"]),
        blocks=block_of(rows["event_time"], block), columns=rows.to_dict(), features=features, threshold=threshold,
    )  # fmt: skip


def _members(
    coded: Mapping[str, tuple[list[str], npt.NDArray[np.int64]]], rows: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.bool_]]:
    """The block's largest segments, each with its rows among `rows`."""
    sizes: list[tuple[int, str, npt.NDArray[np.int64], int]] = []
    for feature, (levels, codes) in coded.items():
        here = codes[rows]
        counts = np.bincount(here[here >= 0], minlength=len(levels))
        large = np.flatnonzero((counts >= MIN_ROWS) & (counts <= MAX_SHARE * len(rows)))
        sizes += [(int(counts[code]), f"{feature}={levels[code]}", here, int(code)) for code in large]
    sizes.sort(key=lambda size: (-size[0], size[1]))
    return {segment: here == code for _, segment, here, code in sizes[:MAX_SEGMENTS]}


def _areas(y: Floats, score: Floats, members: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, SegmentLoss] | None:
    """`_cell` of every segment of a block under ROC AUC, from one sort; None where scores tie."""
    if not members:
        return {}
    hits = np.stack([*members.values()])
    areas = roc_auc_of_subsets(y == 1, score, np.concatenate([hits, ~hits]))
    if areas is None:
        return None
    return {
        segment: SegmentLoss(loss=float(1.0 - inside), n=int(n), outside=None if np.isnan(outside) else float(1.0 - outside))
        for segment, n, inside, outside in zip(
            members, hits.sum(axis=1), areas[: len(hits)], areas[len(hits) :], strict=True
        )
        if not np.isnan(inside)
    }  # fmt: skip


def _cell(
    metric: Metric, y: Floats, score: Floats, hit: npt.NDArray[np.bool_], *, threshold: float
) -> SegmentLoss | None:
    loss = block_loss(metric, y[hit], score[hit], threshold=threshold)
    if loss is None or not math.isfinite(loss):
        return None
    rest = block_loss(metric, y[~hit], score[~hit], threshold=threshold)
    if rest is not None and not math.isfinite(rest):
        rest = None
    return SegmentLoss(loss=loss, n=int(hit.sum()), outside=rest)


def _codes(values: Any, kind: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The levels of a column, and the index of each row's level; -1 where the row has none."""
    series = values if isinstance(values, pl.Series) else pl.Series(values)
    if kind == "boolean":
        number = series.cast(pl.Float64).fill_nan(None).fill_null(-1.0).to_numpy()
        return ["false", "true"], np.where(number < 0, -1, number > 0).astype(np.int64)
    texts = series.cast(pl.String)
    levels = texts.drop_nulls().unique().sort().to_list()
    return levels, texts.cast(pl.Enum(levels)).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReference:
    """What healthy blocks of one segment look like."""

    inside: Reference
    outside: Reference
    """Of the rows outside it."""
    contrast: float
    """Mean of inside less outside."""
    contrast_sd: float
    """Of one block."""
    n_usual: float
    """Median rows of the segment in a block."""

    def weighed(self, cell: SegmentLoss) -> float:
        """The block's loss as the detector takes it: nearer to the null where the block has fewer rows than usual.

        The spread of a segment is mostly that of its rows: half of an A/B split has 1.4 times as much, which an
        unweighed detector would take for evidence.
        """
        return self.inside.null + (cell.loss - self.inside.null) * math.sqrt(min(1.0, cell.n / self.n_usual))


def references(blocks: Losses, *, tolerance: float) -> dict[str, SegmentReference]:
    """The segments to watch by `blocks`, oldest first, with what is healthy for each: the largest that have enough blocks."""
    by_segment: dict[str, list[SegmentLoss]] = {}
    for cells in blocks.values():
        for segment, cell in cells.items():
            if cell.outside is not None:
                by_segment.setdefault(segment, []).append(cell)
    enough = {segment: cells for segment, cells in by_segment.items() if len(cells) >= MIN_BLOCKS}
    largest = sorted(enough, key=lambda segment: (-sum(cell.n for cell in enough[segment]), segment))
    return {segment: _reference(enough[segment], tolerance=tolerance) for segment in largest[:MAX_SEGMENTS]}


def _reference(cells: list[SegmentLoss], *, tolerance: float) -> SegmentReference:
    inside = np.array([cell.loss for cell in cells])
    outside = np.array([cell.outside for cell in cells], dtype=np.float64)
    return SegmentReference(
        inside=reference_from_losses(inside.tolist(), tolerance=tolerance),
        outside=reference_from_losses(outside.tolist(), tolerance=tolerance),
        contrast=float((inside - outside).mean()),
        contrast_sd=max(long_run_error(inside - outside) * math.sqrt(len(cells)), 1e-12),
        n_usual=float(np.median([cell.n for cell in cells])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Confined:
    """A loss that rose within one segment, and not outside it."""

    segment: str
    n_blocks: int
    loss: float
    outside: float
    z: float
    """Of the rise inside beyond the rise outside, against the reference's blocks."""


def confined(
    references: Mapping[str, SegmentReference], blocks: Losses, *, needed: float = CERTAIN, noise_se: float = 2.0
) -> Confined | None:  # fmt: skip
    """The segment that a rise of the loss over `blocks` is confined to; None where there is none.

    Inside, the loss is above what is tolerated and has risen by more than outside, by a z of `needed`; outside,
    it is within what is tolerated and the noise of so few blocks, `noise_se` standard errors. Of overlapping segments the
    clearest.
    """
    found = [
        one
        for segment, known in references.items()
        if (one := _confined(segment, known, blocks, needed, noise_se)) is not None
    ]
    return max(found, key=lambda one: one.z, default=None)


def _confined(
    segment: str, known: SegmentReference, blocks: Losses, needed: float, noise_se: float
) -> Confined | None:  # fmt: skip
    pairs = [
        (cell.loss, cell.outside, math.sqrt(min(1.0, cell.n / known.n_usual)))
        for cells in blocks.values()
        if (cell := cells.get(segment)) is not None and cell.outside is not None
    ]
    if not pairs:
        return None
    inside, outside, weights = (np.array(part, dtype=np.float64) for part in zip(*pairs, strict=True))
    n = len(pairs)
    rise = float((weights * (inside - outside - known.contrast)).mean())
    z = rise / (known.contrast_sd * math.sqrt(1 / n + 1 / known.inside.n))
    holds = float(outside.mean()) <= known.outside.null + noise_se * known.outside.sd / math.sqrt(n)
    if z < needed or not holds or float(inside.mean()) <= known.inside.null:
        return None
    return Confined(segment=segment, n_blocks=n, loss=float(inside.mean()), outside=float(outside.mean()), z=z)
