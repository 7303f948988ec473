"""Drift, performance and data checks of the classic pipeline, by its statistics and their marks."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from state.bins import fit_bins
from state.cells import NumericBins
from state.profile import Profile
from state.spec import Metric
from tools.drift.decision import decide_drift
from tools.drift.performance import EDetector, block_loss, block_losses, metric_value, reference_from_losses
from tools.drift.statistics import classic_psi, describe, ks, psi

RNG = np.random.default_rng(4)
DAYS = [f"2025-01-{day:02d}" for day in range(1, 29)]
MONTH = [f"2025-02-{day:02d}" for day in range(1, 29)]


def profiles(shift: float, *, n: int = 5_600) -> tuple[Profile, Profile, dict[str, Any], dict[str, Any]]:
    before = {"amount": RNG.normal(50, 10, n), "age": RNG.normal(40, 5, n)}
    after = {"amount": RNG.normal(50 + shift, 10, n), "age": RNG.normal(40, 5, n)}
    bins = fit_bins({name: ("numeric", values) for name, values in before.items()})
    return (
        Profile.count(bins, before, [DAYS[i % 28] for i in range(n)]),
        Profile.count(bins, after, [MONTH[i % 28] for i in range(n)]), before, after,
    )  # fmt: skip


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.0, 0.1), (4.0, 0.1, 0.25), (8.0, 0.25, 9.0)])
def test_psi_over_ten_bins_with_the_marks_at_a_tenth_and_a_quarter(shift: float, low: float, high: float) -> None:
    reference, current, before, after = profiles(shift)
    edges = np.quantile(before["amount"], np.linspace(0.1, 0.9, 9))
    p = np.bincount(np.searchsorted(edges, before["amount"]), minlength=10) / len(before["amount"])
    q = np.bincount(np.searchsorted(edges, after["amount"]), minlength=10) / len(after["amount"])
    by_hand = float(((q - p) * np.log(q / p)).sum())

    [amount, _] = describe(reference, current)

    assert amount.psi == pytest.approx(by_hand, abs=0.02)
    assert low <= amount.psi < high


def test_psi_has_ten_bins_and_any_other_number_on_request() -> None:
    reference, current, _, _ = profiles(5.0)
    p, q = (profile.feature("amount").cells.sum(axis=0) for profile in (reference, current))
    assert classic_psi(p, q) == classic_psi(p, q, n_bins=10) < classic_psi(p, q, n_bins=100) <= psi(p, q) * 1.2


def test_the_two_sample_ks_statistic_is_scipys() -> None:
    reference, current, before, after = profiles(3.0)
    p, q = (profile.feature("amount").cells.sum(axis=0) for profile in (reference, current))
    [amount, _] = describe(reference, current)
    assert amount.ks == ks(p, q) == pytest.approx(ks_2samp(before["amount"], after["amount"]).statistic, abs=0.01)


def test_a_mean_shift_is_reported_in_the_features_own_unit() -> None:
    reference, current, before, after = profiles(5.0)
    [amount, age] = describe(reference, current)
    assert isinstance(reference.feature("amount").bins, NumericBins)
    assert amount.wasserstein1 == pytest.approx(after["amount"].mean() - before["amount"].mean(), abs=0.2)
    assert age.wasserstein1 == pytest.approx(0.0, abs=0.3)


def test_the_report_names_the_drifting_features_and_no_other() -> None:
    reference, current, _, _ = profiles(8.0)
    verdict = decide_drift(reference, current, alpha=0.05, rng=np.random.default_rng(1))
    assert verdict.level == "major"
    assert {feature.name for feature in verdict.features if feature.level != "none"} == {"amount"}


def test_performance_metrics_are_the_classic_five() -> None:
    y = RNG.integers(0, 2, 400)
    score = np.clip(0.4 * y + RNG.uniform(0, 0.6, 400), 0, 1)
    called = (score >= 0.5).astype(int)
    wanted = {
        "accuracy": accuracy_score(y, called), "precision": precision_score(y, called),
        "recall": recall_score(y, called), "f1": f1_score(y, called), "roc_auc": roc_auc_score(y, score),
    }  # fmt: skip
    for name, value in wanted.items():
        loss = block_loss(cast(Metric, name), y, score)
        assert loss is not None
        assert metric_value(cast(Metric, name), loss) == pytest.approx(value)


def test_an_f1_under_nine_tenths_of_its_reference_raises_the_alarm_and_a_healthy_one_does_not() -> None:
    reference = reference_from_losses(list(1 - RNG.normal(0.80, 0.01, 40)), tolerance=0.02)
    healthy, lost = EDetector(reference), EDetector(reference)
    for f1 in RNG.normal(0.80, 0.01, 60):
        healthy.update(float(1 - f1))
    assert not healthy.alarm
    for f1 in RNG.normal(0.80 * 0.88, 0.01, 14):
        lost.update(float(1 - f1))
    assert lost.alarm


def test_rows_without_a_label_are_left_out_and_never_counted_as_class_0() -> None:
    at = datetime(2025, 1, 1, tzinfo=UTC)
    known = pl.DataFrame({
        "event_time": [at + timedelta(minutes=i) for i in range(200)], "score": [i / 200 for i in range(200)],
        "label": [float(i >= 100) for i in range(200)],
    })  # fmt: skip
    unlabelled = known.with_columns(pl.lit(0.95).alias("score"), pl.lit(None, pl.Float64).alias("label"))
    as_zero = unlabelled.with_columns(pl.lit(0.0).alias("label"))
    alone = block_losses("roc_auc", known)
    assert block_losses("roc_auc", pl.concat([known, unlabelled])) == alone == {"2025-01-01": 0.0}
    assert not math.isclose(block_losses("roc_auc", pl.concat([known, as_zero]))["2025-01-01"], 0.0, abs_tol=0.1)
