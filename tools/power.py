"""How well features foretell a label: one alone (a suspect of leakage), and all together (what to ask of a model)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from state.contract import TEXT_DIMENSIONS, Encoder, FeatureContract
from state.encoding import HashedBag
from state.spec import Metric
from tools.coerce import coerce
from tools.drift.performance import block_loss
from tools.fits import few_threads

Floats: TypeAlias = npt.NDArray[np.float64]
LEAK_POWER = 0.995
"""A feature that alone explains this much is most likely the outcome itself, or written after it."""
_CELLS = 64
_MIN_ROWS = 40
_QUICK_ROWS = 20_000


def single_power(values: pl.Series, kind: str, label: Floats, *, n_classes: int) -> float:
    """What the feature alone says of rows it was not fitted on: AUC for two classes, accuracy beyond the largest
    class for more, R squared for numbers. 0.5 or 0 is nothing, 1 is everything."""
    if kind == "text" or len(label) < _MIN_ROWS:
        return 0.0
    cells = _cells(values, kind)
    fitted, held = np.arange(len(label)) % 2 == 0, np.arange(len(label)) % 2 == 1
    targets = np.eye(n_classes)[label.astype(np.intp)] if n_classes > 2 else label[:, None]
    sums = np.stack(
        [np.bincount(cells[fitted], weights=column[fitted], minlength=cells.max() + 1) for column in targets.T], axis=1
    )
    counts = np.bincount(cells[fitted], minlength=cells.max() + 1)[:, None]
    mean = targets[fitted].mean(axis=0)
    scores = ((sums + mean) / (counts + 1))[cells[held]]
    truth = label[held]
    if n_classes == 2:
        loss = block_loss("roc_auc", truth, scores[:, 0])
        return 0.0 if loss is None else max(loss, 1 - loss)
    if n_classes > 2:
        base = float(np.bincount(truth.astype(np.intp), minlength=n_classes).max() / len(truth))
        found = float(np.mean(scores.argmax(axis=1) == truth))
        return max(0.0, (found - base) / (1 - base)) if base < 1 else 0.0
    spread = float(((truth - truth.mean()) ** 2).sum())
    return max(0.0, 1 - float(((truth - scores[:, 0]) ** 2).sum()) / spread) if spread > 0 else 0.0


def quick_metric(
    rows: pl.DataFrame, features: Mapping[str, str], label: Floats, *, n_classes: int, metric: Metric
) -> float | None:
    """The metric of a small boosted model on the newest 30 % of `rows` (oldest first); None where undefined."""
    step = max(1, len(label) // _QUICK_ROWS)
    label, rows = label[::step], rows[::step]
    cut = int(len(label) * 0.7)
    if cut < _MIN_ROWS or len(label) - cut < _MIN_ROWS // 2 or (n_classes and len(np.unique(label[:cut])) < 2):
        return None
    matrix = np.concatenate([_encoded(rows[name], kind, label, cut) for name, kind in features.items()], axis=1)
    with few_threads():
        score = _fit_and_score(matrix, label, cut, n_classes)
    loss = block_loss(metric, label[cut:], score)
    if loss is None:
        return None
    return loss if metric in ("log_loss", "rmse", "mae") else 1 - loss


def _fit_and_score(matrix: Floats, label: Floats, cut: int, n_classes: int) -> Floats:
    if n_classes == 0:
        model = HistGradientBoostingRegressor(max_iter=60, early_stopping=False, random_state=0)
        return np.asarray(model.fit(matrix[:cut], label[:cut]).predict(matrix[cut:]))
    classifier = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=0)
    classifier.fit(matrix[:cut], label[:cut])
    score = np.zeros((len(label) - cut, n_classes))
    score[:, classifier.classes_.astype(np.intp)] = classifier.predict_proba(matrix[cut:])
    return score[:, 1] if n_classes == 2 else score


def _cells(values: pl.Series, kind: str) -> npt.NDArray[np.intp]:
    """A cell number for each row; missing has a cell of its own."""
    if kind == "categorical":
        return coerce(values, kind).values.fill_null("\0missing").rank("dense").to_numpy().astype(np.intp)
    numbers = coerce(values, kind).values.fill_null(np.nan).to_numpy().astype(np.float64)
    known = np.isfinite(numbers)
    distinct = np.unique(numbers[known])
    edges = distinct if len(distinct) <= 4 * _CELLS else np.quantile(numbers[known], np.linspace(0, 1, _CELLS * 4))
    cells = np.searchsorted(edges, numbers, side="right")
    return np.where(known, cells, len(edges) + 1).astype(np.intp)


def _encoded(values: pl.Series, kind: str, label: Floats, cut: int) -> Floats:
    """Shape `(n_rows, n_columns)`."""
    coerced = coerce(values, kind).values
    if kind == "text":
        bag = FeatureContract(name=values.name, type="text", encoding=HashedBag(TEXT_DIMENSIONS))
        return Encoder([bag]).encode({values.name: coerced}).astype(np.float64)
    if kind != "categorical":
        return coerced.fill_null(np.nan).to_numpy().astype(np.float64)[:, None]
    seen = pl.DataFrame({"level": coerced[:cut], "label": label[:cut]}).drop_nulls("level")
    mean = float(label[:cut].mean())
    table = seen.group_by("level").agg(((pl.col("label").sum() + 10 * mean) / (pl.len() + 10)).alias("mean"))
    joined = pl.DataFrame({"level": coerced}).join(table, on="level", how="left", maintain_order="left")
    return joined["mean"].fill_null(mean).to_numpy()[:, None]
