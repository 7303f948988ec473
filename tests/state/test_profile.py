from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.cells import LevelBins, NumericBins, fit_levels, fit_numeric
from state.cuts import MAX_CELL_RATIO
from state.errors import TerminalError
from state.profile import Bins, Profile, fit_bins, merge, read_reference, write_reference
from state.varints import pack, unpack

RNG = np.random.default_rng(7)
N = 3_000
REFERENCE: dict[str, tuple[Any, Any]] = {
    "grid": ("numeric", RNG.normal(size=N)),
    "tailed": ("numeric", np.exp(3 * RNG.normal(size=N))),
    "count": ("numeric", RNG.integers(0, 30, size=N)),
    "carrier": ("categorical", [f"c{k}" for k in RNG.zipf(1.5, size=N)]),
    "late": ("boolean", RNG.random(N) < 0.2),
    "note": ("text", [f"gate {k} closed" for k in RNG.integers(0, 9, size=N)]),
}
BINS = fit_bins(REFERENCE, bounds={"count": (0, 29)})

_number = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(10**9), 10**9),
    st.sampled_from(["12.5", "", "x", "1e3", "inf"]),
    st.booleans(),
)
_level = st.one_of(st.none(), st.sampled_from(["c1", "c2", "brand new", ""]), st.integers(0, 3), st.just(math.nan))
_row = st.fixed_dictionaries(
    {
        "grid": _number,
        "tailed": _number,
        "count": _number,
        "carrier": _level,
        "late": st.one_of(st.none(), st.booleans(), st.sampled_from(["true", "no", "maybe", 0, 1, 2.0])),
        "note": st.one_of(st.none(), st.text(max_size=12)),
        "block": st.sampled_from(["2026-01-01", "2026-01-02", "2026-01-03"]),
    }
)


def columns_of(rows: list[dict[str, Any]]) -> tuple[dict[str, list[Any]], list[str]]:
    return {name: [row[name] for row in rows] for name in BINS.names}, [row["block"] for row in rows]


def count(rows: list[dict[str, Any]]) -> Profile:
    columns, blocks = columns_of(rows)
    return Profile.count(BINS, columns, blocks)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(_row, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=4), seed=st.integers(0, 99))
def test_any_chunking_and_order_gives_the_same_bytes(rows: list[dict[str, Any]], cuts: list[int], seed: int) -> None:
    whole = count(rows)
    shuffled = [rows[at] for at in np.random.default_rng(seed).permutation(len(rows))]
    ends = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    parts = [count(shuffled[start:end]) for start, end in pairwise(ends)]

    assert merge(reversed(parts), BINS).to_bytes() == whole.to_bytes()


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(_row, min_size=1, max_size=30))
def test_every_row_is_in_one_cell_or_has_one_status(rows: list[dict[str, Any]]) -> None:
    profile = count(rows)
    for name in ("grid", "tailed", "count", "carrier", "late"):
        feature = profile.feature(name)
        assert (feature.n_valid == feature.cells.sum(axis=1)).all(), name
        assert (feature.n_valid >= 0).all(), name
    assert profile.n_rows.sum() == len(rows)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.one_of(st.just(0), st.integers(-(2**63), 2**63 - 1), st.integers(-200, 200)), max_size=60),
)
def test_packed_integers_come_back(values: list[int]) -> None:
    array = np.array(values, dtype=np.int64)

    assert unpack(pack(array), len(array)).tolist() == values


def test_file_holds_bins_and_counts() -> None:
    profile = Profile.count(BINS, {name: values for name, (_, values) in REFERENCE.items()}, "2026-01-01")
    back = read_reference(write_reference(profile))

    assert back.bins.sha256 == BINS.sha256
    assert back.to_bytes() == profile.to_bytes()
    assert write_reference(back) == write_reference(profile)


@pytest.mark.parametrize("damage", ["short", "cut", "flipped", "other"])
def test_a_damaged_file_is_refused(damage: str) -> None:
    data = write_reference(Profile.count(BINS, {"grid": np.ones(5)}, "2026-01-01"))
    broken = {
        "short": b"ab",
        "cut": data[:-2],
        "flipped": data.replace(BINS.sha256.encode(), b"0" * 64),
        "other": b"\x02\x00\x00\x00{}",
    }[damage]

    with pytest.raises(TerminalError):
        read_reference(broken)


def test_profiles_of_other_bins_do_not_add_up() -> None:
    other = fit_bins({"grid": ("numeric", np.arange(5.0))})
    with pytest.raises(TerminalError, match="different bins"):
        Profile.empty(BINS) + Profile.empty(other)


def test_same_values_fall_alike_from_floats_of_both_widths_lists_and_rows() -> None:
    values = RNG.normal(size=500).astype(np.float32)
    forms: list[Any] = [values, values.astype(np.float64), [float(v) for v in values], tuple(float(v) for v in values)]
    profiles = [Profile.count(BINS, {"grid": form}, "2026-01-01").to_bytes() for form in forms]

    assert len(set(profiles)) == 1


