from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, ks_2samp, wasserstein_distance

from state.cells import NumericBins
from state.profile import Profile, fit_bins
from tools.drift import statistics as stats

RNG = np.random.default_rng(41)
N = 4_000


def counted(reference: np.ndarray, current: np.ndarray) -> tuple[NumericBins, stats.Ints, stats.Ints]:
    bins = fit_bins({"x": ("numeric", reference)})
    numeric = bins.feature("x")
    assert isinstance(numeric, NumericBins)
    old = Profile.count(bins, {"x": reference}, "a").feature("x").cells[0]
    new = Profile.count(bins, {"x": current}, "b").feature("x").cells[0]
    return numeric, old, new


PAIRS = {
    "normal": (RNG.normal(size=N), RNG.normal(0.2, 1.1, size=N)),
    "skewed": (np.exp(2 * RNG.normal(size=N)), np.exp(2 * RNG.normal(size=N) + 0.3)),
    "counts": (RNG.integers(0, 12, size=N), RNG.binomial(11, 0.6, size=N)),
    "zeros": (
        np.where(RNG.random(N) < 0.5, 0.0, RNG.exponential(size=N)),
        np.where(RNG.random(N) < 0.6, 0.0, RNG.exponential(size=N)),
    ),
    "same": (RNG.normal(size=N), RNG.normal(size=N)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_ks_from_cells_is_scipys_but_for_one_cell(name: str) -> None:
    reference, current = (values.astype(np.float32) for values in PAIRS[name])
    bins, old, new = counted(reference, current)
    exact = ks_2samp(reference, current).statistic
    short = exact - stats.ks(old, new)

    assert -1e-9 <= short <= stats.ks_error(bins, old, new) + 1e-9
    if name == "counts":
        assert short == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_wasserstein_from_cells_is_scipys_within_a_cells_width(name: str) -> None:
    reference, current = PAIRS[name]
    bins, old, new = counted(reference, current)
    exact = wasserstein_distance(reference, current)
    ours = stats.wasserstein1(old, new, bins.centres())

    assert ours == pytest.approx(exact, rel=0.05 if name == "skewed" else 0.02, abs=0.02)
    if name == "counts":
        assert ours == pytest.approx(exact, rel=1e-9)


_counts = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=40)


@settings(max_examples=80, deadline=None)
@given(_counts)
def test_jensen_shannon_and_chi_square_are_scipys(table: list[tuple[int, int]]) -> None:
    old, new = np.array(table, dtype=np.int64).T
    if not old.sum() or not new.sum():
        assert stats.chi_square(old, new).p_value == 1.0
        return
    assert stats.js(old, new) == pytest.approx(jensenshannon(old, new, base=2), abs=1e-7)
    used = (old + new) > 0
    ours = stats.chi_square(old, new)
    if used.sum() >= 2:
        theirs = chi2_contingency(np.stack([old, new])[:, used], correction=False)
        assert ours.statistic == pytest.approx(theirs.statistic)
        assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-12)
        assert ours.degrees == theirs.dof


@settings(max_examples=80, deadline=None)
@given(_counts)
def test_distances_are_bounded_and_zero_on_themselves(table: list[tuple[int, int]]) -> None:
    old, new = np.array(table, dtype=np.int64).T
    for distance in (stats.ks, stats.total_variation, stats.js):
        assert 0 <= distance(old, new) <= 1 + 1e-9
        assert distance(old, old) == pytest.approx(0, abs=1e-7)
    if old.sum() and new.sum():
        assert stats.ks(old, new) <= stats.total_variation(old, new) + 1e-9
    assert stats.psi(old, new) >= -1e-12
    assert stats.psi_corrected(old, new) >= 0


def test_psi_is_the_textbook_sum() -> None:
    old, new = np.array([50, 30, 20]), np.array([40, 30, 30])
    p, q = old / 100, new / 100
    expected = ((q - p) * np.log(q / p)).sum()

    assert stats.psi(old, new, pseudo_count=0.0) == pytest.approx(expected)


def test_cells_that_nobody_uses_add_nothing_to_psi() -> None:
    old, new = np.array([100, 100, 100]), np.array([1, 1, 1])
    unused = np.zeros(20, dtype=np.int64)
    assert stats.psi(np.append(old, unused), np.append(new, unused)) == pytest.approx(stats.psi(old, new)) == 0.0


def test_corrected_psi_of_two_samples_of_one_distribution_is_near_zero() -> None:
    raw, corrected = [], []
    for _ in range(40):
        old, new = RNG.multinomial(500, [0.02] * 50), RNG.multinomial(300, [0.02] * 50)
        raw.append(stats.psi(old, new))
        corrected.append(stats.psi_corrected(old, new))

    assert np.mean(raw) > 0.2
    assert np.mean(corrected) < 0.04


def test_classic_psi_uses_ten_bins_of_equal_weight() -> None:
    old, new = (part.astype(np.float32) for part in PAIRS["normal"])
    _, before, after = counted(old, new)
    edges = np.quantile(old, np.linspace(0.1, 0.9, 9))
    p = np.bincount(np.searchsorted(edges, old), minlength=10) / N
    q = np.bincount(np.searchsorted(edges, new), minlength=10) / N

    assert stats.classic_psi(before, after) == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=0.05)


@pytest.mark.parametrize("name", ["normal", "skewed", "counts"])
def test_quantiles_from_cells(name: str) -> None:
    values = PAIRS[name][0]
    bins, counts, _ = counted(values, values)
    for probability in (0.1, 0.25, 0.5, 0.75, 0.9):
        exact = np.quantile(values, probability)
        assert stats.quantile(bins, counts, probability) == pytest.approx(exact, rel=0.03, abs=0.03)
    assert np.isnan(stats.quantile(bins, np.zeros_like(counts), 0.5))


def test_description_of_two_windows() -> None:
    columns: dict[str, Any] = {"x": RNG.normal(size=100), "c": ["a", "b"] * 50, "t": ["some words"] * 100}
    bins = fit_bins({"x": ("numeric", columns["x"]), "c": ("categorical", columns["c"]), "t": ("text", columns["t"])})
    old = Profile.count(bins, columns, "2026-01-01")
    new = Profile.count(bins, {"x": [None] * 25 + [9.0] * 75, "c": ["a"] * 100}, "2026-01-02")
    x, c, t = stats.describe(old, new)

    assert x.ks == pytest.approx(1.0)
    assert x.missing_current_ratio == 0.25
    assert (c.ks, c.total_variation) == (None, 0.5)
    assert (t.n_current, t.missing_current_ratio) == (0, 1.0)
