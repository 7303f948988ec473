"""Losses, metrics and gates of scored rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
import numpy.typing as npt

from state.spec import Bound, ManagedServing, Metric, ModelSpec
from tools.drift.labels import LabelCounts
from tools.drift.performance import block_loss, metric_value
from tools.drift.segments import Losses, segment_features, segment_losses
from tools.training_rows import Rows, Values

Floats = npt.NDArray[np.float64]

TASK_METRICS: dict[str, tuple[Metric, ...]] = {
    "binary": ("accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc", "log_loss"),
    "multiclass": ("accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc", "log_loss"),
    "regression": ("rmse", "mae"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Scores of rows that the model has not seen."""

    label: Floats
    score: Floats
    """Shape `(n_rows,)`, or `(n_rows, n_classes)` for multiclass."""
    blocks: npt.NDArray[np.str_]
    columns: Mapping[str, Values] = field(default_factory=dict)
    """The rows' features, of which segments are the levels; without them there are none."""
    due: Floats | None = None
    """`Rows.due`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLoss:
    block: str
    loss: float
    n: int
    labels: list[list[int]] | None = None
    """Rows and labels by score cell (`LabelCounts.cells`) of a binary task."""
    segments: dict[str, list[float | None]] = field(default_factory=dict)
    """Segment -> loss, rows and loss outside it (`SegmentLoss.cells`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    metric: Metric
    op: str
    value: float | None
    """None where the metric is undefined on the holdout; the gate then fails."""
    bound: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedBlock:
    block: str
    n: int
    champion_loss: float | None
    challenger_loss: float
    segments: dict[str, list[float]] = field(default_factory=dict)
    """Segment -> the champion's loss and the challenger's, of those that both have one in."""


def losses_by_block(scored: Scored, spec: ModelSpec) -> list[BlockLoss]:
    """The objective's loss of each block, oldest first; blocks without one are left out."""
    losses = []
    segments = losses_by_segment(scored, spec)
    for name, start, n in zip(*np.unique(scored.blocks, return_index=True, return_counts=True), strict=True):
        rows = slice(start, start + n)  # rows are in time order, so that a block is one stretch
        loss = metric_loss(spec.objective.metric, scored.label[rows], scored.score[rows], spec)
        if loss is not None:
            counts = (
                LabelCounts.of(str(name), scored.label[rows], scored.score[rows]) if spec.task == "binary" else None
            )
            cells = counts.cells() if counts is not None else None
            inside = {segment: cell.cells() for segment, cell in segments.get(str(name), {}).items()}
            losses.append(BlockLoss(block=str(name), loss=loss, n=int(n), labels=cells, segments=inside))
    return losses


def reference_losses(scored: Scored, spec: ModelSpec) -> list[BlockLoss]:
    """`losses_by_block` as a live block is judged: by the labels that stood when it was due, not by those restated since.

    Where labels come too late for half of the blocks to be judged like that, the newest ones count.
    """
    newest = losses_by_block(scored, spec)
    if scored.due is None or np.array_equal(scored.due, scored.label):
        return newest
    come = np.isfinite(scored.due)
    columns = {
        name: values[come] if isinstance(values, np.ndarray) else list(compress(values, come))
        for name, values in scored.columns.items()
    }
    then = Scored(label=scored.due[come], score=scored.score[come], blocks=scored.blocks[come], columns=columns)
    found = losses_by_block(then, spec)
    return found if 2 * len(found) >= len(newest) else newest


def losses_by_segment(scored: Scored, spec: ModelSpec) -> Losses:
    """The objective's loss of each segment of each block, and outside it."""
    return segment_losses(
        spec.objective.metric, scored.label, scored.score, blocks=scored.blocks, columns=scored.columns,
        features=segment_features(spec), threshold=decision_threshold(spec),
    )  # fmt: skip


def metric_loss(metric: Metric, label: Floats, score: Floats, spec: ModelSpec) -> float | None:
    """`metric` as a loss (lower is better) at the spec's decision threshold."""
    return block_loss(metric, label, score, threshold=decision_threshold(spec))


def decision_threshold(spec: ModelSpec) -> float:
    return spec.serving.decision_threshold if isinstance(spec.serving, ManagedServing) else 0.5


def measure(scored: Scored, spec: ModelSpec) -> dict[str, float]:
    """Every metric of the task over all rows of `scored`; undefined ones are left out."""
    losses = {name: metric_loss(name, scored.label, scored.score, spec) for name in TASK_METRICS[spec.task]}
    return {name: metric_value(name, loss) for name, loss in losses.items() if loss is not None}


def check_gates(metrics: Mapping[str, float], gates: Sequence[Bound]) -> list[GateResult]:
    """Each gate against the measured metrics."""
    results = []
    for gate in gates:
        value = metrics.get(gate.metric)
        holds = {">=": float.__ge__, "<=": float.__le__, ">": float.__gt__, "<": float.__lt__}[gate.op]
        passed = value is not None and holds(float(value), float(gate.value))
        results.append(GateResult(metric=gate.metric, op=gate.op, value=value, bound=gate.value, passed=passed))
    return results


def compare_blocks(rows: Rows, champion: Floats | None, challenger: Floats, spec: ModelSpec) -> list[PairedBlock]:
    """Both losses of every block on which both are defined, oldest first; without a champion its losses are None."""
    ours = losses_by_block(scored_rows(rows, challenger), spec)
    if champion is None:
        return [PairedBlock(block=b.block, n=b.n, champion_loss=None, challenger_loss=b.loss) for b in ours]
    theirs = {b.block: b for b in losses_by_block(scored_rows(rows, champion), spec)}
    return [
        PairedBlock(
            block=b.block,
            n=b.n,
            champion_loss=theirs[b.block].loss,
            challenger_loss=b.loss,
            segments=paired_segments(theirs[b.block].segments, b.segments),
        )
        for b in ours
        if b.block in theirs
    ]


def paired_segments(
    champion: Mapping[str, Sequence[float | None]], challenger: Mapping[str, Sequence[float | None]]
) -> dict[str, list[float]]:
    """Both losses of the segments of a block that both have one in."""
    pairs = {
        segment: (cells[0], challenger[segment][0]) for segment, cells in champion.items() if segment in challenger
    }
    return {segment: [a, b] for segment, (a, b) in pairs.items() if a is not None and b is not None}


def scored_rows(rows: Rows, score: Floats) -> Scored:
    """`rows` with their scores; a model from before a class was first seen gives that class no probability."""
    if score.ndim == 2 and score.shape[1] < rows.n_classes:
        score = np.pad(score, ((0, 0), (0, rows.n_classes - score.shape[1])))
    return Scored(label=rows.label, score=score, blocks=rows.blocks, columns=rows.columns, due=rows.due)