def test_status_of_unusual_values() -> None:
    columns: Mapping[str, Any] = {
        "grid": [None, math.nan, math.inf, "abc", "1.5", 0.0, ""],
        "count": [-5, 0, 29, 30, 1000.0, None, 7],
        "carrier": ["c1", "never seen", None, 3.0, [1], "c1", math.nan],
        "late": ["true", True, 0, 5, None, "perhaps", "no"],
        "note": ["a b c", None, "", "d", "e f", 7, [1]],
    }
    profile = Profile.count(BINS, columns, "2026-01-01")

    def statuses(name: str) -> dict[str, int]:
        feature = profile.feature(name)
        names = ("missing", "absent", "not_finite", "unparsable", "retyped", "out_of_bounds")
        return {status: n for status in names if (n := int(feature.status(status)[0]))}

    assert statuses("grid") == {"missing": 3, "not_finite": 1, "unparsable": 1, "retyped": 1}
    assert statuses("count") == {"missing": 1, "out_of_bounds": 3}
    assert statuses("carrier") == {"missing": 2, "unparsable": 1}
    assert statuses("late") == {"missing": 1, "unparsable": 2, "retyped": 2}
    assert statuses("note") == {"missing": 1, "unparsable": 1}
    assert statuses("tailed") == {"absent": 7}
    assert profile.feature("carrier").new_level.tolist() == [2]  # "never seen", and the number 3 as "3"
    assert profile.feature("count").below.tolist() == [1]
    assert profile.feature("count").above.tolist() == [2]


@pytest.mark.parametrize(
    ("values", "transform"),
    [
        pytest.param(RNG.normal(size=20_000), "identity", id="normal"),
        pytest.param(RNG.uniform(size=20_000), "identity", id="uniform"),
        pytest.param(np.append(RNG.normal(size=20_000), 1e6), "quantile", id="one-outlier-of-a-million"),
        pytest.param(np.sign(RNG.normal(size=20_000)) * np.exp(RNG.uniform(0, 9, 20_000)), "signed_log", id="decades"),
        pytest.param(RNG.integers(0, 100, 20_000), "exact", id="few-distinct"),
        pytest.param(np.where(RNG.random(20_000) < 0.7, 0.0, RNG.exponential(size=20_000)), "quantile", id="mostly-0"),
    ],
)
def test_no_cell_but_a_repeated_value_holds_more_than_one_percent(values: Any, transform: str) -> None:
    bins = fit_numeric("x", values)
    counts = np.bincount(bins.cells(np.asarray(values, dtype=np.float32).astype(np.float64)), minlength=bins.n_cells)
    lower, upper = bins.bounds()
    single = np.isin(np.nextafter(lower, np.inf), upper)

    assert bins.transform == transform
    if transform != "exact":
        assert counts[~single].max() <= MAX_CELL_RATIO * len(values)


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0], [None, math.nan], [-1e38, 1e38], [0.0, -0.0]])
def test_poor_references_still_give_bins(values: list[Any]) -> None:
    bins = fit_bins({"x": ("numeric", values), "c": ("categorical", values)})
    profile = Profile.count(bins, {"x": [3.0, None, -7.0, 1e30], "c": ["a", None, "b", "c"]}, "2026-01-01")

    assert profile.feature("x").cells.sum() == 3
    assert Bins.from_json(bins.to_json()).sha256 == bins.sha256


def test_cells_are_where_their_bounds_say() -> None:
    for name in ("grid", "tailed", "count"):
        bins = BINS.feature(name)
        assert isinstance(bins, NumericBins)
        lower, upper = bins.bounds()
        x = np.concatenate([RNG.normal(size=400) * 4, np.exp(RNG.normal(size=400) * 6), -np.exp(RNG.normal(size=50))])
        cells = bins.cells(x)
        slack = 1e-9 * np.maximum(1, np.abs(x))
        assert (x >= lower[cells] - slack).all(), name
        assert (x <= upper[cells] + slack).all(), name


def test_good_turing_mass_is_the_share_of_levels_seen_once() -> None:
    bins = fit_levels("x", ["a"] * 6 + ["b"] * 2 + ["c", "d"])
    assert isinstance(bins, LevelBins)
    assert bins.unseen_ratio == pytest.approx(0.2)
    assert bins.levels == ("a", "b", "c", "d")


def test_pair_sums_give_the_rank_correlation() -> None:
    x = RNG.normal(size=5_000)
    y = 0.8 * x + 0.6 * RNG.normal(size=5_000)
    bins = fit_bins({"x": ("numeric", x), "y": ("numeric", y)})
    profile = Profile.count(bins, {"x": x, "y": y}, "2026-01-01")
    rank = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
    variances = [
        float(profile.feature(name).cells[0] @ np.square(feature.scores))
        for name, feature in zip(bins.names, bins.scored, strict=True)
    ]

    assert profile.pair_sums[0, 0] / math.sqrt(math.prod(variances)) == pytest.approx(rank, abs=0.005)


def test_blocks_are_chosen_by_name_and_by_time() -> None:
    days = ["2026-01-01", "2026-01-02", "2026-01-03"]
    profile = Profile.count(BINS, {"grid": [0.0, 1.0, 2.0]}, days)

    assert profile.select(["2026-01-02", "2030-01-01"]).blocks == ("2026-01-02",)
    assert profile.between("2026-01-02", "2026-01-04").blocks == ("2026-01-02", "2026-01-03")
    assert Profile.count(BINS, {}, []).blocks == ()
    with pytest.raises(ValueError, match="different lengths"):
        Profile.count(BINS, {"grid": [1.0]}, days)


def test_booleans_in_a_float_column_count_as_the_same_values_one_by_one() -> None:
    values = np.array([0.0, 1.0, 2.0, 0.5, -1.0, np.nan, np.inf, -np.inf, 1e39, -0.0])
    bins = fit_bins({"late": ("boolean", np.array([True, False]))})

    at_once = Profile.count(bins, {"late": values}, "b")
    one_by_one = Profile.count(bins, {"late": values.tolist()}, "b")

    assert np.array_equal(at_once.counts, one_by_one.counts)


def test_a_reference_that_was_read_cannot_be_changed() -> None:
    bins = fit_bins({"late": ("boolean", np.array([True, False]))})
    stored = write_reference(Profile.count(bins, {"late": [True, False, True]}, "b"))

    with pytest.raises(ValueError, match="read-only"):
        read_reference(stored).counts[0, 0] = 7
