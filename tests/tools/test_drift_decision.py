from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest

from state.profile import Bins, Profile, fit_bins
from tools.drift.decision import DriftVerdict, decide_drift, window_alpha
from tools.drift.permutation import choose_length, deal, step_down_max_t, units, weekdays


def days(start: str, n: int) -> list[str]:
    first = date.fromisoformat(start)
    return [(first + timedelta(days=k)).isoformat() for k in range(n)]


def window(
    rng: np.random.Generator, start: str, n_days: int, *, rows: int = 100, n_features: int = 4, day_sd: float = 0.2,
    shift: float = 0.0,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    columns = {}
    for at in range(n_features):
        effect = np.repeat(rng.normal(0, day_sd, n_days), rows)
        columns[f"f{at}"] = rng.normal(size=n_days * rows) + effect + (shift if at == 0 else 0.0)
    return columns, [day for day in days(start, n_days) for _ in range(rows)]


def counted(columns: dict[str, Any], blocks: list[str], bins: Bins | None = None) -> Profile:
    bins = bins or fit_bins({name: ("numeric", values) for name, values in columns.items()})
    return Profile.count(bins, columns, blocks)


def decide(seed: int, **change: Any) -> DriftVerdict:
    rng = np.random.default_rng(seed)
    reference = counted(*window(rng, "2026-01-01", 60))
    current = counted(*window(rng, "2026-05-01", 28, **change), reference.bins)
    return decide_drift(reference, current, alpha=0.05, rng=rng, n_permutations=199)


def test_day_to_day_variation_is_no_drift() -> None:
    verdicts = [decide(seed) for seed in range(20)]
    assert sum(verdict.level != "none" for verdict in verdicts) <= 2
    assert all(verdict.calibrated for verdict in verdicts)


def test_a_shift_of_one_feature_is_named() -> None:
    named = [[(f.name, f.kind) for f in decide(seed, shift=0.4).drifted] for seed in range(10)]
    assert sum(("f0", "distribution") in names for names in named) >= 9
    assert sum(len(names) > 1 for names in named) <= 2


def test_a_tiny_shift_is_significant_and_below_the_floor() -> None:
    rng = np.random.default_rng(1)
    reference = counted(*window(rng, "2026-01-01", 60, rows=2_000, n_features=1, day_sd=0.0))
    current = counted(*window(rng, "2026-05-01", 28, rows=2_000, n_features=1, day_sd=0.0, shift=0.05), reference.bins)
    verdict = decide_drift(reference, current, alpha=0.05, rng=rng)
    tiny = next(f for f in verdict.features if f.kind == "distribution")

    assert tiny.p_value <= 0.05
    assert (tiny.floor_crossed, verdict.level) == ("none", "none")


def test_the_same_seed_gives_the_same_verdict() -> None:
    assert decide(5, shift=0.2) == decide(5, shift=0.2)


@pytest.mark.parametrize(("n_days", "calibrated", "level"), [(10, True, "major"), (9, False, "warn")])
def test_fewer_than_ten_blocks_inform_and_do_not_trigger(n_days: int, calibrated: bool, level: str) -> None:
    rng = np.random.default_rng(2)
    reference = counted(*window(rng, "2026-01-01", 30))
    current = counted(*window(rng, "2026-05-01", n_days, shift=2.0), reference.bins)
    verdict = decide_drift(reference, current, alpha=0.05, rng=rng)

    assert (verdict.calibrated, verdict.level) == (calibrated, level)


@pytest.mark.parametrize(
    ("importance", "level"),
    [
        pytest.param(None, "major", id="unknown"),
        pytest.param({"f0": 0.5, "f1": 0.5}, "major", id="important"),
        pytest.param({"f0": 0.001, "f1": 0.999}, "warn", id="the-model-hardly-reads-it"),
        pytest.param({"f1": 1.0}, "warn", id="not-named"),
    ],
)
def test_importance_decides_between_warning_and_major(importance: dict[str, float] | None, level: str) -> None:
    rng = np.random.default_rng(3)
    reference = counted(*window(rng, "2026-01-01", 30, n_features=2))
    current = counted(*window(rng, "2026-05-01", 28, n_features=2, shift=1.0), reference.bins)

    assert decide_drift(reference, current, alpha=0.05, rng=rng, importance=importance).level == level


def test_categories_missing_values_and_range() -> None:
    rng = np.random.default_rng(4)
    n = 28 * 50
    old: dict[str, Any] = {
        "c": rng.choice(["a", "b", "c"], n).tolist(),
        "x": rng.uniform(size=n),
        "b": rng.random(n) < 0.1,
    }
    new: dict[str, Any] = {
        "c": ["z" if k % 6 == 0 else level for k, level in enumerate(rng.choice(["a", "b"], n))],
        "x": np.where(rng.random(n) < 0.2, np.nan, rng.uniform(0, 1.15, size=n)),
        "b": [None if k % 3 == 0 else bool(v) for k, v in enumerate(rng.random(n) < 0.1)],
    }
    bins = fit_bins({"c": ("categorical", old["c"]), "x": ("numeric", old["x"]), "b": ("boolean", old["b"])})
    blocks = [[day for day in days(start, 28) for _ in range(50)] for start in ("2026-01-01", "2026-02-01")]
    verdict = decide_drift(
        Profile.count(bins, old, blocks[0]), Profile.count(bins, new, blocks[1]), alpha=0.05, rng=rng
    )
    found = {(f.name, f.kind): f.level for f in verdict.drifted}

    assert found[("c", "distribution")] == "major"
    assert found[("c", "new_level")] == "major"
    assert found[("x", "missing")] == "major"
    assert found[("x", "range")] == "major"
    assert found[("b", "missing")] == "major"
    assert verdict.stratified


def test_a_weekday_pattern_is_no_drift_when_a_window_has_more_sundays() -> None:
    rng = np.random.default_rng(6)

    def weekly(start: str, n_days: int) -> tuple[dict[str, Any], list[str]]:
        names = days(start, n_days)
        weekend = np.repeat([3.0 * (date.fromisoformat(day).weekday() >= 5) for day in names], 60)
        return {"x": rng.normal(size=n_days * 60) + weekend}, [day for day in names for _ in range(60)]

    reference = counted(*weekly("2026-01-01", 90))
    verdict = decide_drift(reference, counted(*weekly("2026-04-01", 28), reference.bins), alpha=0.05, rng=rng)

    assert verdict.stratified
    assert verdict.level == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"alpha": 1e-6}, "needs 2000000 permutations", id="impossible-alpha"),
        pytest.param({"overlap": True}, "share 28 block", id="overlapping-windows"),
        pytest.param({"other": True}, "different bins", id="other-bins"),
    ],
)
def test_wrong_questions_are_refused(change: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(7)
    reference = counted(*window(rng, "2026-01-01", 30))
    start = "2026-01-01" if "overlap" in change else "2026-05-01"
    current = counted(*window(rng, start, 28), None if "other" in change else reference.bins)
    with pytest.raises(ValueError, match=message):
        decide_drift(reference, current, alpha=change.get("alpha", 0.05), rng=rng)


def test_permutations_are_raised_until_alpha_can_be_reached() -> None:
    rng = np.random.default_rng(11)
    reference = counted(*window(rng, "2026-01-01", 30, n_features=1))
    current = counted(*window(rng, "2026-05-01", 28, n_features=1, shift=2.0), reference.bins)

    assert decide_drift(reference, current, alpha=0.002, rng=rng, n_permutations=9).level == "major"


def test_a_years_budget_is_spent_over_its_windows() -> None:
    assert window_alpha(0.05, timedelta(days=28)) == pytest.approx(0.05 * 28 / 365)
    assert window_alpha(0.05, timedelta(days=900)) == 0.05


@pytest.mark.parametrize(
    ("correlation", "n_days", "expected"),
    [
        pytest.param(0.0, (120, 120), {1}, id="independent-days"),
        pytest.param(0.85, (120, 120), {3, 7}, id="weather-that-lasts"),
        pytest.param(0.85, (120, 28), {2}, id="capped-so-that-ten-units-remain"),
        pytest.param(0.85, (120, 12), {1}, id="capped-at-single-days"),
    ],
)
def test_length_of_a_unit_follows_the_autocorrelation(
    correlation: float, n_days: tuple[int, int], expected: set[int]
) -> None:
    rng = np.random.default_rng(8)
    windows = []
    for n in n_days:
        values = rng.normal(size=(n, 5))
        for at in range(1, n):
            values[at] += correlation * values[at - 1]
        windows.append(values + 100 * rng.normal())

    assert choose_length(windows, [None, None]) in expected


def test_units_join_a_short_rest_to_the_last() -> None:
    assert units(7, 3).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert units(2, 7).tolist() == [0, 0]


def test_dealing_keeps_each_weekdays_number() -> None:
    strata = np.array([0, 0, 1, 1, 1, 0])
    member = deal(strata, np.array([True, False, True, True, False, False]), 50, np.random.default_rng(9))

    assert (member[:, strata == 0].sum(axis=1) == 1).all()
    assert (member[:, strata == 1].sum(axis=1) == 2).all()
    assert len(np.unique(member, axis=0)) > 5


def test_weekdays_are_known_only_for_single_days() -> None:
    found = weekdays(["2026-01-05", "2026-01-06", "2026-01-07"])
    assert found is not None
    assert found.tolist() == [0, 1, 2]
    assert weekdays(["2026-01-05", "2026-01-12"]) is None
    assert weekdays(["2026-01-05T00:00:00", "2026-01-05T06:00:00"]) is None


def test_max_t_keeps_the_family_error_and_a_dead_statistic_says_nothing() -> None:
    rng = np.random.default_rng(10)
    n_false = 0
    for _ in range(200):
        common = rng.normal(size=(200, 1))
        draws = 0.7 * common + rng.normal(size=(200, 12))
        n_false += bool((step_down_max_t(draws[0], draws[1:]) <= 0.05).any())
    dead = step_down_max_t(np.array([5.0, 0.0]), np.column_stack([rng.normal(size=99), np.zeros(99)]))

    assert n_false <= 20
    assert dead.tolist() == [0.01, 1.0]
