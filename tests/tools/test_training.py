"""The recipe: nothing newer than what it is judged on, the better candidate wins, unusable rows are refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn import metrics as reference

from state.errors import InputError
from state.spec import Bound
from tests.tools.training_support import (
    FOREST,
    LINEAR,
    RIDGE,
    SMALL_BOOSTING,
    candidate_of,
    make_frame,
    make_rows,
    make_spec,
)
from tools.estimators import fit_model
from tools.evaluation import check_gates, compare_blocks, measure, scored_rows
from tools.fits import few_threads
from tools.training import cross_validate, fit_candidates, fit_challenger, fold_bounds, holdout_start
from tools.training_rows import WHEN_DUE, check_frame, frame_sha256, labelled_rows, recipe_of


@pytest.fixture(autouse=True)
def _beside_other_load() -> Iterator[None]:
    with few_threads():
        yield


def test_every_fold_is_validated_on_whole_blocks_newer_than_those_it_is_fitted_on() -> None:
    rows = make_rows(make_spec())
    bounds = fold_bounds(rows, 3)

    assert len(bounds) == 3
    assert bounds[-1][1] == len(rows)
    assert all(earlier[1] == later[0] for earlier, later in pairwise(bounds))
    for start, stop in bounds:
        assert rows.blocks[start - 1] < rows.blocks[start]
        assert stop == len(rows) or rows.blocks[stop - 1] < rows.blocks[stop]
    assert bounds[0][0] >= len(rows) // 2


def test_the_reference_is_read_with_labels_as_they_stood_when_due() -> None:
    """Live blocks are judged once, when due: a reference by labels that were corrected since would make them look worse."""
    spec = make_spec("binary", LINEAR)
    frame = make_frame()
    wrong = pl.int_range(pl.len()) % 20 == 0
    then = pl.when(wrong).then(1 - pl.col("label")).otherwise(pl.col("label"))
    then = pl.when(pl.int_range(pl.len()) % 10 != 9).then(then)
    restated = labelled_rows(frame.with_columns(then.alias(WHEN_DUE)), spec, n_classes=2)
    settled = labelled_rows(frame, spec, n_classes=2)

    plain, judged = (fit_candidates(rows, spec, seed=1) for rows in (settled, restated))

    assert [b.loss for b in judged.chosen.blocks] == [b.loss for b in plain.chosen.blocks]
    assert sum(b.n for b in judged.reference) == pytest.approx(0.9 * sum(b.n for b in plain.reference), rel=0.02)
    losses = [np.mean([b.loss for b in trained.reference]) for trained in (plain, judged)]
    assert losses[1] > losses[0] + 0.01
    late = labelled_rows(frame.with_columns(pl.lit(None, pl.Float64).alias(WHEN_DUE)), spec, n_classes=2)
    assert [b.loss for b in fit_candidates(late, spec, seed=1).reference] == [b.loss for b in plain.reference]


def test_the_holdout_is_the_newest_stretch_in_whole_blocks() -> None:
    spec = make_spec()
    rows = make_rows(spec)

    start = holdout_start(rows, holdout=recipe_of(spec).holdout, block=spec.monitoring.block)

    assert sorted(set(rows.blocks[start:].tolist())) == [f"2024-01-{day}" for day in (16, 17, 18, 19, 20)]
    assert rows.blocks[start - 1] == "2024-01-15"


@pytest.mark.parametrize(
    ("task", "candidate", "metric", "at_least"),
    [
        pytest.param("binary", SMALL_BOOSTING, "roc_auc", 0.9, id="binary-boosting"),
        pytest.param("binary", FOREST, "roc_auc", 0.9, id="binary-forest"),
        pytest.param("binary", LINEAR, "roc_auc", 0.8, id="binary-linear"),
        pytest.param("multiclass", SMALL_BOOSTING, "accuracy", 0.7, id="multiclass-boosting"),
        pytest.param("multiclass", LINEAR, "accuracy", 0.5, id="multiclass-linear"),
        pytest.param("regression", SMALL_BOOSTING, "rmse", None, id="regression-boosting"),
        pytest.param("regression", FOREST, "rmse", None, id="regression-forest"),
        pytest.param("regression", RIDGE, "rmse", None, id="regression-ridge"),
    ],
)
def test_every_estimator_learns_what_is_there(
    task: str, candidate: dict[str, Any], metric: str, at_least: float | None
) -> None:
    spec = make_spec(task, candidate)
    trained = fit_candidates(make_rows(spec), spec, seed=1)
    measured = measure(trained.holdout, spec)

    if at_least is None:
        assert measured["rmse"] < 0.8 * trained.holdout.label.std()
    else:
        assert measured[metric] > at_least
    first, second = sorted(trained.importance, key=lambda name: trained.importance[name])[-2:]
    assert {first, second} == {"amount", "city"}
    assert abs(trained.importance["noise"]) < 0.25 * trained.importance[second]


def test_metrics_are_those_of_scikit_learn() -> None:
    spec = make_spec()
    held = fit_candidates(make_rows(spec), spec, seed=1).holdout
    called = held.score >= 0.5

    assert measure(held, spec) == pytest.approx(
        {
            "accuracy": reference.accuracy_score(held.label, called),
            "precision": reference.precision_score(held.label, called),
            "recall": reference.recall_score(held.label, called),
            "f1": reference.f1_score(held.label, called),
            "roc_auc": reference.roc_auc_score(held.label, held.score),
            "pr_auc": reference.average_precision_score(held.label, held.score),
            "log_loss": reference.log_loss(held.label, held.score),
        }
    )


def test_the_candidate_with_the_smaller_mean_block_loss_is_chosen() -> None:
    useless = {"name": "useless", "estimator": "hist_gradient_boosting", "params": {"max_iter": 1, "max_depth": 1}}
    spec = make_spec("binary", useless, SMALL_BOOSTING)
    trained = fit_candidates(make_rows(spec), spec, seed=1)

    assert [scored.candidate.name for scored in trained.candidates] == ["useless", "boosting"]
    assert trained.chosen.candidate.name == "boosting"
    assert trained.chosen.loss == pytest.approx(np.mean([block.loss for block in trained.chosen.blocks]))
    assert trained.chosen.loss < trained.candidates[0].loss


def test_the_score_of_a_fold_does_not_depend_on_newer_labels() -> None:
    spec = make_spec()
    frame = make_frame()
    corrupted = frame.with_columns(
        pl.when(pl.int_range(pl.len()) >= 1_100).then(1 - pl.col("label")).otherwise("label").alias("label")
    )
    candidate = candidate_of(spec)
    honest, other = (
        {block.block: block.loss for block in cross_validate(make_rows(spec, f), candidate, spec, seed=1).blocks}
        for f in (frame, corrupted)
    )

    untouched = [name for name in honest if name < "2024-01-19"]
    assert untouched
    assert [honest[name] for name in untouched] == [other[name] for name in untouched]
    assert honest["2024-01-20"] != other["2024-01-20"]


def test_the_same_rows_and_seed_give_the_same_scores() -> None:
    spec = make_spec("binary", FOREST)
    first, second = (fit_candidates(make_rows(spec), spec, seed=3) for _ in range(2))

    assert np.array_equal(first.holdout.score, second.holdout.score)
    assert first.importance == second.importance


def test_class_balance_is_a_parameter_of_the_candidate() -> None:
    rare = np.random.default_rng(0).random(2_000) < 0.1
    frame = make_frame(n_rows=2_000).with_columns(pl.Series("label", rare.astype(float)))
    scores = []
    for params in ({}, {"class_weight": "balanced"}):
        spec = make_spec("binary", {**LINEAR, "params": params})
        scores.append(fit_candidates(make_rows(spec, frame), spec, seed=1).holdout.score.mean())

    assert scores[0] == pytest.approx(0.1, abs=0.03)
    assert scores[1] == pytest.approx(0.5, abs=0.05)


def test_a_gate_on_its_bound_holds_and_an_undefined_metric_fails_it() -> None:
    gates = [
        Bound(metric="roc_auc", op=">=", value=0.8),
        Bound(metric="roc_auc", op=">", value=0.8),
        Bound(metric="log_loss", op="<=", value=0.5),
        Bound(metric="precision", op=">=", value=0.1),
    ]

    results = check_gates({"roc_auc": 0.8, "log_loss": 0.4}, gates)

    assert [result.passed for result in results] == [True, False, True, False]
    assert results[3].value is None


def test_only_blocks_on_which_both_models_have_a_loss_are_compared() -> None:
    spec = make_spec()
    frame = make_frame(n_days=6, n_rows=300).with_columns(
        pl.when(pl.col("event_time").dt.day() == 3).then(1.0).otherwise("label").alias("label")
    )
    rows = make_rows(spec, frame)
    good, bad = rows.label * 0.8 + 0.1, 0.9 - rows.label * 0.8

    blocks = compare_blocks(rows, bad, good, spec)

    assert [block.block for block in blocks] == [f"2024-01-0{day}" for day in (1, 2, 4, 5, 6)]
    assert {(block.champion_loss, block.challenger_loss, block.n) for block in blocks} == {(1.0, 0.0, 50)}
    assert {block.champion_loss for block in compare_blocks(rows, None, good, spec)} == {None}


def test_a_model_from_before_a_class_was_seen_gives_it_no_probability() -> None:
    rows = make_rows(make_spec("multiclass"))
    score = np.full((len(rows), 2), 0.5)

    assert scored_rows(rows, score).score[0].tolist() == [0.5, 0.5, 0.0]


def test_a_class_that_a_stretch_lacks_keeps_its_column() -> None:
    spec = make_spec("multiclass")
    rows = make_rows(spec, make_frame("multiclass").filter(pl.col("label") != 1))

    model = fit_model(rows, candidate_of(spec), task="multiclass", declared=spec.features, seed=1)

    score = model.score(rows)
    assert score.shape == (len(rows), 3)
    assert score[:, 1].max() == 0.0
    assert np.allclose(score.sum(axis=1), 1.0)


def test_a_challenger_is_the_best_candidate_or_the_one_that_is_named() -> None:
    useless = {"name": "useless", "estimator": "hist_gradient_boosting", "params": {"max_iter": 1, "max_depth": 1}}
    spec = make_spec("binary", useless, SMALL_BOOSTING)
    rows = make_rows(spec)

    assert fit_challenger(rows, spec, seed=1)[1].name == "boosting"
    assert fit_challenger(rows, spec, seed=1, name="useless")[1].name == "useless"
    with pytest.raises(InputError, match="no candidate is called 'other'"):
        fit_challenger(rows, spec, seed=1, name="other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda f: f.clear(), "no labelled rows", id="empty-window"),
        pytest.param(lambda f: f.with_columns(pl.lit(1.0).alias("label")), "labels are class 1", id="one-class"),
        pytest.param(
            lambda f: f.with_columns(pl.lit(None, pl.Float64).alias("label")), "not finite", id="labels-missing"
        ),
        pytest.param(lambda f: f.with_columns(pl.lit(float("inf")).alias("label")), "not finite", id="labels-infinite"),
        pytest.param(lambda f: f.with_columns(pl.lit(2.0).alias("label")), "label 2 is not", id="foreign-class"),
        pytest.param(lambda f: f.drop("age"), "no column age", id="feature-absent"),
        pytest.param(
            lambda f: f.with_columns(pl.lit(None, pl.Float32).alias("age")), "'age' is empty", id="feature-empty"
        ),
        pytest.param(lambda f: pl.concat([f, f.head(3)]), "share a request id", id="repeated-request"),
    ],
)
def test_unusable_rows_are_refused_with_a_remedy(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_frame(change(make_frame(n_rows=300)), make_spec(), n_classes=2)

    assert caught.value.remedy


def test_usable_rows_are_counted() -> None:
    found = check_frame(make_frame(), make_spec(), n_classes=2)

    assert (found["n_rows"], found["n_blocks"]) == (1_200, 20)
    assert 0.02 < found["null_ratio.amount"] < 0.09


@pytest.mark.parametrize(
    ("frame", "changes", "message"),
    [
        pytest.param(make_frame(n_days=6), {}, "before a holdout", id="too-few-blocks"),
        pytest.param(
            make_frame().with_columns(
                pl.when(pl.col("event_time").dt.day() < 16).then(0.0).otherwise("label").alias("label")
            ),
            {},
            "no block has a roc_auc|are all of one class",
            id="older-part-of-one-class",
        ),
        pytest.param(
            make_frame(),
            {"candidates": [{**SMALL_BOOSTING, "params": {"max_itr": 3}}]},
            "max_itr",
            id="unknown-parameter",
        ),
        pytest.param(
            make_frame(),
            {"candidates": [{**SMALL_BOOSTING, "params": {"max_iter": "many"}}]},
            "max_iter",
            id="wrong-parameter",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(frame: pl.DataFrame, changes: dict[str, Any], message: str) -> None:
    spec = make_spec()
    training = {**spec.training.model_dump(mode="json"), **changes}
    spec = make_spec(training=training)

    with pytest.raises(InputError, match=message):
        fit_candidates(make_rows(spec, frame), spec, seed=1)


def test_the_digest_follows_the_rows_and_not_the_column_order() -> None:
    frame = make_frame(n_rows=100)
    changed = frame.with_columns(pl.when(pl.int_range(pl.len()) == 7).then(1.5).otherwise("age").alias("age"))

    assert frame_sha256(frame) == frame_sha256(frame.select(sorted(frame.columns)))
    assert frame_sha256(frame) != frame_sha256(frame.reverse())
    assert frame_sha256(frame) != frame_sha256(changed)


def test_rows_in_any_order_are_put_into_time_order() -> None:
    spec, frame = make_spec(), make_frame(n_rows=300)

    rows = labelled_rows(frame.sample(fraction=1.0, shuffle=True, seed=1), spec, n_classes=2)

    assert rows.label.tolist() == frame["label"].to_list()
    assert rows.blocks.tolist() == sorted(rows.blocks.tolist())
