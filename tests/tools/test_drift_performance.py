from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from sklearn import metrics

from state.spec import Metric
from tools.drift.performance import (
    EDetector,
    Reference,
    block_loss,
    block_losses,
    block_of,
    change_point,
    metric_value,
    reference_from_losses,
)

RNG = np.random.default_rng(23)
Y = (RNG.random(400) < 0.3).astype(float)
SCORE = np.clip(np.round(0.3 * Y + RNG.normal(0.35, 0.2, 400), 2), 0.01, 0.99)
CALLED = SCORE >= 0.5
K = RNG.integers(0, 3, 300)
P = RNG.dirichlet([1, 1, 1], 300) * 0.5 + 0.5 * np.eye(3)[K]
P /= P.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", metrics.accuracy_score(Y, CALLED)),
        ("precision", metrics.precision_score(Y, CALLED)),
        ("recall", metrics.recall_score(Y, CALLED)),
        ("f1", metrics.f1_score(Y, CALLED)),
        ("roc_auc", metrics.roc_auc_score(Y, SCORE)),
        ("pr_auc", metrics.average_precision_score(Y, SCORE)),
        ("log_loss", metrics.log_loss(Y, SCORE)),
        ("rmse", metrics.root_mean_squared_error(Y, SCORE)),
        ("mae", metrics.mean_absolute_error(Y, SCORE)),
    ],
)
def test_binary_and_numeric_losses_are_the_known_ones(metric: Metric, expected: float) -> None:
    loss = block_loss(metric, Y, SCORE)
    assert loss is not None
    assert metric_value(metric, loss) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", metrics.accuracy_score(K, P.argmax(1))),
        ("precision", metrics.precision_score(K, P.argmax(1), average="macro")),
        ("recall", metrics.recall_score(K, P.argmax(1), average="macro")),
        ("f1", metrics.f1_score(K, P.argmax(1), average="macro")),
        ("roc_auc", metrics.roc_auc_score(K, P, multi_class="ovr", average="macro")),
        ("log_loss", metrics.log_loss(K, P)),
    ],
)
def test_losses_of_several_classes_are_means_over_classes(metric: Metric, expected: float) -> None:
    loss = block_loss(metric, K, P)
    assert loss is not None
    assert metric_value(metric, loss) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "y", "score"),
    [
        pytest.param("roc_auc", [1, 1], [0.2, 0.9], id="auc-of-one-class"),
        pytest.param("pr_auc", [0, 0], [0.2, 0.9], id="pr-auc-of-one-class"),
        pytest.param("precision", [1, 0], [0.2, 0.3], id="nothing-called"),
        pytest.param("recall", [0, 0], [0.2, 0.9], id="nothing-to-find"),
        pytest.param("f1", [0, 0], [0.2, 0.3], id="neither"),
        pytest.param("log_loss", [], [], id="no-rows"),
    ],
)
def test_a_block_that_cannot_say_gives_none(metric: Metric, y: list[float], score: list[float]) -> None:
    assert block_loss(metric, y, score) is None


def test_a_certain_mistake_stays_finite() -> None:
    loss = block_loss("log_loss", [1.0], [0.0])
    assert loss is not None
    assert math.isfinite(loss)


def frame(**columns: object) -> pl.DataFrame:
    times = [datetime(2026, 1, 1, 5, tzinfo=UTC) + timedelta(hours=12 * k) for k in range(4)]
    return pl.DataFrame({"event_time": times, **columns}, strict=False)


def test_block_losses_leave_unlabelled_rows_out() -> None:
    rows = frame(score=[0.9, 0.2, 0.8, 0.4], label=[1.0, None, 1.0, None])
    assert block_losses("accuracy", rows) == {"2026-01-01": 0.0, "2026-01-02": 0.0}


def test_block_losses_read_class_probabilities() -> None:
    scores = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]
    rows = frame(score=scores, label=[0.0, 1.0, 0.0, 0.0])
    assert block_losses("accuracy", rows) == {"2026-01-01": 0.0, "2026-01-02": 0.5}
    assert block_losses("accuracy", rows.clear()) == {}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (timedelta(days=1), "2026-01-01"),
        (timedelta(days=7), "2025-12-29"),
        (timedelta(hours=6), "2026-01-01T00:00:00"),
    ],
)
def test_blocks_are_named_by_their_start(block: timedelta, expected: str) -> None:
    times = frame()["event_time"]
    assert block_of(times, block)[0] == expected
    # Times of one block take another way than those of several.
    assert block_of(times, block).to_list() == [block_of(times[k : k + 1], block).item() for k in range(len(times))]


