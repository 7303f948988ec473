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


def test_the_label_of_a_row_does_not_reach_its_own_feature() -> None:
    rows = make_rows(make_spec())
    fold = np.arange(len(rows)) % FOLDS == 2
    flipped = Rows(
        columns=rows.columns,
        label=np.where(fold, 1 - rows.label, rows.label),
        blocks=rows.blocks,
        n_classes=rows.n_classes,
    )

    before, after = _city_column(rows), _city_column(flipped)

    assert np.array_equal(before[fold], after[fold])
    assert not np.array_equal(before[~fold], after[~fold])


def test_days_that_differ_in_their_mean_label_leave_no_trace_in_the_features_of_their_rows() -> None:
    frame = make_frame(n_rows=6_000, n_days=20, seed=5)
    rng = np.random.default_rng(5)
    day = frame["event_time"].dt.ordinal_day().to_numpy()
    rate = np.where(day % 5 == 2, 0.8, 0.2)
    rows = make_rows(make_spec(), frame.with_columns(label=pl.Series((rng.random(len(frame)) < rate).astype(float))))

    encoded = _city_column(rows)
    rates = [
        (encoded[rows.blocks == block].mean(), rows.label[rows.blocks == block].mean()) for block in set(rows.blocks)
    ]

    assert abs(np.corrcoef(np.array(rates).T)[0, 1]) < 0.6


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_values_are_those_of_scikit_learn_fitted_on_the_other_folds(task: str) -> None:
    spec = make_spec(task)
    rows = make_rows(spec, make_frame(task))
    turn = np.arange(len(rows)) % FOLDS
    city = np.array(["absent" if name is None else name for name in rows.columns["city"]]).reshape(-1, 1)
    ours = _city_column(rows, task)
    kind = "binary" if task == "binary" else "continuous"

    for fold in range(FOLDS):
        inside = turn == fold
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
