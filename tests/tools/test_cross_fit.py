"""Target means of the training rows: no row's label is part of its own feature."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import TargetEncoder

from state.contract import SMOOTHING_ROWS, Encoder, fit_encoder
from tests.tools.training_support import SMALL_BOOSTING, candidate_of, make_frame, make_rows, make_spec
from tools.cross_fit import FOLDS, training_matrix
from tools.estimators import fit_model
from tools.training_rows import Rows


def _city_column(rows: Rows, spec_task: str = "binary") -> np.ndarray:
    spec = make_spec(spec_task)
    features = fit_encoder(rows.columns, rows.label, spec.features, task=spec.task)
    at = Encoder(features).column_features.index("city")
    return np.asarray(training_matrix(rows, features, task=spec.task)[:, at])


def test_labels_of_a_block_do_not_reach_the_features_of_that_block() -> None:
    rows = make_rows(make_spec())
    newest = rows.blocks == rows.blocks[-1]
    flipped = Rows(
        columns=rows.columns,
        label=np.where(newest, 1 - rows.label, rows.label),
        blocks=rows.blocks,
        n_classes=rows.n_classes,
    )

    before, after = _city_column(rows), _city_column(flipped)

    assert np.array_equal(before[newest], after[newest])
    assert not np.array_equal(before[~newest], after[~newest])


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_values_are_those_of_scikit_learn_fitted_on_the_other_folds(task: str) -> None:
    spec = make_spec(task)
    rows = make_rows(spec, make_frame(task))
    days = np.unique(rows.blocks, return_inverse=True)[1]
    city = np.array(["absent" if name is None else name for name in rows.columns["city"]]).reshape(-1, 1)
    ours = _city_column(rows, task)
    kind = "binary" if task == "binary" else "continuous"

    for fold in range(FOLDS):
        inside = days % FOLDS == fold
        theirs = TargetEncoder(smooth=SMOOTHING_ROWS, target_type=kind).fit(city[~inside], rows.label[~inside])
        np.testing.assert_allclose(ours[inside], theirs.transform(city[inside])[:, 0], rtol=1e-5)


def test_ranks_of_a_multiclass_feature_stay_as_they_are() -> None:
    spec = make_spec("multiclass")
    rows = make_rows(spec, make_frame("multiclass"))
    features = fit_encoder(rows.columns, rows.label, spec.features, task=spec.task)

    matrix = training_matrix(rows, features, task=spec.task)

    np.testing.assert_array_equal(matrix, Encoder(features).encode(rows.columns))


def test_rare_levels_that_say_nothing_do_not_spoil_the_model() -> None:
    spec = make_spec("binary", SMALL_BOOSTING)
    frame = make_frame(n_rows=8_000, seed=3)
    rng = np.random.default_rng(3)
    empty = frame.with_columns(pl.Series("city", [f"id-{level}" for level in rng.integers(0, 800, len(frame))]))
    auc = []
    for data in (empty, empty.with_columns(city=pl.lit("one"))):
        rows = make_rows(spec, data)
        older, newer = rows.between(0, 6_000), rows.between(6_000, 8_000)
        model = fit_model(older, candidate_of(spec), task=spec.task, declared=spec.features, seed=0)
        auc.append(roc_auc_score(newer.label, model.score(newer)))

    assert auc[0] > auc[1] - 0.01
