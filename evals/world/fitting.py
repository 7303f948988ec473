"""The small linear models of the simulated world: really fitted, really scored, stored as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from evals.world.truth import Floats
from state.errors import ToolRejected
from state.spec import ManagedServing, Metric, ModelSpec
from tools.drift import performance
from tools.drift.labels import LabelCounts
from tools.drift.performance import block_loss, block_of, metric_value, rows_by
from tools.drift.segments import frame_segments, segment_features

RIDGE = 1.0
REGRESSION: tuple[Metric, ...] = ("rmse", "mae")
CLASSIFICATION: tuple[Metric, ...] = ("accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc", "log_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A fitted model; `levels` are the one-hot columns of each categorical feature."""

    task: Literal["binary", "regression"]
    numeric: list[str]
    means: list[float]
    sds: list[float]
    levels: dict[str, list[str]]
    weights: list[float]
    """Intercept first, then numeric and boolean features, then levels in order."""

    def score(self, frame: pl.DataFrame) -> Floats:
        """Probability of class 1, or the number; shape (n_rows,)."""
        raw: Floats = _design(frame, self.numeric, self.means, self.sds, self.levels) @ np.array(self.weights)
        return _sigmoid(raw) if self.task == "binary" else raw

    def importance(self) -> dict[str, float]:
        """Share of each feature in the absolute standardised weights; sums to 1."""
        sizes: dict[str, float] = {}
        position = 1
        for name in self.numeric:
            sizes[name] = abs(self.weights[position])
            position += 1
        for name, levels in self.levels.items():
            sizes[name] = float(np.std([*self.weights[position : position + len(levels)], 0.0]))
            position += len(levels)
        total = sum(sizes.values()) or 1.0
        return {name: size / total for name, size in sizes.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLoss:
    loss: float
    n: int
    """Labelled rows of the block."""
    labels: list[list[int]] | None = None
    """Rows and labels by score cell of a binary task."""
    segments: dict[str, list[float | None]] = field(default_factory=dict)
    """Segment -> loss, rows and loss outside it."""


def fit(spec: ModelSpec, rows: pl.DataFrame) -> Fitted:
    """Ridge-penalised logistic or linear regression of `label` on the spec's features.

    Raises:
        ToolRejected: no rows, one class only, or a task that this world does not know.
    """
    if spec.task == "multiclass":
        raise ToolRejected(f"{spec.model}: the simulated world knows binary and regression tasks only")
    label = rows["label"].to_numpy().astype(np.float64)
    if len(label) == 0 or (spec.task == "binary" and len(np.unique(label)) < 2):
        raise ToolRejected(f"{spec.model}: {len(label)} training rows, and both classes are needed")
    numeric = [feature.name for feature in spec.features if feature.type in ("numeric", "boolean")]
    means = [_number(rows[name].mean(), 0.0) for name in numeric]
    sds = [_number(rows[name].std(), 1.0) or 1.0 for name in numeric]
    levels = {
        feature.name: sorted(rows[feature.name].drop_nulls().unique().to_list())[1:]
        for feature in spec.features
        if feature.type == "categorical"
    }
    design = _design(rows, numeric, means, sds, levels)
    weights = _newton(design, label) if spec.task == "binary" else _least_squares(design, label)
    return Fitted(
        task=spec.task, numeric=numeric, means=means, sds=sds, levels=levels, weights=[float(w) for w in weights]
    )


def block_losses(spec: ModelSpec, rows: pl.DataFrame, score: Floats) -> dict[str, BlockLoss]:
    """The objective's loss of every block on which it is defined, oldest first."""
    scored = rows.select("event_time", "label", pl.Series("score", score))
    block = block_of(rows["event_time"], spec.monitoring.block)
    n_rows = dict(block.value_counts(name="n").iter_rows())
    losses = performance.block_losses(
        spec.objective.metric, scored, block=spec.monitoring.block, threshold=threshold_of(spec)
    )
    cells: dict[str, list[list[int]]] = {}
    if spec.task == "binary":
        for name, part in rows_by(scored, block).items():
            cells[name] = LabelCounts.of(name, part["label"], part["score"]).cells()
    segments = frame_segments(
        spec.objective.metric, rows.with_columns(pl.Series("score", score)), block=spec.monitoring.block,
        features=segment_features(spec), threshold=threshold_of(spec),
    )  # fmt: skip
    return {
        name: BlockLoss(
            loss=loss, n=n_rows[name], labels=cells.get(name),
            segments={segment: cell.cells() for segment, cell in segments.get(name, {}).items()},
        )
        for name, loss in losses.items()
    }  # fmt: skip


def measure(spec: ModelSpec, rows: pl.DataFrame, score: Floats) -> dict[str, float]:
    """Every metric of the task that is defined on these rows."""
    names = REGRESSION if spec.task == "regression" else CLASSIFICATION
    label = rows["label"].to_numpy()
    losses = {name: block_loss(name, label, score, threshold=threshold_of(spec)) for name in names}
    return {name: metric_value(name, loss) for name, loss in losses.items() if loss is not None}


def threshold_of(spec: ModelSpec) -> float:
    return spec.serving.decision_threshold if isinstance(spec.serving, ManagedServing) else 0.5


def _design(
    frame: pl.DataFrame, numeric: list[str], means: list[float], sds: list[float], levels: dict[str, list[str]]
) -> Floats:
    columns: list[Floats] = [np.ones(frame.height)]
    for name, mean, sd in zip(numeric, means, sds, strict=True):
        value = _known(frame[name].cast(pl.Float64), mean).to_numpy()
        # Twelve standard deviations: a unit error must hurt the score, not overflow it.
        columns.append(np.clip((value - mean) / sd, -12.0, 12.0))
    for name, known in levels.items():
        values = frame[name]
        columns.extend(_known(values == level, False).to_numpy().astype(np.float64) for level in known)
    return np.column_stack(columns)


def _known(values: pl.Series, default: float | bool) -> pl.Series:
    return values.fill_null(default) if values.null_count() else values


def _newton(design: Floats, label: Floats) -> Floats:
    weights = np.zeros(design.shape[1])
    penalty = np.full(design.shape[1], RIDGE)
    penalty[0] = 0.0
    for _ in range(12):
        p = _sigmoid(design @ weights)
        gradient = design.T @ (p - label) + penalty * weights
        hessian = (design.T * (p * (1.0 - p))) @ design + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step
        if float(np.abs(step).max()) < 1e-8:
            break
    return weights


def _least_squares(design: Floats, label: Floats) -> Floats:
    penalty = np.full(design.shape[1], RIDGE)
    penalty[0] = 0.0
    weights: Floats = np.linalg.solve(design.T @ design + np.diag(penalty), design.T @ label).astype(np.float64)
    return weights


def _sigmoid(raw: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(raw, -35.0, 35.0)))


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default