def test_reference_takes_the_larger_of_tolerance_and_two_errors() -> None:
    steady = reference_from_losses([0.30, 0.301, 0.299, 0.3] * 20, tolerance=0.02)
    assert steady.null == pytest.approx(0.3 * 1.02)
    noisy = reference_from_losses([0.2, 0.4, 0.3, 0.35, 0.25], tolerance=0.02)
    assert noisy.null > noisy.mean + 2 * np.std([0.2, 0.4, 0.3, 0.35, 0.25], ddof=1) / math.sqrt(5) - 1e-12
    assert reference_from_losses([0.0, 0.0]).sd > 0
    with pytest.raises(ValueError, match="at least two"):
        reference_from_losses([0.3])


REFERENCE = Reference(mean=0.3, sd=0.01, n=90, null=0.306)


def test_a_restart_between_any_two_blocks_changes_nothing() -> None:
    losses = 0.31 + 0.01 * RNG.normal(size=60)
    through = EDetector(reference=REFERENCE)
    stopped = EDetector(reference=REFERENCE)
    for day, loss in enumerate(losses):
        block = f"2026-{1 + day // 28:02d}-{1 + day % 28:02d}"
        through.update(float(loss), block=block)
        stopped = EDetector.from_state(json.loads(json.dumps(stopped.state(), allow_nan=False)))
        stopped.update(float(loss), block=block)
        stopped.update(float(loss), block=block)

    assert stopped.state() == through.state()
    assert stopped.log_e == through.log_e
    assert stopped.n_blocks == 60


def test_blocks_without_a_loss_change_nothing() -> None:
    detector = EDetector(reference=REFERENCE)
    before = detector.state()
    detector.update(None, block="2026-01-01")
    detector.update(math.nan, block="2026-01-02")
    assert detector.state() == before
    assert not detector.alarm


@pytest.mark.parametrize(("shift", "within"), [(0.05, 4), (0.02, 60)])
def test_a_lasting_loss_is_found(shift: float, within: int) -> None:
    days = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        detector = EDetector(reference=REFERENCE, false_alarm_blocks=16_000)
        detector.update_all({f"{day:04d}": float(0.3 + shift + 0.01 * rng.normal()) for day in range(within)})
        days.append(detector.alarm)
    assert sum(days) >= 19


def test_healthy_losses_raise_no_alarm_in_two_hundred_days() -> None:
    n_false = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        history = (0.3 + 0.01 * rng.normal(size=90)).tolist()
        detector = EDetector(reference=reference_from_losses(history))
        for loss in 0.3 + 0.01 * rng.normal(size=200):
            detector.update(float(loss))
            n_false += detector.alarm
    assert n_false == 0


def test_one_terrible_day_is_no_alarm_and_a_long_fault_stays_finite() -> None:
    detector = EDetector(reference=REFERENCE)
    detector.update(99.0)
    assert not detector.alarm
    for _ in range(2_000):
        detector.update(99.0)
    assert detector.alarm
    assert math.isfinite(detector.log_e)


@pytest.mark.parametrize(("size", "n_after", "near"), [(0.5, 80, 15), (1.0, 30, 6), (3.0, 10, 1)])
def test_the_change_point_is_where_the_loss_began_to_rise(size: float, n_after: int, near: int) -> None:
    """After about as many blocks as the detector takes for a rise of that size."""
    rng = np.random.default_rng(23)
    errors = []
    for _ in range(40):
        losses = rng.normal(0.0, 1.0, 40 + n_after)
        losses[40:] += 0.3 + size
        found = change_point({f"{n:03d}": float(loss) for n, loss in enumerate(losses)}, null=0.3, sd=1.0)
        assert found is not None
        errors.append(int(found) - 40)

    assert abs(float(np.median(errors))) <= 3
    assert np.quantile(np.abs(errors), 0.8) <= near


def test_where_no_loss_rises_there_is_no_change_point() -> None:
    assert change_point({}, null=0.3, sd=1.0) is None
    assert change_point({"a": 0.3, "b": 0.1}, null=0.3, sd=1.0) is None
    assert change_point({"a": 0.1, "b": 9.0, "c": 1.3}, null=0.3, sd=1.0) == "b"
