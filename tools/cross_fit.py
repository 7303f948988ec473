"""What an estimator is fitted on: the encoded rows, with target means that no row took part in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from state.contract import SMOOTHING_ROWS, Encoder, FeatureContract, Task
from state.encoding import Column, Values, levels_of
from tools.training_rows import Rows

Matrix = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

FOLDS = 5


def training_matrix(rows: Rows, features: tuple[FeatureContract, ...], *, task: Task) -> Matrix:
    """The encoded rows to fit an estimator on; shape `(n_rows, width)`.

    As `Encoder.encode`, except that the target mean of a row's level is taken from the other folds. A row's own label
    would otherwise be part of its feature, and the estimator would trust rare levels that say nothing about later rows:
    with 2,000 levels of 15 rows that carry no information, AUC on later rows was .592 in sample and .633 cross-fitted.
    Folds are rows in turn, so that all of them hold the same days. Folds of whole days differ in their mean label, and the
    encoding then tells a tree which fold a row is in: a lower number, more positives. On flights that cost .006 of AUC
    against rows in turn, as the mean of the days of the nine months after the cut (.641 and .647; in sample .646).

    Source: Micci-Barreca, A preprocessing scheme for high-cardinality categorical attributes (2001); cross fitting as
    in scikit-learn's TargetEncoder.
    """
    encoder = Encoder(features)
    matrix = encoder.encode(rows.columns)
    if task == "multiclass":  # levels are their rank by frequency, which no label is part of
        return matrix
    fold = np.arange(len(rows), dtype=np.intp) % FOLDS
    owners = np.array(encoder.column_features)
    for feature in features:
        if isinstance(feature.encoding, Values):
            [at] = np.flatnonzero(owners == feature.name)
            matrix[:, at] = _means_of_other_folds(rows.columns[feature.name], feature.encoding, rows.label, fold)
    return matrix


def _means_of_other_folds(values: Column, encoding: Values, label: Floats, fold: Indices) -> Floats:
    """Per row, the smoothed target mean of its level over the rows of every other fold.

    A level without rows elsewhere gets the overall mean of the other folds, as an unknown one does in serving.
    """
    index: dict[str | None, int] = {level: at for at, level in enumerate(encoding.map)}
    n_levels = len(index) + 1
    index[None] = n_levels - 1
    # A level that the contract does not keep has no number of its own: all of them share a last place.
    level = np.array([index.get(name, n_levels) for name in levels_of(values)], dtype=np.intp)
    shape = (FOLDS, n_levels + 1)
    cell = fold * shape[1] + level
    known = ~np.isnan(label)
    n = np.bincount(cell[known], minlength=FOLDS * shape[1]).reshape(shape)
    total = np.bincount(cell[known], weights=label[known], minlength=FOLDS * shape[1]).reshape(shape)
    n_other, total_other = n.sum(axis=0) - n, total.sum(axis=0) - total
    prior = total_other.sum(axis=1, keepdims=True) / np.maximum(n_other.sum(axis=1, keepdims=True), 1)
    means = (total_other + SMOOTHING_ROWS * prior) / (n_other + SMOOTHING_ROWS)
    means[:, n_levels] = prior[:, 0]
    return np.asarray(means[fold, level], dtype=np.float64)
